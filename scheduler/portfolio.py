"""The algorithms by name, and the best of their plans."""

import difflib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hardware.errors import InfeasibleError
from scheduler import latency, throughput
from scheduler.bounds import lower_bound, usd_per_1k
from scheduler.contiguous import contiguous
from scheduler.cpop import cpop
from scheduler.evaluate import finish_plan, with_bound
from scheduler.heft import heft
from scheduler.ideals import ideals, ideals_beam
from scheduler.large import is_large, large_algorithms
from scheduler.m_etf import m_etf
from scheduler.m_sct import m_sct
from scheduler.multilevel import multilevel
from scheduler.peft import peft
from scheduler.plan import Plan
from scheduler.problem import Placement, Problem
from scheduler.replicated import replicated
from scheduler.round_robin import round_robin
from scheduler.shortage import shortage
from scheduler.single_device import memory_fill, single_device

Algorithm = Callable[[Problem], Placement]
Tell = Callable[[float, float], None]


def _silent(value: float, bound: float) -> None:
    pass


ALGORITHMS: dict[str, Algorithm] = {
    "round_robin": round_robin,
    "memory_fill": memory_fill,
    "heft": heft,
    "cpop": cpop,
    "peft": peft,
    "m_etf": m_etf,
    "m_sct": m_sct,
    "contiguous": contiguous,
    "multilevel": multilevel,
    "ideals": ideals,
    "ideals_beam": ideals_beam,
}
"""Algorithms that use all devices; `single_device:ID` is one more for every device."""


REPLICATED = "replicated"
"""The algorithm that puts stages on several devices; throughput and cost only."""


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


def _check_name(algorithm: str, known: Iterable[str]) -> None:
    accepted = list(known)
    if algorithm not in accepted:
        close = difflib.get_close_matches(algorithm, accepted, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown algorithm '{algorithm}'; {hint}accepted: {', '.join(accepted)}")


def search(
    problem: Problem, deadline_s: float, bound: float, tell: Tell, name: str = "auto"
) -> tuple[Placement, str, float]:
    """The best split that a search for throughput finds; returns also its name and the bound.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    arrays = problem.arrays

    def in_unit(load_s: float) -> float:
        period_s = load_s * problem.num_micro_batches
        return usd_per_1k(problem, period_s) if problem.objective == "cost" else period_s

    known = bound / in_unit(1.0) if problem.objective != "latency" else 0.0
    best = throughput.start(arrays, known)
    if best.load < np.inf:
        throughput.improve(
            arrays, best, deadline_s, lambda load, low: tell(in_unit(load), in_unit(low)), name
        )
    names = problem.costs.devices
    placed = {op.name: names[d] for op, d in zip(problem.graph.ops, best.device, strict=True)}
    return placed, best.algorithm or "single_device", max(bound, in_unit(best.bound))


def _fastest(problem: Problem, time_limit_s: float) -> Plan:
    """The plan of least latency.

    Raises:
        InfeasibleError: there is none, whatever its latency.
    """
    alone = replace(problem, objective="latency", latency_bound_s=None)
    return solve(alone, time_limit_s=time_limit_s).best


def solve(
    problem: Problem, algorithm: str = "auto", time_limit_s: float = 0.0, tell: Tell = _silent
) -> Solution:
    """Run one algorithm, or all of them (`auto`), and choose the best by the objective.

    On a tie the plan on fewer devices wins. `auto` spends what is left of `time_limit_s` on
    search and bounds, and stops when the plan is proven optimal; 0 leaves heuristics alone. So do
    the searches of `throughput.SEARCHES`, which start from the best split of an order.
    Too large a graph (`large.is_large`) gets no search, but what is near linear in it.
    `tell` is called with the best value and bound of the search, in the objective's unit.

    Raises:
        ValueError: there is no such algorithm.
        InfeasibleError: no algorithm found a plan; the message holds every refusal.
    """
    many = algorithm == "auto" and is_large(problem)
    known = large_algorithms(problem) if many else algorithms(problem)
    _check_name(algorithm, [*throughput.SEARCHES, *latency.SEARCHES, REPLICATED, *known])
    searches = algorithm in throughput.SEARCHES and not many
    anneals = problem.objective == "latency" and time_limit_s > 0 and not many
    proves = algorithm in latency.SEARCHES or (algorithm == "auto" and anneals)
    if proves:
        latency.compile_loops(problem)
    if searches and time_limit_s > 0:
        throughput.compile_loops(problem.arrays, algorithm)
    began_s = time.perf_counter()
    bound = lower_bound(problem)
    plans: list[Plan] = []
    refusals: dict[str, str] = {}
    for name, place in known.items():
        if algorithm not in ("auto", name):
            continue
        started_s = time.perf_counter()
        try:
            plans.append(finish_plan(problem, name, place(problem), started_s, bound))
        except InfeasibleError as refusal:
            refusals[name] = str(refusal)
    if proves:
        try:
            alone = problem.objective == "latency"
            placed, name, proven = latency.latency(
                problem, began_s + time_limit_s, bound if alone else 0.0, algorithm
            )
            bound = max(bound, proven) if alone else bound
            plans.append(finish_plan(problem, name, placed, began_s, bound))
        except InfeasibleError as refusal:
            refusals["latency"] = str(refusal)
        plans = [with_bound(plan, bound) for plan in plans]
    if problem.latency_bound_s is not None and algorithm == "auto":
        # What is fast enough may be what only a search for latency finds.
        fastest = _fastest(problem, time_limit_s / 2)
        try:
            plans.append(finish_plan(problem, fastest.algorithm, fastest.placement, began_s, bound))
        except InfeasibleError as refusal:
            refusals["latency"] = (
                f"{refusal}; the least found is {fastest.value:.6g} s, and none is below "
                f"{fastest.lower_bound:.6g} s: set latency_bound_s to {fastest.value:.6g} at least"
            )
    if searches and (algorithm, problem.objective) != ("auto", "latency"):
        try:
            placed, how, bound = search(problem, began_s + time_limit_s, bound, tell, algorithm)
            name = how if algorithm == "auto" else algorithm
            plans.append(finish_plan(problem, name, placed, began_s, bound))
        except InfeasibleError as refusal:
            refusals["search"] = str(refusal)
        plans = [with_bound(plan, bound) for plan in plans]
    may_replicate = problem.replicate and not many and algorithm == "auto"
    asked = may_replicate or algorithm == REPLICATED
    if asked and problem.objective != "latency" and problem.latency_bound_s is None:
        started_s = time.perf_counter()
        try:
            placed, replicas = replicated(problem)
            bound = lower_bound(problem, replicas=True)
            plans.append(finish_plan(problem, REPLICATED, placed, started_s, bound, replicas))
        except InfeasibleError as refusal:
            refusals[REPLICATED] = str(refusal)
    if not plans:
        if problem.latency_bound_s is not None and "latency" in refusals:
            raise InfeasibleError(f"no plan for '{problem.graph.name}': {refusals['latency']}")
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        binding = shortage(problem)
        reasons = f"{binding}; {reasons}" if binding else reasons
        raise InfeasibleError(f"no plan for '{problem.graph.name}': {reasons}")
    plans.sort(key=lambda plan: (plan.value, len(plan.devices)))
    best: dict[str, Plan] = {}
    for plan in plans:
        best.setdefault(plan.algorithm, plan)
    return Solution(plans[0], tuple(best.values()), refusals)
