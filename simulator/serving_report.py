"""What requests meet at a fleet: the figures of independent runs, with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

from hardware.documents import STRICT
from scheduler.report import Quantiles, quantiles
from simulator.arrivals import Slo
from simulator.served import FINISHED, Served
from simulator.serving import Replica, Serving
from simulator.trace import Array

WARM_UP = 0.1
"""Share of the duration, from its start, whose requests the statistics leave out."""

CONFIDENCE = 0.95
NUM_BLOCKS = 10
"""Parts of a single run, in order, that stand in for independent runs."""

Intervals = dict[str, tuple[float, float]]
"""Lowest and highest by statistic: mean, p50, p90, p95, p99."""


@dataclass(frozen=True)
class ServingReport:
    """What requests met; means over the runs.

    Attributes:
        status: complete, or partial where the user stopped it.
        latency_s, wait_s: of the finished requests that came after the warm-up; None where nothing
            finished, or where the queue grows without bound.
        latency_interval_s, wait_interval_s: confidence intervals by statistic.
        goodput_per_s: requests per second answered within the promise; None without a promise.
        utilization: share of the time that servers which are up compute.
        requests: counts over all runs.
        queue_growth_per_s: requests per second by which the load exceeds capacity; when positive
            the queue grows without bound and there are no quantiles.
        method: how many runs, what was left out, and where the intervals come from.
    """

    __pydantic_config__ = STRICT

    status: str
    latency_s: Quantiles | None
    latency_interval_s: Intervals | None
    wait_s: Quantiles | None
    wait_interval_s: Intervals | None
    throughput_per_s: float
    goodput_per_s: float | None
    utilization: float
    mean_batch: float
    requests: dict[str, int]
    queue_growth_per_s: float
    method: str


def summarize(runs: Sequence[Served], slo: Slo | None) -> ServingReport:
    """Summarize independent runs of one fleet under one traffic."""
    latency_s, latency_interval_s = estimate([_counted(run, run.end_s) for run in runs])
    wait_s, wait_interval_s = estimate([_counted(run, run.start_s) for run in runs])
    totals = {key: sum(run.requests[key] for run in runs) for key in runs[0].requests}
    seconds = sum(run.duration_s for run in runs)
    good = None
    if slo is not None:
        good = sum(int((_latency(run) <= slo.p95_s).sum()) for run in runs) / seconds
    up_s = sum(server.end_s - server.start_s for run in runs for server in run.servers)
    busy_s = sum(float(run.busy_within().sum()) for run in runs)
    num_batches = sum(len(run.batches.size) for run in runs)
    in_batches = sum(int(run.batches.size.sum()) for run in runs)
    return ServingReport(
        status="partial" if any(run.interrupted for run in runs) else "complete",
        latency_s=latency_s,
        latency_interval_s=latency_interval_s,
        wait_s=wait_s,
        wait_interval_s=wait_interval_s,
        throughput_per_s=totals["finished"] / seconds,
        goodput_per_s=good,
        utilization=min(1.0, busy_s / up_s) if up_s else 0.0,
        mean_batch=in_batches / max(num_batches, 1),
        requests=totals,
        queue_growth_per_s=0.0,
        method=_method(runs),
    )


def overloaded(growth_per_s: float, capacity_per_s: float, mean_batch: float) -> ServingReport:
    """The report of a queue that grows without bound: no run would say more."""
    nothing = {"arrived": 0, "finished": 0, "in_flight": 0, "rejected": 0, "timed_out": 0}
    return ServingReport(
        "complete", None, None, None, None, capacity_per_s, None, 1.0, mean_batch, nothing,
        growth_per_s, "load above capacity: not simulated",
    )  # fmt: skip


def _latency(run: Served) -> Array:
    latency_s: Array = (run.end_s - run.arrival_s)[run.state == FINISHED]
    return latency_s


def _counted(run: Served, until_s: Array) -> Array:
    """Seconds from arrival to a moment of the finished requests that came after the warm-up."""
    counted = (run.state == FINISHED) & (run.arrival_s >= WARM_UP * run.duration_s)
    seconds: Array = (until_s - run.arrival_s)[counted]
    return seconds


def estimate(
    samples: Sequence[Array], confidence: float = CONFIDENCE
) -> tuple[Quantiles | None, Intervals | None]:
    """Mean and quantiles over runs, with Student's interval of the mean of the runs' own.

    A single run is cut into 10 parts in order. (None, None) where there are no values.

    Args:
        samples: values of each run.
        confidence: of the intervals.
    """
    if len(samples) == 1:
        parts = [part for part in np.array_split(samples[0], NUM_BLOCKS) if len(part)]
    else:
        parts = [sample for sample in samples if len(sample)]
    if not parts:
        return None, None
    each = [quantiles(part) for part in parts]
    whole = quantiles(samples[0]) if len(samples) == 1 else _mean(each)
    interval: Intervals = {}
    for field in fields(Quantiles):
        values = [getattr(one, field.name) for one in each]
        interval[field.name] = _around(getattr(whole, field.name), values, confidence)
    return whole, interval


def _mean(each: Sequence[Quantiles]) -> Quantiles:
    columns = ([getattr(one, field.name) for one in each] for field in fields(Quantiles))
    return Quantiles(*(float(np.mean(values)) for values in columns))


def _around(center: float, values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Student's interval; unknown from a single value, hence as wide as times can be."""
    if len(values) < 2:
        return (0.0, math.inf)
    t = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1))
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return (max(0.0, center - half), center + half)


def _method(runs: Sequence[Served]) -> str:
    source = f"{len(runs)} independent runs" if len(runs) > 1 else f"{NUM_BLOCKS} parts of one run"
    return (
        f"{source} of {runs[0].duration_s:g} s; the first {WARM_UP:.0%} left out; "
        f"{CONFIDENCE:.0%} intervals (Student)"
    )


def growth_per_s(replicas: Sequence[Replica], serving: Serving, rate: float) -> float:
    """Requests per second by which a load exceeds the fleet's capacity; negative below it.

    Round robin sends every server the same, the slow ones too.
    """
    capacities = [r.times.capacity_per_s(r.max_batch(serving)) for r in replicas]
    if serving.routing == "round_robin":
        share = rate / len(replicas)
        return sum(max(0.0, share - c) for c in capacities) or rate - sum(capacities)
    return rate - sum(capacities)
