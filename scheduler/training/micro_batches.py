"""Into how many micro-batches a training step is cut: each number is planned and timed.

Many micro-batches keep a pipeline full, (p - 1) / (m + p - 1) of an even one's time is idle, but
small ones use devices badly: launches, weights read and gradients added for few samples each.

Source: Huang et al., "GPipe", NeurIPS 2019, arXiv:1811.06965, section 2.3 (bubble).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hardware.documents import STRICT
from hardware.errors import InfeasibleError
from scheduler.arrays import kinds
from scheduler.baselines.single_device import single_device
from scheduler.bounds.lower_bound import lower_bound
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.timeline import last_end_s, run_stages
from scheduler.plan import Plan
from scheduler.problem import Placement, Problem
from scheduler.training.training_pipeline import training_pipeline


@dataclass(frozen=True)
class Tried:
    """What a number of micro-batches gives.

    Attributes:
        samples: of one micro-batch.
        value: of the best pipeline or single device, in the objective's unit; None where there is
            none, or none can be the best: `reason` says why.
        lower_bound: no plan with this number of micro-batches is below it; None where the batch
            cannot be cut so.
        bubble: share of the step in which a device of the plan is idle, on average over them.
        memory_bytes: peak by device of the plan.
    """

    __pydantic_config__ = STRICT

    num_micro_batches: int
    samples: int
    value: float | None = None
    lower_bound: float | None = None
    bubble: float | None = None
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def divisors(batch: int) -> list[int]:
    """The numbers of micro-batches of equal size that a batch can be cut into."""
    return [m for m in range(1, batch + 1) if batch % m == 0]


def try_micro_batches(
    batch: int, state: Callable[[int], Problem], numbers: Sequence[int]
) -> Iterator[Tried]:
    """Plan a step with each of some numbers of micro-batches.

    `state` states the problem with m micro-batches. A number whose bound is no better than the best
    value so far is not planned.
    """
    best = np.inf
    for m in numbers:
        tried = _try(m, batch // m, state, best)
        best = min(best, np.inf if tried.value is None else tried.value)
        yield tried


def _try(m: int, samples: int, state: Callable[[int], Problem], best: float) -> Tried:
    try:
        problem = state(m)
        bound = lower_bound(problem)
    except (ValueError, InfeasibleError) as refusal:
        return Tried(m, samples, reason=str(refusal))
    if bound >= best:
        return Tried(m, samples, lower_bound=bound, reason="its bound is above the best value")
    try:
        plan = _planned(problem, bound)
    except InfeasibleError as refusal:
        return Tried(m, samples, lower_bound=bound, reason=str(refusal))
    memory_bytes = {device: need.num_bytes for device, need in plan.memory.items()}
    return Tried(m, samples, plan.value, bound, bubble(problem, plan), memory_bytes)


def _planned(problem: Problem, bound: float) -> Plan:
    """The best of the pipeline and of one device of each kind."""
    names = problem.costs.devices
    alone = [names[group[0]] for group in kinds(problem.arrays)]
    makers: list[Callable[[Problem], Placement]] = [training_pipeline]
    makers += [partial(single_device, device=device) for device in alone]
    plans, refusals = list[Plan](), list[str]()
    for make in makers:
        try:
            plans.append(finish_plan(problem, "training_pipeline", make(problem), 0.0, bound))
        except InfeasibleError as refusal:
            refusals.append(str(refusal))
    if not plans:
        raise InfeasibleError(refusals[0])
    return min(plans, key=lambda plan: (plan.value, len(plan.devices)))


def best_of(tried: Sequence[Tried]) -> int:
    """The number of micro-batches with the best value; the fewest of equal ones.

    Raises:
        InfeasibleError: none of them gives a plan.
    """
    values = [one.value for one in tried if one.value is not None]
    if not values:
        raise InfeasibleError(
            "no number of micro-batches gives a plan: "
            + "; ".join(f"{one.num_micro_batches}: {one.reason}" for one in tried)
        )
    return next(one.num_micro_batches for one in tried if one.value == min(values))


def over_all(plan: Plan, tried: Sequence[Tried]) -> Plan:
    """The plan with a lower bound that holds for every number of micro-batches that was tried."""
    bounds = [one.lower_bound for one in tried if one.lower_bound is not None]
    bound = min([plan.lower_bound, *bounds])
    gap = (plan.value - bound) / plan.value if plan.value > 0 else 0.0
    return replace(plan, lower_bound=bound, gap=gap)


def bubble(problem: Problem, plan: Plan) -> float:
    """Share of a batch's time in which a device of the plan is idle, on average over them.

    (p - 1) / (m + p - 1) for p equal stages, m micro-batches and free transfers.
    """
    m = plan.num_micro_batches
    times = run_stages(problem, plan.stages, plan.in_flight, m).times
    whole_s = last_end_s(times) * len(plan.devices)
    return float(1 - np.nansum(times.end_s - times.start_s) / whole_s) if whole_s > 0 else 0.0
