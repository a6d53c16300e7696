"""What holds generations up, found by trying what would relieve it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hardware.units import format_seconds
from simulator.generation_fleet import GenerationFleet, ServerKind
from simulator.generation_report import GenerationRelief, GenerationServingReport
from simulator.relief import WORTHWHILE

Try = Callable[[GenerationFleet], GenerationServingReport]
MEANS = {
    "twice the compute": "compute",
    "twice the memory bandwidth": "memory bandwidth",
    "twice the KV cache": "KV capacity",
    "twice the sequences": "sequences",
}
"""What is scarce where a change of the hardware or of its limits helps most."""


def changes(fleet: GenerationFleet) -> Iterator[tuple[str, GenerationFleet]]:
    """The fleet with more of each resource, with one more server of each kind, with other rules.

    Of measured layers nobody knows what they would take on other hardware.
    """
    if not any(kind.layer_times for pool in fleet.pools for kind in pool):
        yield "twice the compute", _each(fleet, lambda kind: _faster(kind, 2.0, 1.0))
        yield "twice the memory bandwidth", _each(fleet, lambda kind: _faster(kind, 1.0, 2.0))
    yield "twice the KV cache", _each(fleet, lambda kind: replace(kind, room=2 * kind.room))
    rules, limits = fleet.serving, fleet.serving.continuous
    if 2 * limits.max_sequences <= limits.token_budget:
        more = replace(limits, max_sequences=2 * limits.max_sequences)
        yield "twice the sequences", replace(fleet, serving=replace(rules, continuous=more))
    for word, budget in (
        ("twice", 2 * limits.token_budget),
        ("half", limits.token_budget // 2),
    ):
        if budget >= limits.max_sequences:
            other = replace(rules, continuous=replace(limits, token_budget=budget))
            yield f"{word} the token budget", replace(fleet, serving=other)
    for change, kinds in _one_more(fleet.kinds):
        yield change, replace(fleet, kinds=kinds)
    for change, kinds in _one_more(fleet.prefill):
        yield f"{change} for prefill", replace(fleet, prefill=kinds)
    if sum(kind.replicas for kind in fleet.kinds) > 1:
        for routing in ("shortest_queue", "fastest"):
            if routing != rules.routing:
                yield f"routing {routing}", replace(fleet, serving=replace(rules, routing=routing))


def _one_more(kinds: tuple[ServerKind, ...]) -> Iterator[tuple[str, tuple[ServerKind, ...]]]:
    for k, kind in enumerate(kinds):
        more = replace(kind, replicas=kind.replicas + 1)
        yield f"one more {kind.name}", (*kinds[:k], more, *kinds[k + 1 :])


def _each(fleet: GenerationFleet, change: Callable[[ServerKind], ServerKind]) -> GenerationFleet:
    return replace(
        fleet, kinds=tuple(map(change, fleet.kinds)), prefill=tuple(map(change, fleet.prefill))
    )


def _faster(kind: ServerKind, compute: float, bandwidth: float) -> ServerKind:
    devices = {
        name: replace(
            profile,
            peak_flops_per_s={k: compute * v for k, v in profile.peak_flops_per_s.items()},
            memory_bytes_per_s=bandwidth * profile.memory_bytes_per_s,
        )
        for name, profile in kind.model.cluster.devices.items()
    }
    cluster = replace(kind.model.cluster, devices=devices)
    return replace(kind, model=replace(kind.model, cluster=cluster))


def relieve_generations(
    report: GenerationServingReport, fleet: GenerationFleet, attempt: Try
) -> GenerationServingReport:
    """Add to a report what each change would give, the best first, and what that shows.

    `attempt` simulates a fleet under the traffic, always with the same random numbers.
    """
    now = attempt(fleet)
    tried = [(change, attempt(changed)) for change, changed in changes(fleet)]
    reliefs = [
        GenerationRelief(
            change,
            r.latency_s.p95 if r.latency_s else None,
            r.ttft_s.p95 if r.ttft_s else None,
            r.tpot_s.p95 if r.tpot_s else None,
            r.queue_growth_per_s,
            r.usd_per_hour,
        )
        for change, r in tried
    ]
    reliefs.sort(key=_rank)
    return replace(report, bottleneck=_bottleneck(now, reliefs), relief=tuple(reliefs))


def _rank(relief: GenerationRelief) -> tuple[bool, float]:
    return relief.latency_p95_s is None, relief.latency_p95_s or relief.queue_growth_per_s


def _bottleneck(now: GenerationServingReport, reliefs: Sequence[GenerationRelief]) -> str:
    scarce = next(r for r in reliefs if r.change in MEANS)
    name = MEANS[scarce.change]
    if now.latency_s is None:
        growth = f"the queue grows by {now.queue_growth_per_s:.3g} requests/s"
        if scarce.latency_p95_s is not None:
            return f"{name}: {growth}; {scarce.change} carries the load"
        best = next((r.change for r in reliefs if r.latency_p95_s is not None), None)
        after = f"; {best} carries the load" if best else "; no single change here carries the load"
        return f"{name}: {growth}, with {scarce.change} by {scarce.queue_growth_per_s:.3g}{after}"
    before_s, after_s = now.latency_s.p95, scarce.latency_p95_s
    if after_s is None or after_s > before_s * (1 - WORTHWHILE):
        return f"none: no resource doubled lowers the p95 by {WORTHWHILE:.0%}"
    return (
        f"{name}: {scarce.change} changes the p95 of the whole answer from "
        f"{format_seconds(before_s)} to {format_seconds(after_s)}"
    )
