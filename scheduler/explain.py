"""Why a plan is as it is: where operators could go, what binds, and what more of it would give."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hardware.documents import STRICT
from hardware.errors import InfeasibleError
from scheduler.evaluate import finish_plan
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.timeline import loads, stage_timeline

MORE = 1.1
"""Speed or bandwidth that a what-if has, times what it is."""
GIB = 2**30
FULL = 0.95
"""Share of its memory limit from which a device counts as full."""
MOST_SEATS = 12
MOST_TRIED = 40
"""Operators that are tried on a device that the plan leaves out, spread over the graph."""


@dataclass(frozen=True)
class Elsewhere:
    """The plan's value with one operator (and those colocated) on another device.

    Attributes:
        value: None where that is no plan; `reason` says why.
    """

    __pydantic_config__ = STRICT

    device: str
    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Seat:
    """Where an operator sits and what every alternative would make of the plan's value."""

    __pydantic_config__ = STRICT

    op: str
    num_colocated: int
    device: str
    seconds: float
    alternatives: tuple[Elsewhere, ...]


@dataclass(frozen=True)
class Relief:
    """A change of the hardware and the value that it would give; `how`: what was done again."""

    __pydantic_config__ = STRICT

    change: str
    value: float
    how: str


@dataclass(frozen=True)
class Explanation:
    """Why a plan is as it is.

    Attributes:
        binds: the device or medium that limits the value: the largest load, or for latency the
            one most of the critical path runs on.
        busy_s: seconds of every device and medium used: per micro-batch, or on the critical path.
        full: devices whose memory is nearly used up, with the share used.
        seats: the operators that take longest.
        reliefs: sorted, the most helpful first.
        left_out: devices that the plan does not use, with the best value found that uses them.
    """

    __pydantic_config__ = STRICT

    value: float
    binds: str
    busy_s: dict[str, float]
    full: dict[str, float]
    seats: tuple[Seat, ...]
    reliefs: tuple[Relief, ...]
    left_out: tuple[Elsewhere, ...]


def explain(problem: Problem, plan: Plan) -> Explanation:
    """Try the plan's alternatives one at a time. O(operators) for each."""
    busy_s = _busy(problem, plan)
    full = {
        device: need.num_bytes / need.limit_bytes
        for device, need in plan.memory.items()
        if need.num_bytes >= FULL * need.limit_bytes
    }
    unit = problem.arrays.unit
    names = problem.costs.devices
    device = np.array([problem.device_index[plan.placement[o.name]] for o in problem.graph.ops])
    unit_s = np.bincount(unit, problem.seconds[np.arange(len(device)), device])
    heaviest = np.argsort(-unit_s, kind="stable")[:MOST_SEATS].tolist()
    first = np.unique(unit, return_index=True)[1]
    seats = tuple(
        Seat(
            problem.graph.ops[first[u]].name,
            int((unit == u).sum()) - 1,
            names[device[first[u]]],
            float(unit_s[u]),
            tuple(move(problem, plan, u, d) for d in names if d != names[device[first[u]]]),
        )
        for u in heaviest
    )
    unused = [d for d in names if d not in plan.devices]
    spread = np.unique(np.linspace(0, len(unit_s) - 1, MOST_TRIED).astype(int)).tolist()
    left_out = tuple(_best_use(problem, plan, sorted({*heaviest, *spread}), d) for d in unused)
    reliefs = sorted(_reliefs(problem, plan, busy_s, full), key=lambda relief: relief.value)
    binds = max(busy_s, key=lambda name: busy_s[name])
    return Explanation(plan.value, binds, busy_s, full, seats, tuple(reliefs), left_out)


def move(problem: Problem, plan: Plan, unit: int, device: str) -> Elsewhere:
    """The value with one colocation class on another device and all else as it is."""
    rows = np.flatnonzero(problem.arrays.unit == unit)
    moved = {problem.graph.ops[i].name: device for i in rows.tolist()}
    try:
        changed = finish_plan(problem, "moved", {**plan.placement, **moved}, 0.0, 0.0)
    except InfeasibleError as refusal:
        return Elsewhere(device, None, str(refusal))
    return Elsewhere(device, changed.value)


def _best_use(problem: Problem, plan: Plan, units: list[int], device: str) -> Elsewhere:
    tried = [move(problem, plan, u, device) for u in units]
    possible = [found for found in tried if found.value is not None]
    return min(possible, key=lambda found: found.value or 0.0, default=tried[0])


def _busy(problem: Problem, plan: Plan) -> dict[str, float]:
    """Seconds of work by device and medium; for latency those on the critical path only."""
    if problem.objective != "latency":
        return loads(problem, plan.stages)
    spans = stage_timeline(problem, plan.stages, plan.in_flight, plan.num_micro_batches)
    busy_s: dict[str, float] = {}
    at = max(spans, key=lambda span: span.end_s)
    by_end = sorted(spans, key=lambda span: span.end_s)
    while True:
        name = at.resource if at.kind == "stage" else problem.medium(*at.resource.split("->"))
        busy_s[name] = busy_s.get(name, 0.0) + at.duration_s
        before = [s for s in by_end if abs(s.end_s - at.start_s) <= 1e-9 * at.end_s and s is not at]
        before = [s for s in before if s.start_s < at.start_s]
        if not before or at.start_s <= 0:
            return busy_s
        at = next((s for s in before if s.resource == at.resource), before[-1])


def _reliefs(
    problem: Problem, plan: Plan, busy_s: dict[str, float], full: dict[str, float]
) -> Iterator[Relief]:
    same = "the same placement, timed again"
    for device in plan.devices:
        factor = np.ones(len(problem.costs.devices))
        factor[problem.device_index[device]] /= MORE
        costs = problem.costs
        costs = replace(
            costs,
            seconds=costs.seconds * factor,
            low_s=costs.low_s * factor,
            high_s=costs.high_s * factor,
        )
        changed = replace(problem, costs=costs)
        yield Relief(f"'{device}' 10 % faster", _again(changed, plan), same)
    if problem.costs.transfers:
        moved = {name: table / MORE for name, table in problem.costs.transfers.items()}
        ends = {name: column / MORE for name, column in problem.costs.ends.items()}
        changed = replace(problem, costs=replace(problem.costs, transfers=moved, ends=ends))
        yield Relief("all transfers 10 % faster", _again(changed, plan), same)
    for medium in [name for name in busy_s if name in problem.media and problem.cluster.links]:
        links = tuple(
            replace(link, bytes_per_s=link.bytes_per_s * MORE)
            if link.shared_medium == medium
            else link
            for link in problem.cluster.links
        )
        changed = replace(problem, cluster=replace(problem.cluster, links=links))
        yield Relief(f"'{medium}' 10 % more bandwidth", _again(changed, plan), same)
    for device in full:
        profile = problem.cluster.devices[device]
        roomier = replace(profile, memory_bytes=profile.memory_bytes + GIB)
        devices = {**problem.cluster.devices, device: roomier}
        changed = replace(problem, cluster=replace(problem.cluster, devices=devices))
        value = min(plan.value, solve(changed).best.value)
        yield Relief(f"'{device}' 1 GiB more memory", value, "planned again by heuristics")


def _again(problem: Problem, plan: Plan) -> float:
    return finish_plan(problem, plan.algorithm, plan.placement, 0.0, 0.0).value
