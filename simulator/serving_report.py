"""What requests meet at a fleet: the summary of independent runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from hardware.documents import STRICT
from hardware.units import format_seconds
from scheduler.report import Quantiles
from simulator.arrivals import Slo
from simulator.billing import Bill, bill
from simulator.estimates import CONFIDENCE, NUM_BLOCKS, Intervals, around, average
from simulator.run_figures import WARM_UP, RunFigures, mean_series
from simulator.serving import Replica
from simulator.upkeep import Upkeep, mean_upkeep

KEPT_SHARE = 0.95
"""Of the requests that end, those that a promise of a 95th percentile covers."""


@dataclass(frozen=True)
class Promise:
    """A promise, and what became of it.

    Attributes:
        kept: at least 95 % of the requests that ended were answered within `p95_s`.
        share_within: of the requests that ended, rejected and timed out ones among them.
        reason: why nothing can keep it; empty where something might.
    """

    __pydantic_config__ = STRICT

    p95_s: float
    kept: bool
    share_within: float
    reason: str = ""


@dataclass(frozen=True)
class Kind:
    """Servers of one kind: how many are up on average, and what they do.

    Attributes:
        utilization: share of the time up that they compute.
        share: of all requests.
    """

    __pydantic_config__ = STRICT

    name: str
    servers: float
    utilization: float
    share: float
    mean_batch: float
    usd_per_hour: float | None


@dataclass(frozen=True)
class ServingRelief:
    """What one change of the fleet or its rules would give."""

    __pydantic_config__ = STRICT

    change: str
    p95_s: float | None
    throughput_per_s: float
    queue_growth_per_s: float
    usd_per_hour: float | None


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
        retries: requests that were sent again, over all runs.
        queue_growth_per_s: requests per second by which the load exceeds capacity; when positive
            the queue grows without bound and there are no quantiles.
        usd_per_hour: the bill by the hour; rent of the servers while they are up where they have no
            tariff; None where one has no price.
        usd_per_1k: of 1,000 finished requests.
        upkeep, bill: what became of the machines, and what they cost; None where not simulated.
        series: averages over equal parts of the duration, by name, `time_s` being their middles.
        bottleneck, relief: what holds requests up, and what changes would give.
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
    promise: Promise | None
    utilization: float
    mean_batch: float
    requests: dict[str, int]
    retries: int
    queue_growth_per_s: float
    usd_per_hour: float | None
    usd_per_1k: float | None
    kinds: tuple[Kind, ...]
    method: str
    series: dict[str, list[float]] = field(default_factory=dict, repr=False)
    bottleneck: str = ""
    relief: tuple[ServingRelief, ...] = ()
    upkeep: Upkeep | None = None
    bill: Bill | None = None


def summarize(
    runs: Sequence[RunFigures], replicas: Sequence[Replica], slo: Slo | None
) -> ServingReport:
    """Summarize independent runs of one fleet under one traffic."""
    latency_s, latency_interval_s = _estimate(runs, "latency")
    wait_s, wait_interval_s = _estimate(runs, "wait")
    totals = {key: sum(run.requests[key] for run in runs) for key in runs[0].requests}
    seconds = sum(run.duration_s for run in runs)
    kinds = _kinds(runs)
    prices = [kind.usd_per_hour for kind in kinds]
    usd_per_hour = None if None in prices else math.fsum(p for p in prices if p is not None)
    paid = _bill(runs, replicas)
    if paid is not None and usd_per_hour is not None:
        usd_per_hour, kinds = paid.cost.usd_per_hour, _as_billed(kinds, paid)
    per_s = totals["finished"] / seconds if seconds else 0.0
    priced = usd_per_hour is not None and per_s > 0
    within = sum(run.within for run in runs)
    return ServingReport(
        status="partial" if any(run.interrupted for run in runs) else "complete",
        latency_s=latency_s,
        latency_interval_s=latency_interval_s,
        wait_s=wait_s,
        wait_interval_s=wait_interval_s,
        throughput_per_s=per_s,
        goodput_per_s=sum(run.good for run in runs) / seconds if slo and seconds else None,
        promise=promise(slo, replicas, within, sum(run.ended for run in runs)),
        utilization=_share((k.utilization * k.servers for k in kinds), (k.servers for k in kinds)),
        mean_batch=_share((k.share for k in kinds), (k.share / (k.mean_batch or 1) for k in kinds)),
        requests=totals,
        retries=sum(run.retries for run in runs),
        queue_growth_per_s=0.0,
        usd_per_hour=usd_per_hour,
        usd_per_1k=usd_per_hour / 3.6 / per_s if priced and usd_per_hour is not None else None,
        kinds=kinds,
        method=_method(runs),
        series=mean_series(runs),
        upkeep=mean_upkeep([run.upkeep for run in runs], seconds),
        bill=paid,
    )


def _as_billed(kinds: Sequence[Kind], paid: Bill) -> tuple[Kind, ...]:
    """The kinds at what they are charged for, bytes left out."""
    return tuple(replace(kind, usd_per_hour=paid.usd_per_hour_of(kind.name)) for kind in kinds)


def _bill(runs: Sequence[RunFigures], replicas: Sequence[Replica]) -> Bill | None:
    """The mean bill; None where no replica has a tariff."""
    tariffs = list(dict.fromkeys(r.tariff for r in replicas if r.tariff is not None))
    if not tariffs:
        return None
    num = len(runs)
    paid = bill(
        [run.upkeep.items for run in runs],
        math.fsum(run.duration_s for run in runs) / num,
        sum(run.requests["finished"] for run in runs) / num,
    )
    notes = dict.fromkeys(note for tariff in tariffs for note in tariff.notes())
    return replace(paid, notes=tuple(notes))


def promise(
    slo: Slo | None, replicas: Sequence[Replica], within: int, ended: int
) -> Promise | None:
    """What became of a promise, if there was one."""
    if slo is None:
        return None
    share = within / ended if ended else 0.0
    alone_s = min(replica.times.latency(1) for replica in replicas)
    reason = ""
    if alone_s > slo.answer_s:
        reason = (
            f"one request alone takes {format_seconds(alone_s)}, "
            f"above the promise of {format_seconds(slo.answer_s)}"
        )
    return Promise(slo.answer_s, share >= KEPT_SHARE, share, reason)


def _estimate(runs: Sequence[RunFigures], name: str) -> tuple[Quantiles | None, Intervals | None]:
    """Means over runs with their intervals; a single run's from its parts."""
    each = [q for run in runs if (q := getattr(run, f"{name}_s")) is not None]
    if not each:
        return None, None
    center = average(each)
    if len(each) == 1:
        (run,) = (run for run in runs if getattr(run, f"{name}_s") is not None)
        each = getattr(run, f"{name}_blocks_s")
    return center, around(center, each)


def _kinds(runs: Sequence[RunFigures]) -> tuple[Kind, ...]:
    seconds = sum(run.duration_s for run in runs) or 1.0
    all_requests = sum(kind.requests for run in runs for kind in run.kinds.values())
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.kinds):
        own = [run.kinds[name] for run in runs if name in run.kinds]
        up_s, requests = sum(k.up_s for k in own), sum(k.requests for k in own)
        price = own[0].usd_per_hour
        rows.append(
            Kind(
                name,
                up_s / seconds,
                min(1.0, sum(k.busy_s for k in own) / up_s) if up_s else 0.0,
                requests / max(all_requests, 1),
                requests / max(sum(k.batches for k in own), 1),
                None if price is None else price * (up_s / seconds),
            )
        )
    return tuple(rows)


def _share(parts: Iterable[float], wholes: Iterable[float]) -> float:
    total = math.fsum(wholes)
    return math.fsum(parts) / total if total else 0.0


def _method(runs: Sequence[RunFigures]) -> str:
    source = f"{len(runs)} independent runs" if len(runs) > 1 else f"{NUM_BLOCKS} parts of one run"
    return (
        f"{source} of {runs[0].duration_s:g} s; the first {WARM_UP:.0%} of each left out; "
        f"{CONFIDENCE:.0%} intervals (Student)"
    )
