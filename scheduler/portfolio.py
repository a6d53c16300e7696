"""The algorithms by name, and the best of their plans."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hardware.documents import nearest
from hardware.errors import InfeasibleError
from scheduler.bounds import lower_bound
from scheduler.contiguous import contiguous
from scheduler.evaluate import finish_plan
from scheduler.heft import heft
from scheduler.plan import Plan
from scheduler.problem import Placement, Problem
from scheduler.single_device import memory_fill, single_device

Algorithm = Callable[[Problem], Placement]

ALGORITHMS: dict[str, Algorithm] = {
    "memory_fill": memory_fill,
    "heft": heft,
    "contiguous": contiguous,
}
"""Algorithms that use all devices; `single_device:ID` is one more for every device."""


@dataclass(frozen=True)
class Solution:
    """The best plan, all plans from best to worst, and why the other algorithms gave none."""

    best: Plan
    plans: tuple[Plan, ...]
    refusals: dict[str, str]


def algorithms(problem: Problem) -> dict[str, Algorithm]:
    """Every algorithm for a problem, one `single_device:ID` for each device first."""
    single = {
        f"single_device:{device}": partial(single_device, device=device)
        for device in problem.cluster.devices
    }
    return {**single, **ALGORITHMS}


def solve(problem: Problem, algorithm: str = "auto") -> Solution:
    """Run one algorithm, or all of them (`auto`), and choose the best by the objective.

    On a tie the plan on fewer devices wins.

    Raises:
        ValueError: there is no such algorithm.
        InfeasibleError: no algorithm found a plan; the message holds every refusal.
    """
    known = algorithms(problem)
    if algorithm != "auto" and algorithm not in known:
        raise ValueError(f"unknown algorithm '{algorithm}'{nearest(algorithm, ['auto', *known])}")
    bound = lower_bound(problem)
    plans: list[Plan] = []
    refusals: dict[str, str] = {}
    for name, place in known.items() if algorithm == "auto" else [(algorithm, known[algorithm])]:
        started_s = time.perf_counter()
        try:
            plans.append(finish_plan(problem, name, place(problem), started_s, bound))
        except InfeasibleError as refusal:
            refusals[name] = str(refusal)
    if not plans:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise InfeasibleError(f"no plan for '{problem.graph.name}': {reasons}")
    plans.sort(key=lambda plan: (plan.value, len(plan.devices)))
    return Solution(plans[0], tuple(plans), refusals)
