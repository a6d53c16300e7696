"""Why a plan is as it is: where operators could go, what binds, and what more of it would give.

Each alternative is valued as a plan of its own, with its memory. On large graphs fewer are.
"""

from dataclasses import dataclass

import numpy as np

from hardware.documents import STRICT
from hardware.errors import InfeasibleError
from scheduler.arrays import Ints
from scheduler.explanation.binding import busy
from scheduler.explanation.relief import PlanRelief, again, changes_of, roomier, valued_again
from scheduler.large.portfolio import is_large
from scheduler.plan import Plan
from scheduler.problem import Problem

FULL = 0.95
"""Share of its memory limit from which a device counts as full."""
MOST_SEATS = 12
MOST_TRIED = 40
"""Operators that are tried on a device that the plan leaves out, spread over the graph."""
MOST_VALUED = 100_000
"""Operators, and for latency stages, in all plans that are valued: about 3 s."""
STAGE = 4
"""Operators that a stage costs to value, where the objective is latency."""
FEWEST = 2
"""Alternatives of each sort that are valued even so."""
MOST_REPLANNED = 4
"""Full devices for which all is planned again."""


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
class Explanation:
    """Why a plan is as it is.

    Attributes:
        value: of the plan on this problem, valued as its alternatives are.
        binds: the device or medium that limits the value: the largest load, or for latency the
            one most of the critical path runs on.
        busy_s: seconds of every device and medium used: per micro-batch, or on the critical path.
        full: devices whose memory is nearly used up, with the share used.
        seats: the operators that take longest.
        reliefs: sorted, the most helpful first.
        left_out: devices that the plan does not use, with the best value found that uses them.
        valued: alternatives that were valued, of the `possible` ones.
    """

    __pydantic_config__ = STRICT

    value: float
    binds: str
    busy_s: dict[str, float]
    full: dict[str, float]
    seats: tuple[Seat, ...]
    reliefs: tuple[PlanRelief, ...]
    left_out: tuple[Elsewhere, ...]
    valued: int
    possible: int


def explain(problem: Problem, plan: Plan) -> Explanation:
    """Try the plan's alternatives one at a time. O(operators) for each.

    `problem` is the one that the plan answers: with its operators split where the plan has
    `splits` (`scheduler.tensor_parallel.split_search.with_splits`).

    Raises:
        ValueError: the plan places other operators than the problem has.
    """
    if set(plan.placement) != set(problem.op_index):
        raise ValueError(
            f"plan of '{plan.model}': it places other operators than the graph "
            f"'{problem.graph.name}' has; split the graph as the plan does, or plan again"
        )
    busy_s = busy(problem, plan)
    size = len(problem.graph.ops)
    if problem.objective == "latency":
        size += STAGE * len(plan.stages)
    most = max(FEWEST, MOST_VALUED // (3 * max(size, 1)))
    full = {
        device: need.num_bytes / need.limit_bytes
        for device, need in plan.memory.items()
        if need.num_bytes >= FULL * need.limit_bytes
    }
    changes = list(changes_of(problem, plan, busy_s))
    replanned = [] if is_large(problem) else list(full)[:MOST_REPLANNED]
    reliefs = [relief for name, what in changes[:most] for relief in again(name, what(), plan)]
    reliefs += [roomier(problem, plan, device) for device in replanned]
    heaviest, others = _units(problem, plan)
    seats = _seats(problem, plan, heaviest, most)
    unused = [d for d in problem.costs.devices if d not in plan.devices]
    each = (heaviest + others)[: max(1, most // max(len(unused), 1))]
    left_out = tuple(_best_use(problem, plan, each, d) for d in unused[:most] if each)
    num_moves = len(heaviest) * (len(_homes(problem, plan)) - 1)
    valued = min(len(changes), most) + len(replanned)
    valued += sum(len(seat.alternatives) for seat in seats) + len(left_out) * len(each)
    return Explanation(
        _value(problem, plan),
        max(busy_s, key=lambda name: busy_s[name], default=""),
        busy_s,
        full,
        seats,
        tuple(sorted(reliefs, key=lambda relief: relief.value)),
        left_out,
        valued,
        len(changes) + len(full) + num_moves + len(unused) * len(heaviest + others),
    )


def _value(problem: Problem, plan: Plan) -> float:
    """What the plan is worth on this problem, which may not be the one that it was made for."""
    try:
        return valued_again(problem, plan, plan.placement)
    except InfeasibleError:
        return plan.value


def _units(problem: Problem, plan: Plan) -> tuple[list[int], list[int]]:
    """Colocation classes: those that take longest, and others spread over the graph."""
    row = np.arange(len(problem.graph.ops))
    unit_s = np.bincount(problem.arrays.unit, problem.seconds[row, _device(problem, plan)])
    heaviest = np.argsort(-unit_s, kind="stable")[:MOST_SEATS]
    spread = np.linspace(0, len(unit_s) - 1, MOST_TRIED if len(unit_s) else 0).astype(int)
    return heaviest.tolist(), np.setdiff1d(spread, heaviest).tolist()


def _device(problem: Problem, plan: Plan) -> Ints:
    placed = (problem.device_index[plan.placement[op.name]] for op in problem.graph.ops)
    return np.fromiter(placed, dtype=np.int64)


def _homes(problem: Problem, plan: Plan) -> list[str]:
    """Devices that an operator may be placed on: replicas follow the first of their team."""
    replicas = {device for stage in plan.stages for device in stage.replicas}
    return [device for device in problem.costs.devices if device not in replicas]


def _seats(problem: Problem, plan: Plan, heaviest: list[int], most: int) -> tuple[Seat, ...]:
    """Where the heaviest sit, with `most` alternatives in all."""
    unit, device = problem.arrays.unit, _device(problem, plan)
    homes = _homes(problem, plan)
    seats = []
    for u in heaviest[: max(1, most // max(len(homes) - 1, 1))]:
        rows = np.flatnonzero(unit == u)
        here = problem.costs.devices[device[rows[0]]]
        others = [home for home in homes if home != here][:most]
        seconds = float(problem.seconds[rows, device[rows]].sum())
        tried = tuple(move(problem, plan, u, d) for d in others)
        seats.append(Seat(problem.graph.ops[rows[0]].name, len(rows) - 1, here, seconds, tried))
    return tuple(seats)


def move(problem: Problem, plan: Plan, unit: int, device: str) -> Elsewhere:
    """The value with one colocation class on another device and all else as it is."""
    rows = np.flatnonzero(problem.arrays.unit == unit)
    moved = {problem.graph.ops[i].name: device for i in rows.tolist()}
    try:
        return Elsewhere(device, valued_again(problem, plan, {**plan.placement, **moved}))
    except InfeasibleError as refusal:
        return Elsewhere(device, None, str(refusal))


def _best_use(problem: Problem, plan: Plan, units: list[int], device: str) -> Elsewhere:
    tried = [move(problem, plan, u, device) for u in units]
    possible = [found for found in tried if found.value is not None]
    return min(possible, key=lambda found: found.value or 0.0, default=tried[0])
