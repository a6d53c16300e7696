"""The algorithms by name, which of them run on a problem, and the best of their plans."""

import difflib
from contextlib import suppress
from dataclasses import replace
from functools import partial

from hardware.errors import InfeasibleError
from scheduler.baselines.round_robin import round_robin
from scheduler.baselines.single_device import memory_fill, single_device
from scheduler.evaluation.evaluate import finish_plan
from scheduler.explanation.no_plan import why_none
from scheduler.large.multilevel import multilevel
from scheduler.large.portfolio import is_large, large_algorithms
from scheduler.latency import portfolio as latency
from scheduler.list_scheduling.cpop import cpop
from scheduler.list_scheduling.heft import heft
from scheduler.list_scheduling.m_etf import m_etf
from scheduler.list_scheduling.m_sct import m_sct
from scheduler.list_scheduling.peft import peft
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.smallest import smallest
from scheduler.solution import Found, Query, Solution, Tell, nothing_found
from scheduler.throughput import portfolio as throughput
from scheduler.throughput.contiguous import contiguous
from scheduler.throughput.ideals import ideals, ideals_beam
from scheduler.training.training_pipeline import training_pipeline
from scheduler.ways import (
    DESCENT,
    LATENCY,
    MOVES,
    PIPELINE,
    REPLICATED,
    THROUGHPUT,
    WINDOWS,
    Algorithm,
    Way,
    heuristic,
)

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

SEARCHES: dict[str, Way] = {
    **dict.fromkeys(throughput.SEARCHES, THROUGHPUT),
    **dict.fromkeys(latency.SEARCHES, LATENCY),
    DESCENT.name: DESCENT,
    WINDOWS.name: WINDOWS,
    REPLICATED.name: REPLICATED,
}
"""What starts from other plans or spends the time limit."""


def algorithms(problem: Problem) -> dict[str, Algorithm]:
    """Every algorithm for a problem, one `single_device:ID` for each device first."""
    single = {
        f"single_device:{device}": partial(single_device, device=device)
        for device in problem.cluster.devices
    }
    trains = problem.graph.mode == "training"
    return {**single, **ALGORITHMS, **({PIPELINE.name: training_pipeline} if trains else {})}


def _silent(value: float, bound: float) -> None:
    pass


def solve(
    problem: Problem,
    algorithm: str = "auto",
    time_limit_s: float = 0.0,
    tell: Tell = _silent,
    stoppable: bool = False,
) -> Solution:
    """Run one algorithm, or all of them (`auto`), and choose the best by the objective.

    On a tie the plan on fewer devices wins, then that of fewer stages; a plan with replicas must be
    1 % better than one without. For throughput and cost plans that fall short of their value in
    steady state (`slowdown`) count as what they reach. `auto` spends what is left of `time_limit_s`
    on search and bounds, and stops when the plan is proven optimal; 0 leaves heuristics alone. So
    do the searches of `throughput.SEARCHES`, which start from the best split of an order, and
    `training_pipeline`.
    Too large a graph (`large.is_large`) gets what is near linear in it, and searches of its own.
    `tell` is called with the best value and bound of the search, in the objective's unit.
    Where it is `stoppable`, Ctrl-C leaves the best plan until then.

    Raises:
        KeyboardInterrupt: Ctrl-C, and it is not stoppable or there is no plan yet.
        ValueError: there is no such algorithm.
        InfeasibleError: no algorithm found a plan; the message says what binds, or every refusal.
    """
    query = Query(problem, algorithm, time_limit_s, tell)
    ways = _ways(query)
    if query.is_timed:
        _compile(query)
    for way in ways:
        way.compile(query)
    found = nothing_found(problem)
    for way in ways:
        found.add(way.name, partial(way.make, query, found))
    if algorithm == REPLICATED.name or (query.is_auto and problem.may_replicate):
        found.allow_replicas(problem)
    if not found.plans:
        raise InfeasibleError(why_none(problem, found.refusals, query.is_auto))
    if found.stopped and not stoppable:
        raise KeyboardInterrupt
    return found.solution(problem)


def _ways(query: Query) -> list[Way]:
    """What runs, in turn."""
    if not query.is_auto:
        return _ways_named(query)
    return _ways_large(query) if is_large(query.problem) else _ways_auto(query)


def _ways_named(query: Query) -> list[Way]:
    """The one algorithm; a pipeline's stages are moved then, where there is time."""
    name, problem = query.algorithm, query.problem
    known = algorithms(problem)
    _check_name(name, [*SEARCHES, *known])
    if name == REPLICATED.name and _bounds_latency(problem):
        raise ValueError(
            "algorithm 'replicated' shortens no batch: it needs objective throughput or cost, "
            "without latency_bound_s; take auto"
        )
    if name in SEARCHES:
        return [SEARCHES[name]]
    moves = name == PIPELINE.name and query.is_timed and problem.trains_in_parts
    return [heuristic(name, known[name]), *([PIPELINE] if moves else [])]


def _ways_auto(query: Query) -> list[Way]:
    """All heuristics, then the searches for the objective."""
    problem, is_latency = query.problem, query.problem.objective == "latency"
    left_out = SLOWER if query.is_timed else SLOW + SLOWER
    known = algorithms(problem)
    ways = [heuristic(name, place) for name, place in known.items() if name not in left_out]
    if is_latency and not problem.trains_in_parts:
        ways.append(DESCENT)
    if is_latency and query.is_timed:
        ways.append(LATENCY)
    if problem.latency_bound_s is not None:
        ways.append(FASTEST)
    if query.is_timed and problem.trains_in_parts:
        ways.append(PIPELINE)
    if not is_latency:
        ways.append(THROUGHPUT)
    if problem.may_replicate:
        ways.append(REPLICATED)
    return ways


def _ways_large(query: Query) -> list[Way]:
    """What is near linear in the operators."""
    problem = query.problem
    known = large_algorithms(problem, query.is_timed)
    ways = [heuristic(name, place) for name, place in known.items()]
    if query.is_timed and problem.objective == "latency":
        ways.append(WINDOWS)
    elif query.is_timed and not problem.graph.is_sequential:
        ways.append(MOVES)
    if problem.latency_bound_s is not None:
        ways.append(FASTEST)
    return ways


def _bounds_latency(problem: Problem) -> bool:
    return problem.objective == "latency" or problem.latency_bound_s is not None


def _check_name(algorithm: str, accepted: list[str]) -> None:
    if algorithm == PIPELINE.name not in accepted:
        raise ValueError(f"algorithm '{algorithm}' needs a graph of mode training; take auto")
    if algorithm not in accepted:
        close = difflib.get_close_matches(algorithm, accepted, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown algorithm '{algorithm}'; {hint}accepted: {', '.join(accepted)}")


def _by_fastest(query: Query, found: Found) -> Plan:
    """The plan of least latency: what is fast enough may be what only a search for that finds.

    Raises:
        InfeasibleError: it is too slow, or there is none, whatever its latency.
    """
    problem = query.problem
    alone = replace(problem, objective="latency", latency_bound_s=None)
    solution = solve(alone, time_limit_s=query.time_limit_s / 2, stoppable=True)
    found.stopped, fastest = solution.stopped, solution.best
    try:
        return finish_plan(
            problem, fastest.algorithm, fastest.placement, found.began_s, found.bound
        )
    except InfeasibleError as refusal:
        raise InfeasibleError(
            f"{refusal}; the least found is {fastest.value:.6g} s, and none is below "
            f"{fastest.lower_bound:.6g} s: set latency_bound_s to {fastest.value:.6g} at least"
        ) from None


FASTEST = Way("latency", _by_fastest)
"""Where latency is bounded: half of the time limit is for the least of it."""

_COMPILED: set[tuple[str, str, str, bool]] = set()


def _compile(query: Query) -> None:
    """Compile the algorithms' loops, once a process, so that no time limit pays for it."""
    problem, algorithm = query.problem, query.algorithm
    variant = problem.objective, problem.communication, algorithm, is_large(problem)
    if variant in _COMPILED:
        return
    _COMPILED.add(variant)
    small = smallest(problem)
    finish_plan(small, "single_device", single_device(small, "p"), 0.0, 0.0)
    if query.is_auto and is_large(problem):
        for place in large_algorithms(small).values():
            place(small)
    elif algorithm in (*throughput.SEARCHES, *latency.SEARCHES, *ALGORITHMS):
        with suppress(InfeasibleError):
            solve(small, algorithm, 0.01)
