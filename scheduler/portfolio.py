"""The algorithms by name, and the best of their plans."""

import difflib
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hardware.errors import InfeasibleError
from scheduler import latency, throughput
from scheduler.bounds import named_bound, usd_per_1k
from scheduler.contiguous import contiguous
from scheduler.cpop import cpop
from scheduler.evaluate import finish_plan, with_bound
from scheduler.heft import heft
from scheduler.ideals import ideals, ideals_beam
from scheduler.large import best_schedule, is_large, large_algorithms
from scheduler.latency_windows import compile_windows, latency_windows
from scheduler.m_etf import m_etf
from scheduler.m_sct import m_sct
from scheduler.multilevel import multilevel
from scheduler.peft import peft
from scheduler.plan import Plan
from scheduler.problem import Placement, Problem
from scheduler.replicated import replicated
from scheduler.round_robin import round_robin
from scheduler.shortage import least_memory, shortage
from scheduler.single_device import memory_fill, single_device
from scheduler.smallest import smallest
from scheduler.stage_moves import refine
from scheduler.tasks import within_memory
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

WINDOWS = "latency_windows"
"""The search for latency that `auto` runs on large graphs; it improves list schedules."""
REPLICATED = "replicated"
"""The algorithm that puts stages on several devices; throughput and cost only."""
REPLICAS_PAY = 0.99
"""Part of the best value without replicas that one with them must reach in `auto`."""


PIPELINE = "training_pipeline"
"""The algorithm that splits a training step by layers; with time its stages are moved, too."""
REFINING = 0.7
"""Share of the time limit in which they are, where other searches follow."""


@dataclass(frozen=True)
class Solution:
    """The best plan, all plans from best to worst, and why the other algorithms gave none.

    Attributes:
        stopped: whether Ctrl-C ended the search; the plans are the best until then.
    """

    best: Plan
    plans: tuple[Plan, ...]
    refusals: dict[str, str]
    stopped: bool = False


def algorithms(problem: Problem) -> dict[str, Algorithm]:
    """Every algorithm for a problem, one `single_device:ID` for each device first."""
    single = {
        f"single_device:{device}": partial(single_device, device=device)
        for device in problem.cluster.devices
    }
    trains = problem.graph.mode == "training"
    return {**single, **ALGORITHMS, **({PIPELINE: training_pipeline} if trains else {})}


def _check_name(algorithm: str, known: Iterable[str]) -> None:
    accepted = list(known)
    if algorithm == PIPELINE not in accepted:
        raise ValueError(f"algorithm '{PIPELINE}' needs a graph of mode training; take auto")
    if algorithm not in accepted:
        close = difflib.get_close_matches(algorithm, accepted, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown algorithm '{algorithm}'; {hint}accepted: {', '.join(accepted)}")


def search(
    problem: Problem, deadline_s: float, bound: float, tell: Tell, name: str = "auto"
) -> tuple[Placement, str, float, bool]:
    """The best split that a search for throughput finds, its name, the bound, and a flag.

    The flag says whether Ctrl-C ended the search.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)

    def in_unit(load_s: float) -> float:
        period_s = load_s * problem.num_micro_batches
        return usd_per_1k(problem, period_s) if problem.objective == "cost" else period_s

    known = bound / in_unit(1.0) if problem.objective != "latency" else 0.0
    best, stopped = throughput.start(arrays, known), False
    if best.load < np.inf:
        told = _silent if problem.objective == "latency" else tell
        try:
            throughput.improve(
                arrays, best, deadline_s, lambda load, low: told(in_unit(load), in_unit(low)), name
            )
        except KeyboardInterrupt:
            stopped = True
    names = problem.costs.devices
    placed = {op.name: names[d] for op, d in zip(problem.graph.ops, best.device, strict=True)}
    return placed, best.algorithm or "single_device", max(bound, in_unit(best.bound)), stopped


def _fastest(problem: Problem, time_limit_s: float) -> Solution:
    """The plans of least latency.

    Raises:
        InfeasibleError: there is none, whatever its latency.
    """
    alone = replace(problem, objective="latency", latency_bound_s=None)
    return solve(alone, time_limit_s=time_limit_s, stoppable=True)


def _rank(plan: Plan) -> tuple[float, int, int]:
    pays = REPLICAS_PAY if any(stage.replicas for stage in plan.stages) else 1.0
    return plan.value / pays, len(plan.devices), len(plan.stages)


@dataclass
class _Found:
    """What algorithms have given so far: plans, refusals, and the best bound.

    `finish_s`: the longest that it took to make a checked plan of a placement.
    """

    bound: float
    bound_by: str
    plans: list[Plan] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    finish_s: float = 0.0
    stopped: bool = False

    def add(self, name: str, make: Callable[[], Plan]) -> None:
        """Add a plan or a refusal; after Ctrl-C nothing is tried any more."""
        try:
            if not self.stopped:
                self.plans.append(make())
        except InfeasibleError as refusal:
            self.refusals[name] = str(refusal)
        except KeyboardInterrupt:
            if not self.plans:
                raise
            self.stopped = True

    def prove(self, bound: float, by: str) -> None:
        """Take a bound where it is higher."""
        if bound > self.bound:
            self.bound, self.bound_by = bound, by

    def solution(self) -> Solution:
        """The plans from best to worst, each algorithm's best; replicas must pay."""
        self.plans.sort(key=_rank)
        best: dict[str, Plan] = {}
        for plan in self.plans:
            best.setdefault(plan.algorithm, with_bound(plan, self.bound, self.bound_by))
        plans = tuple(best.values())
        return Solution(plans[0], plans, self.refusals, self.stopped)


def solve(
    problem: Problem,
    algorithm: str = "auto",
    time_limit_s: float = 0.0,
    tell: Tell = _silent,
    stoppable: bool = False,
) -> Solution:
    """Run one algorithm, or all of them (`auto`), and choose the best by the objective.

    On a tie the plan on fewer devices wins, then that of fewer stages; a plan with replicas must be
    1 % better than one without. `auto` spends what is left
    of `time_limit_s` on search and bounds, and stops when the plan is proven optimal; 0 leaves
    heuristics alone. So do the searches of `throughput.SEARCHES`, which start from the best split
    of an order, and `training_pipeline`.
    Too large a graph (`large.is_large`) gets what is near linear in it, and searches of its own.
    `tell` is called with the best value and bound of the search, in the objective's unit.
    Where it is `stoppable`, Ctrl-C leaves the best plan until then.

    Raises:
        KeyboardInterrupt: Ctrl-C, and it is not stoppable or there is no plan yet.
        ValueError: there is no such algorithm.
        InfeasibleError: no algorithm found a plan; the message says what binds, or every refusal.
    """
    is_auto = algorithm == "auto"
    many = is_auto and is_large(problem)
    known = large_algorithms(problem, time_limit_s > 0) if many else algorithms(problem)
    _check_name(algorithm, [*throughput.SEARCHES, *latency.SEARCHES, WINDOWS, REPLICATED, *known])
    is_latency = problem.objective == "latency"
    within = is_latency or problem.latency_bound_s is not None
    if algorithm == REPLICATED and within:
        raise ValueError(
            "algorithm 'replicated' shortens no batch: it needs objective throughput or cost, "
            "without latency_bound_s; take auto"
        )
    timed = time_limit_s > 0 and not many
    proves = algorithm in latency.SEARCHES or (is_auto and is_latency and timed)
    searches = algorithm in throughput.SEARCHES and not many and not (is_auto and is_latency)
    by_windows = algorithm == WINDOWS or (many and is_latency and time_limit_s > 0)
    if timed:
        _compile(problem, algorithm)
    if many and time_limit_s > 0:
        _compile_large(problem)
    if by_windows:
        compile_windows(smallest(problem))
    if proves:
        latency.compile_loops(problem)
    if searches and timed:
        throughput.compile_loops(problem.arrays, algorithm)
    began_s = time.perf_counter()
    found = _Found(*named_bound(problem))
    for name, place in known.items():
        left_out = SLOWER if timed else SLOW + SLOWER
        if algorithm == name or (is_auto and name not in left_out):
            found.add(name, partial(_placed, problem, name, place, found))
    if proves:
        found.add("latency", lambda: _by_latency(problem, algorithm, began_s, time_limit_s, found))
    if by_windows:
        deadline_s = began_s + time_limit_s
        found.add(WINDOWS, lambda: _by_windows(problem, deadline_s, tell, found))
    if problem.latency_bound_s is not None and is_auto:
        _within_latency(problem, began_s, time_limit_s / 2, found)
    if timed and problem.trains_in_parts and algorithm in ("auto", PIPELINE):
        share = REFINING if is_auto else 1.0
        until_s = began_s + share * time_limit_s
        found.add(PIPELINE, lambda: _refined(problem, began_s, until_s, tell, found))
    if searches:
        deadline_s = began_s + time_limit_s
        found.add(
            "search", lambda: _by_search(problem, algorithm, began_s, deadline_s, tell, found)
        )
    if algorithm == REPLICATED or (problem.may_replicate and is_auto and not many):
        found.add(REPLICATED, lambda: _by_replicas(problem))
    if algorithm == REPLICATED or (problem.may_replicate and is_auto):
        found.bound, found.bound_by = min(
            (found.bound, found.bound_by), named_bound(problem, replicas=True)
        )
    if not found.plans:
        raise InfeasibleError(_why_none(problem, found.refusals, is_auto))
    if found.stopped and not stoppable:
        raise KeyboardInterrupt
    return found.solution()


def _compile(problem: Problem, algorithm: str) -> None:
    """Compile the algorithms' loops, once a process, so that no time limit pays for it."""
    variant = problem.objective, problem.communication, algorithm
    known = (*throughput.SEARCHES, *latency.SEARCHES, *ALGORITHMS)
    if algorithm in known and variant not in _COMPILED:
        _COMPILED.add(variant)
        with suppress(InfeasibleError):
            solve(smallest(problem), algorithm, 0.01)


_COMPILED: set[tuple[str, str, str]] = set()


def _compile_large(problem: Problem) -> None:
    """Compile what runs on large graphs, likewise."""
    small = smallest(problem)
    for place in large_algorithms(small).values():
        place(small)


def _placed(problem: Problem, name: str, place: Algorithm, found: _Found) -> Plan:
    began_s = time.perf_counter()
    placement = place(problem)
    placed_s = time.perf_counter()
    plan = finish_plan(problem, name, placement, began_s, found.bound)
    found.finish_s = max(found.finish_s, time.perf_counter() - placed_s)
    return plan


def _by_windows(problem: Problem, deadline_s: float, tell: Tell, found: _Found) -> Plan:
    """The best list schedule, improved until it is just time to make a plan of it."""
    began_s = time.perf_counter()
    schedule = best_schedule(problem)
    chosen_s = time.perf_counter()
    plan = _placed(problem, "list_schedules", partial(within_memory, schedule=schedule), found)
    again_s = time.perf_counter() - chosen_s
    until_s = deadline_s - found.finish_s
    if time.perf_counter() + again_s >= until_s:
        return plan
    placement = latency_windows(problem, schedule, until_s, lambda value: tell(value, found.bound))
    return finish_plan(problem, WINDOWS, placement, began_s, found.bound)


def _by_latency(
    problem: Problem, algorithm: str, began_s: float, time_limit_s: float, found: _Found
) -> Plan:
    is_latency = problem.objective == "latency"
    known = found.bound if is_latency else 0.0
    placed, name, proven = latency.latency(problem, began_s + time_limit_s, known, algorithm)
    if is_latency:
        found.prove(proven, "modules")
    return finish_plan(problem, name, placed, began_s, found.bound)


def _within_latency(problem: Problem, began_s: float, time_limit_s: float, found: _Found) -> None:
    """Add the fastest plan: what is fast enough may be what only a search for latency finds."""
    solution = _fastest(problem, time_limit_s)
    fastest, found.stopped = solution.best, found.stopped or solution.stopped
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
    placed, how, proven, found.stopped = search(problem, deadline_s, found.bound, tell, algorithm)
    found.prove(proven, "device sets" if algorithm == "auto" else "integer programme")
    name = how if algorithm == "auto" else algorithm
    return finish_plan(problem, name, placed, began_s, found.bound)


def _refined(problem: Problem, began_s: float, until_s: float, tell: Tell, found: _Found) -> Plan:
    """The pipeline of a training step with its stages moved while the step gets faster.

    Raises:
        InfeasibleError: there is no pipeline to start from.
    """
    starts = [plan for plan in found.plans if plan.algorithm == PIPELINE]
    if not starts:
        raise InfeasibleError(found.refusals[PIPELINE])
    as_cost = problem.objective == "cost"

    def told(step_s: float) -> None:
        tell(usd_per_1k(problem, step_s) if as_cost else step_s, found.bound)

    placed = refine(problem, starts[0].placement, until_s, told)
    return finish_plan(problem, PIPELINE, placed, began_s, found.bound)


def _by_replicas(problem: Problem) -> Plan:
    began_s = time.perf_counter()
    placed, replicas = replicated(problem)
    return finish_plan(problem, REPLICATED, placed, began_s, 0.0, replicas)


def _why_none(problem: Problem, refusals: dict[str, str], is_auto: bool) -> str:
    """What binds and what would mend it; refusals of one algorithm, or where that is not known."""
    subject = f"no plan for '{problem.graph.name}'"
    if problem.latency_bound_s is not None and "latency" in refusals:
        return f"{subject}: {refusals['latency']}"
    binding = shortage(problem)
    if not binding and is_auto and not is_large(problem):
        apart = sorted({why for why in refusals.values() if why.startswith("no link")})
        binding = "; or ".join(filter(None, [least_memory(problem, _has_plan), *apart[:1]]))
    alike: dict[str, list[str]] = {}
    for name, reason in refusals.items():
        alike.setdefault(reason, []).append(name)
    said = [binding] if binding else []
    if not (binding and is_auto):
        said += [f"{', '.join(names)}: {why}" for why, names in alike.items()]
    return f"{subject}: {'; '.join(said)}"


def _has_plan(problem: Problem) -> bool:
    """Whether a quick heuristic finds one."""
    for name in ("memory_fill", "contiguous"):
        try:
            finish_plan(problem, name, ALGORITHMS[name](problem), 0.0, 0.0)
        except InfeasibleError:
            continue
        return True
    return False
