"""The algorithms by name, and the best of their plans."""

import difflib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
from scheduler.smallest import smallest
from scheduler.training_pipeline import training_pipeline

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


SLOW = ("ideals",)
"""Algorithms that `auto` runs only where it has time: seconds on a thousand operators."""
SLOWER = ("ideals_beam",)
"""And those that it leaves to its search: a minute on a thousand operators."""

REPLICATED = "replicated"
"""The algorithm that puts stages on several devices; throughput and cost only."""
REPLICAS_PAY = 0.99
"""Part of the best value without replicas that one with them must reach in `auto`."""


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
    trains = problem.graph.mode == "training"
    return {**single, **ALGORITHMS, **({"training_pipeline": training_pipeline} if trains else {})}


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
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)

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


def _rank(plan: Plan) -> tuple[float, int, int]:
    pays = REPLICAS_PAY if any(stage.replicas for stage in plan.stages) else 1.0
    return plan.value / pays, len(plan.devices), len(plan.stages)


@dataclass
class _Found:
    """What algorithms have given so far: plans, refusals, and the best bound."""

    bound: float
    plans: list[Plan] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Plan]) -> None:
        try:
            self.plans.append(make())
        except InfeasibleError as refusal:
            self.refusals[name] = str(refusal)

    def solution(self) -> Solution:
        """The plans from best to worst, each algorithm's best; replicas must pay."""
        self.plans.sort(key=_rank)
        best: dict[str, Plan] = {}
        for plan in self.plans:
            best.setdefault(plan.algorithm, with_bound(plan, self.bound))
        plans = tuple(best.values())
        return Solution(plans[0], plans, self.refusals)


def solve(
    problem: Problem, algorithm: str = "auto", time_limit_s: float = 0.0, tell: Tell = _silent
) -> Solution:
    """Run one algorithm, or all of them (`auto`), and choose the best by the objective.

    On a tie the plan on fewer devices wins, then that of fewer stages; a plan with replicas must be
    1 % better than one without. `auto` spends what is left
    of `time_limit_s` on search and bounds, and stops when the plan is proven optimal; 0 leaves
    heuristics alone. So do the searches of `throughput.SEARCHES`, which start from the best split
    of an order.
    Too large a graph (`large.is_large`) gets no search, but what is near linear in it.
    `tell` is called with the best value and bound of the search, in the objective's unit.

    Raises:
        ValueError: there is no such algorithm.
        InfeasibleError: no algorithm found a plan; the message holds every refusal.
    """
    is_auto = algorithm == "auto"
    many = is_auto and is_large(problem)
    known = large_algorithms(problem) if many else algorithms(problem)
    _check_name(algorithm, [*throughput.SEARCHES, *latency.SEARCHES, REPLICATED, *known])
    is_latency = problem.objective == "latency"
    if algorithm == REPLICATED and is_latency:
        raise ValueError(
            "algorithm replicated goes with objective throughput or cost: replicas take batches in "
            "turn, and one batch gets no faster; the objective is latency"
        )
    timed = time_limit_s > 0 and not many
    proves = algorithm in latency.SEARCHES or (is_auto and is_latency and timed)
    searches = algorithm in throughput.SEARCHES and not many and not (is_auto and is_latency)
    if timed:
        _compile(problem, algorithm)
    if proves:
        latency.compile_loops(problem)
    if searches and timed:
        throughput.compile_loops(problem.arrays, algorithm)
    began_s = time.perf_counter()
    found = _Found(lower_bound(problem))
    for name, place in known.items():
        left_out = SLOWER if timed else SLOW + SLOWER
        if algorithm == name or (is_auto and name not in left_out):
            found.add(name, partial(_placed, problem, name, place, found.bound))
    if proves:
        found.add("latency", lambda: _by_latency(problem, algorithm, began_s, time_limit_s, found))
    if problem.latency_bound_s is not None and is_auto:
        _within_latency(problem, began_s, time_limit_s / 2, found)
    if searches:
        deadline_s = began_s + time_limit_s
        found.add(
            "search", lambda: _by_search(problem, algorithm, began_s, deadline_s, tell, found)
        )
    if algorithm == REPLICATED or (problem.may_replicate and is_auto and not many):
        found.add(REPLICATED, lambda: _by_replicas(problem))
    if algorithm == REPLICATED or (problem.may_replicate and is_auto):
        found.bound = min(found.bound, lower_bound(problem, replicas=True))
    if not found.plans:
        raise InfeasibleError(_why_none(problem, found.refusals))
    return found.solution()


def _compile(problem: Problem, algorithm: str) -> None:
    """Compile the algorithms' loops, once a process, so that no time limit pays for it."""
    variant = problem.objective, problem.communication, algorithm
    if variant not in _COMPILED:
        _COMPILED.add(variant)
        solve(smallest(problem), algorithm, 0.01)


_COMPILED: set[tuple[str, str, str]] = set()


def _placed(problem: Problem, name: str, place: Algorithm, bound: float) -> Plan:
    began_s = time.perf_counter()
    return finish_plan(problem, name, place(problem), began_s, bound)


def _by_latency(
    problem: Problem, algorithm: str, began_s: float, time_limit_s: float, found: _Found
) -> Plan:
    is_latency = problem.objective == "latency"
    known = found.bound if is_latency else 0.0
    placed, name, proven = latency.latency(problem, began_s + time_limit_s, known, algorithm)
    if is_latency:
        found.bound = max(found.bound, proven)
    return finish_plan(problem, name, placed, began_s, found.bound)


def _within_latency(problem: Problem, began_s: float, time_limit_s: float, found: _Found) -> None:
    """Add the fastest plan: what is fast enough may be what only a search for latency finds."""
    fastest = _fastest(problem, time_limit_s)
    try:
        found.plans.append(
            finish_plan(problem, fastest.algorithm, fastest.placement, began_s, found.bound)
        )
    except InfeasibleError as refusal:
        found.refusals["latency"] = (
            f"{refusal}; the least found is {fastest.value:.6g} s, and none is below "
            f"{fastest.lower_bound:.6g} s: set latency_bound_s to {fastest.value:.6g} at least"
        )


def _by_search(
    problem: Problem, algorithm: str, began_s: float, deadline_s: float, tell: Tell, found: _Found
) -> Plan:
    placed, how, found.bound = search(problem, deadline_s, found.bound, tell, algorithm)
    name = how if algorithm == "auto" else algorithm
    return finish_plan(problem, name, placed, began_s, found.bound)


def _by_replicas(problem: Problem) -> Plan:
    began_s = time.perf_counter()
    placed, replicas = replicated(problem)
    return finish_plan(problem, REPLICATED, placed, began_s, 0.0, replicas)


def _why_none(problem: Problem, refusals: dict[str, str]) -> str:
    subject = f"no plan for '{problem.graph.name}'"
    if problem.latency_bound_s is not None and "latency" in refusals:
        return f"{subject}: {refusals['latency']}"
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    binding = shortage(problem)
    return f"{subject}: {binding}; {reasons}" if binding else f"{subject}: {reasons}"
