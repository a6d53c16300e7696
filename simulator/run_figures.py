"""Figures of one run: all that its summary needs, so that the run itself need not be kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.report import Quantiles, quantiles
from simulator.arrivals import Slo
from simulator.billing import rentals_of
from simulator.estimates import blocks
from simulator.served import FINISHED, IN_FLIGHT, Served
from simulator.trace import Array
from simulator.upkeep import RunUpkeep, run_upkeep

WARM_UP = 0.1
"""Share of the duration, from its start, whose requests the statistics leave out."""

NUM_POINTS = 60
"""Intervals of the duration over which the series are averaged."""


@dataclass(frozen=True)
class KindFigures:
    """What the servers of one kind did: seconds up and busy, batches, requests in them, price."""

    up_s: float
    busy_s: float
    batches: int
    requests: int
    usd_per_hour: float | None


@dataclass(frozen=True)
class RunFigures:
    """One run.

    Attributes:
        latency_s, wait_s: of the finished requests that came after the warm-up; None without any.
        latency_blocks_s, wait_blocks_s: the same of 10 parts in order.
        good: requests that were answered within the promise, those of the warm-up among them.
        within: requests after the warm-up that were answered within the promise.
        ended: requests after the warm-up that were answered, rejected or given up.
        capacity_per_s: requests per second that the servers could answer while they were up.
        series: (NUM_POINTS,) each: requests per second that arrive, that wait, machines rented,
            servers up, and servers that compute.
        upkeep: of the machines.
    """

    latency_s: Quantiles | None
    wait_s: Quantiles | None
    latency_blocks_s: tuple[Quantiles, ...]
    wait_blocks_s: tuple[Quantiles, ...]
    good: int
    within: int
    ended: int
    requests: dict[str, int]
    retries: int
    duration_s: float
    interrupted: bool
    kinds: dict[str, KindFigures]
    series: dict[str, Array]
    upkeep: RunUpkeep


def measure(run: Served, slo: Slo | None) -> RunFigures:
    """The figures of a run."""
    after = run.arrival_s >= WARM_UP * run.duration_s
    finished = run.state == FINISHED
    done = after & finished
    all_s = run.end_s - run.arrival_s
    latency_s, wait_s = all_s[done], (run.start_s - run.arrival_s)[done]
    return RunFigures(
        quantiles(latency_s) if len(latency_s) else None,
        quantiles(wait_s) if len(wait_s) else None,
        blocks(latency_s),
        blocks(wait_s),
        int((all_s[finished] <= slo.answer_s).sum()) if slo else 0,
        int((latency_s <= slo.answer_s).sum()) if slo else 0,
        int((after & (run.state != IN_FLIGHT)).sum()),
        run.requests,
        run.retries,
        run.duration_s,
        run.interrupted,
        _kinds(run),
        _series(run),
        run_upkeep(run),
    )


def _kinds(run: Served) -> dict[str, KindFigures]:
    servers = np.array([s.replica.name for s in run.servers])
    busy_s = np.bincount(run.batches.server, run.busy_within(), len(servers))
    batches = np.bincount(run.batches.server, minlength=len(servers))
    requests = np.bincount(run.batches.server, run.batches.size, len(servers))
    figures = {}
    for name in dict.fromkeys(servers.tolist()):
        own = servers == name
        mine = [s for s, is_own in zip(run.servers, own, strict=True) if is_own]
        up_s = sum(s.end_s - s.start_s for s in mine)
        figures[name] = KindFigures(
            up_s,
            float(busy_s[own].sum()),
            int(batches[own].sum()),
            int(requests[own].sum()),
            mine[0].replica.usd_per_hour,
        )
    return figures


def _series(run: Served) -> dict[str, Array]:
    """Averages over equal parts of the run."""
    edges = np.linspace(0.0, run.duration_s, NUM_POINTS + 1)
    left_s = np.where(np.isfinite(run.start_s), run.start_s, run.end_s)
    left_s = np.where(np.isfinite(left_s), left_s, run.duration_s)
    start_s = run.batches.start_s
    rented = np.array([(r.booked_s, r.end_s) for r in rentals_of(run)]).reshape(-1, 2)
    up = np.array([(server.start_s, server.end_s) for server in run.servers]).reshape(-1, 2)
    arrived = np.histogram(run.arrival_s, edges)[0]
    return {
        "arrivals_per_s": arrived / np.diff(edges),
        "waiting": present(edges, run.arrival_s, left_s),
        "machines_rented": present(edges, rented[:, 0], rented[:, 1]),
        "servers_up": present(edges, up[:, 0], up[:, 1]),
        "servers_busy": present(edges, start_s, start_s + run.busy_within()),
    }


def present(edges: Array, from_s: Array, to_s: Array) -> Array:
    """How many are present on average between one edge and the next: (num_edges - 1,).

    The seconds of presence until t are sum_i min(t, to_i) - min(t, from_i). O(n log n).
    """
    seconds = _sum_of_minima(edges, to_s) - _sum_of_minima(edges, from_s)
    return np.diff(seconds) / np.diff(edges)


def _sum_of_minima(edges: Array, values: Array) -> Array:
    ordered = np.sort(values)
    below = np.searchsorted(ordered, edges)
    sums = np.concatenate([np.zeros(1), np.cumsum(ordered)])
    return sums[below] + edges * (len(ordered) - below)


def mean_series(runs: Sequence[RunFigures]) -> dict[str, list[float]]:
    """The series averaged over the runs that were not interrupted, with the middle of each part."""
    whole = [run for run in runs if not run.interrupted] or list(runs)
    edges = np.linspace(0.0, whole[0].duration_s, NUM_POINTS + 1)
    mean = {
        name: np.mean([run.series[name] for run in whole], axis=0).tolist()
        for name in whole[0].series
    }
    return {"time_s": ((edges[1:] + edges[:-1]) / 2).tolist(), **mean}
