"""What holds requests up, found by trying what would relieve it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hardware.units import format_seconds
from simulator.overload import growth_per_s
from simulator.serving import Replica, Serving
from simulator.serving_report import ServingRelief, ServingReport

Try = Callable[[Sequence[Replica], Serving], ServingReport]

WORTHWHILE = 0.05
"""Share by which a change must lower the 95th percentile to count as relief."""

PEAK_EXCESS = 0.02
CHANCE = 3.0
"""A peak is above capacity by more than this share, and by more than so many standard deviations
of the number of requests that came then."""


def one_more(fleet: Sequence[Replica], serving: Serving) -> Iterator[tuple[str, list[Replica]]]:
    """A further server of each kind."""
    for kind in dict.fromkeys(fleet):
        yield f"one more {kind.name}", [*fleet, kind]


def rules(fleet: Sequence[Replica], serving: Serving) -> Iterator[tuple[str, Serving]]:
    """Other batches and routing; a batch must be of a size whose times are known."""
    batch = serving.batch
    largest = max(replica.max_batch(serving) for replica in fleet)
    for word, size in (("twice", 2 * largest), ("half", largest // 2)):
        if 1 <= size <= min(replica.times.sizes[-1] for replica in fleet):
            yield f"{word} the largest batch", replace(serving, batch=replace(batch, max=size))
    if batch.wait_s > 0 and largest > 1:
        yield "no wait for company", replace(serving, batch=replace(batch, wait_s=0.0))
    for routing in ("shortest_queue", "shared_queue", "fastest"):
        if len(fleet) > 1 and routing != serving.routing:
            yield f"routing {routing}", replace(serving, routing=routing)


def num_attempts(fleet: Sequence[Replica], serving: Serving) -> int:
    """How often `relieve` simulates."""
    return 1 + len([*one_more(fleet, serving), *rules(fleet, serving)])


def relieve(
    base: ServingReport, fleet: Sequence[Replica], serving: Serving, attempt: Try
) -> ServingReport:
    """Add to a report what each change would give, the best first, and what that shows.

    `attempt` simulates a fleet under the traffic, always with the same random numbers. A report
    whose attempts are interrupted is partial.
    """
    now = attempt(fleet, serving)
    tried = [(change, attempt(more, serving)) for change, more in one_more(fleet, serving)]
    tried += [(change, attempt(fleet, other)) for change, other in rules(fleet, serving)]
    if any(report.status == "partial" for _, report in [("", now), *tried]):
        return replace(base, status="partial")
    reliefs = [
        ServingRelief(
            change,
            report.latency_s.p95 if report.latency_s else None,
            report.throughput_per_s,
            report.queue_growth_per_s,
            report.usd_per_hour,
        )
        for change, report in tried
    ]
    reliefs.sort(key=lambda r: (r.p95_s is None, r.p95_s or r.queue_growth_per_s))
    bottleneck = _peak(base, fleet, serving) + _bottleneck(now, reliefs, serving.replications)
    return replace(base, bottleneck=bottleneck, relief=tuple(reliefs))


def _peak(base: ServingReport, fleet: Sequence[Replica], serving: Serving) -> str:
    """Say that the load exceeds the capacity of a fleet that stays, for a while."""
    if not base.requests["arrived"] or min(base.series["servers_up"]) < len(fleet):
        return ""
    peak = max(base.series["arrivals_per_s"])
    growth = growth_per_s(fleet, serving, peak)
    came = peak / sum(base.series["arrivals_per_s"]) * base.requests["arrived"]
    if growth < peak * max(PEAK_EXCESS, CHANCE / math.sqrt(came)):
        return ""
    fate = (
        f"by {growth:.3g} requests/s, which are turned away or given up"
        if serving.limits.shed_load
        else f"the queue then grows by {growth:.3g} requests/s"
    )
    return f"the peak of {peak:.4g} requests/s is above capacity, {fate}; "


def _bottleneck(now: ServingReport, reliefs: Sequence[ServingRelief], num_runs: int) -> str:
    best = reliefs[0]
    if now.latency_s is None or now.wait_s is None:
        if now.queue_growth_per_s > 0 or now.method.startswith("load"):
            found = f"capacity: at most {now.throughput_per_s:.4g} requests/s are answered"
        else:
            found = "not known: no request was answered after the warm-up"
        if best.p95_s is None:
            return f"{found}; no single change here carries the load"
        return f"{found}; {best.change} carries the load"
    p95_s = now.latency_s.p95
    if best.p95_s is not None and best.p95_s < p95_s * (1 - WORTHWHILE):
        return (
            f"{_place(now)}; {best.change} changes the p95 from {format_seconds(p95_s)} to "
            f"{format_seconds(best.p95_s)} (runs of the same requests: {num_runs})"
        )
    return f"{_place(now)}; no change here lowers the p95 by {WORTHWHILE:.0%}"


def _place(now: ServingReport) -> str:
    """Where the mean latency is spent."""
    assert now.latency_s is not None
    assert now.wait_s is not None
    share = now.wait_s.mean / now.latency_s.mean if now.latency_s.mean else 0.0
    if share > 0.5:
        return f"waiting: {share:.0%} of the mean latency, servers {now.utilization:.0%} busy"
    return f"computing: {1 - share:.0%} of the mean latency, servers {now.utilization:.0%} busy"
