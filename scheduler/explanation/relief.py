"""What more of the hardware would give a plan: speed, bandwidth or memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from numpy import ones

from hardware.documents import STRICT
from hardware.errors import InfeasibleError
from scheduler.data_parallel.replicas import turns
from scheduler.evaluation.evaluate import finish_plan
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.problem import Placement, Problem

MORE = 1.1
"""Speed or bandwidth that a what-if has, times what it is."""
GIB = 2**30


@dataclass(frozen=True)
class PlanRelief:
    """A change of the hardware and the value that it would give; `how`: what was done again."""

    __pydantic_config__ = STRICT

    change: str
    value: float
    how: str


def changes_of(
    problem: Problem, plan: Plan, busy_s: dict[str, float]
) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """What makes the problem with more speed or bandwidth of one thing, the busiest first."""
    teams = {stage.device: tuple(turns(stage)) for stage in plan.stages}
    resources = [*teams, *(name for name in busy_s if name in problem.media)]
    if problem.costs.transfers:
        yield "all transfers 10 % faster", partial(_quicker_transfers, problem)
    for name in sorted(resources, key=lambda name: -busy_s.get(name, 0.0)):
        if name in teams:
            named = ", ".join(f"'{device}'" for device in teams[name])
            yield f"{named} 10 % faster", partial(_faster, problem, teams[name])
        elif problem.cluster.links:
            yield f"'{name}' 10 % more bandwidth", partial(_wider, problem, name)


def _faster(problem: Problem, devices: tuple[str, ...]) -> Problem:
    factor = ones(len(problem.costs.devices))
    factor[[problem.device_index[device] for device in devices]] /= MORE
    known = problem.costs
    seconds, low_s, high_s = (a * factor for a in (known.seconds, known.low_s, known.high_s))
    return replace(problem, costs=replace(known, seconds=seconds, low_s=low_s, high_s=high_s))


def _wider(problem: Problem, medium: str) -> Problem:
    links = tuple(
        replace(link, bytes_per_s=link.bytes_per_s * MORE) if link.shared_medium == medium else link
        for link in problem.cluster.links
    )
    return replace(problem, cluster=replace(problem.cluster, links=links))


def _quicker_transfers(problem: Problem) -> Problem:
    moved = {name: table / MORE for name, table in problem.costs.transfers.items()}
    ends = {name: column / MORE for name, column in problem.costs.ends.items()}
    return replace(problem, costs=replace(problem.costs, transfers=moved, ends=ends))


def again(change: str, problem: Problem, plan: Plan) -> Iterator[PlanRelief]:
    """The same placement, timed again; nothing where the problem forbids it."""
    try:
        value = valued_again(problem, plan, plan.placement)
    except InfeasibleError:
        return
    yield PlanRelief(change, value, "the same placement, timed again")


def roomier(problem: Problem, plan: Plan, device: str) -> PlanRelief:
    """One GiB more on a device, all planned again; the plan as it is where that is no better."""
    profile = problem.cluster.devices[device]
    roomier = replace(profile, memory_bytes=profile.memory_bytes + GIB)
    devices = {**problem.cluster.devices, device: roomier}
    changed = replace(problem, cluster=replace(problem.cluster, devices=devices))
    try:
        value = min(plan.value, solve(changed).best.value)
    except InfeasibleError:
        value = plan.value
    return PlanRelief(f"'{device}' 1 GiB more memory", value, "planned again by heuristics")


def valued_again(problem: Problem, plan: Plan, placement: Placement) -> float:
    """The value of a placement with the plan's replicas."""
    replicas = {stage.device: stage.replicas for stage in plan.stages if stage.replicas}
    return finish_plan(problem, plan.algorithm, placement, 0.0, 0.0, replicas).value
