"""Ways to a plan: each runs a heuristic or a search and makes a checked plan of what it places."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.bounds.lower_bound import usd_per_1k
from scheduler.bounds.relaxation_bound import relaxation_bound
from scheduler.data_parallel.replicated import replicated
from scheduler.evaluation.evaluate import finish_plan
from scheduler.large.portfolio import best_schedule
from scheduler.large.priced_moves import compile_moves, priced_moves
from scheduler.latency import portfolio as latency
from scheduler.latency.windows import compile_windows, latency_windows
from scheduler.list_scheduling.tasks import placement_of, within_memory
from scheduler.plan import Plan
from scheduler.problem import Placement, Problem
from scheduler.smallest import smallest
from scheduler.solution import Found, Query
from scheduler.stopped import Stopped
from scheduler.throughput import portfolio as throughput
from scheduler.training.stage_moves import refine

Algorithm = Callable[[Problem], Placement]

PIPELINE_SHARE = 0.7
"""Share of the time limit in which stages of a pipeline are moved, where other searches follow."""

RELAXATION_SHARE = 0.1
"""Share of the time limit in which the search for latency leaves off and a bound is raised."""


def _nothing(_: Query) -> None:
    pass


@dataclass(frozen=True)
class Way:
    """A way to a plan by name; `compile`: its loops, before the clock starts."""

    name: str
    make: Callable[[Query, Found], Plan]
    compile: Callable[[Query], None] = _nothing


def heuristic(name: str, place: Algorithm) -> Way:
    """The way that makes a plan of an algorithm's placement."""
    return Way(name, lambda query, found: _placed(query.problem, name, place, found))


def _placed(problem: Problem, name: str, place: Algorithm, found: Found) -> Plan:
    began_s = time.perf_counter()
    placement = place(problem)
    placed_s = time.perf_counter()
    plan = finish_plan(problem, name, placement, began_s, found.bound)
    found.finish_s = max(found.finish_s, time.perf_counter() - placed_s)
    return plan


def _by_latency(query: Query, found: Found) -> Plan:
    """The least latency, by proofs and annealing; what is proven is a bound where that is asked."""
    problem, is_latency = query.problem, query.problem.objective == "latency"
    deadline_s = found.began_s + query.time_limit_s
    until_s = deadline_s - is_latency * RELAXATION_SHARE * query.time_limit_s
    known_s = found.bound if is_latency else 0.0
    try:
        if problem.pipelines_batch and query.algorithm != "latency_exact":
            placed = latency.batch_latency(problem, _best_placement(found), until_s, known_s)
            name, proven_s = "latency_search", known_s
        else:
            placed, name, proven_s = latency.latency(problem, until_s, known_s, query.algorithm)
    except Stopped as stop:
        placed, name, proven_s = _until_then(problem, stop, found), "latency_search", stop.bound_s
    plan = finish_plan(problem, name, placed, found.began_s, found.bound)
    if is_latency:
        found.prove(proven_s, "modules")
    if is_latency and not found.stopped:
        relaxed_s = relaxation_bound(problem, plan.value, found.bound, deadline_s)
        found.prove(relaxed_s, "relaxation")
    return plan


def _best_placement(found: Found) -> Placement | None:
    """Where operators run in the best plan so far, if there is one."""
    best = min(found.plans, key=lambda plan: plan.value, default=None)
    return None if best is None else best.placement


def _by_descent(query: Query, found: Found) -> Plan:
    """The best plan so far after a short descent, the same on every machine."""
    began_s = time.perf_counter()
    placed = latency.descended(query.problem, _best_placement(found))
    return finish_plan(query.problem, DESCENT.name, placed, began_s, found.bound)


def _until_then(problem: Problem, stop: Stopped, found: Found) -> Placement:
    """The placement that a search had when Ctrl-C ended it; nothing else is tried."""
    found.stopped = True
    return placement_of(problem, stop.device, np.argsort(stop.order).astype(float))


def _by_windows(query: Query, found: Found) -> Plan:
    """The best list schedule, improved until it is just time to make a plan of it."""
    problem, began_s = query.problem, time.perf_counter()
    schedule = best_schedule(problem)
    chosen_s = time.perf_counter()
    plan = _placed(problem, "list_schedules", partial(within_memory, schedule=schedule), found)
    again_s = time.perf_counter() - chosen_s
    until_s = found.began_s + query.time_limit_s - found.finish_s
    if time.perf_counter() + again_s >= until_s:
        return plan
    found.plans.append(plan)
    try:
        placement = latency_windows(
            problem, schedule, until_s, lambda value: query.tell(value, found.bound)
        )
    except Stopped as stop:
        placement = _until_then(problem, stop, found)
    return finish_plan(problem, WINDOWS.name, placement, began_s, found.bound)


def _by_stage_moves(query: Query, found: Found) -> Plan:
    """The pipeline of a training step with its stages moved while the step gets faster.

    Raises:
        InfeasibleError: there is no pipeline to start from.
    """
    problem, name = query.problem, PIPELINE.name
    starts = [plan for plan in found.plans if plan.algorithm == name]
    if not starts:
        raise InfeasibleError(found.refusals[name])
    as_cost = problem.objective == "cost"

    def told(step_s: float) -> None:
        query.tell(usd_per_1k(problem, step_s) if as_cost else step_s, found.bound)

    share = PIPELINE_SHARE if query.is_auto else 1.0
    placed = refine(problem, starts[0].placement, found.began_s + share * query.time_limit_s, told)
    return finish_plan(problem, name, placed, found.began_s, found.bound)


def _by_throughput(query: Query, found: Found) -> Plan:
    """The least load, by search and bounds in turns; without time the best split of an order.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    problem = query.problem
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)
    is_latency = problem.objective == "latency"

    def in_unit(load_s: float) -> float:
        period_s = load_s * problem.num_micro_batches
        return usd_per_1k(problem, period_s) if problem.objective == "cost" else period_s

    def told(load_s: float, bound_s: float) -> None:
        if not is_latency:
            query.tell(in_unit(load_s), in_unit(bound_s))

    best = throughput.start(arrays, 0.0 if is_latency else found.bound / in_unit(1.0))
    if best.load < np.inf:
        deadline_s = found.began_s + query.time_limit_s
        try:
            throughput.improve(arrays, best, deadline_s, told, query.algorithm)
        except KeyboardInterrupt:
            found.stopped = True
    found.prove(in_unit(best.bound), "device sets" if query.is_auto else "integer programme")
    name = (best.algorithm or "single_device") if query.is_auto else query.algorithm
    devices = problem.costs.devices
    placed = {op.name: devices[d] for op, d in zip(problem.graph.ops, best.device, strict=True)}
    return finish_plan(problem, name, placed, found.began_s, found.bound)


def _by_moves(query: Query, found: Found) -> Plan:
    """The best plan so far with clusters moved until it is just time to make a plan of it.

    Raises:
        InfeasibleError: there is none, or its activations no longer fit.
    """
    problem, m = query.problem, query.problem.num_micro_batches
    whole = [plan for plan in found.plans if not any(stage.replicas for stage in plan.stages)]
    if not whole:
        raise InfeasibleError("no plan to start from")
    start = min(whole, key=lambda plan: plan.value)
    unit = usd_per_1k(problem, m) if problem.objective == "cost" else float(m)
    index = problem.device_index
    device = np.array([index[start.placement[op.name]] for op in problem.graph.ops])
    until_s = found.began_s + query.time_limit_s - 1.5 * found.finish_s
    moved, found.stopped = priced_moves(
        problem, device, found.bound / unit if unit else 0.0, until_s,
        lambda load_s: query.tell(load_s * unit, found.bound),
    )  # fmt: skip
    devices = problem.costs.devices
    placed = {op.name: devices[d] for op, d in zip(problem.graph.ops, moved, strict=True)}
    return finish_plan(problem, MOVES.name, placed, found.began_s, found.bound)


def _by_replicas(query: Query, _: Found) -> Plan:
    began_s = time.perf_counter()
    placed, replicas = replicated(query.problem)
    return finish_plan(query.problem, REPLICATED.name, placed, began_s, 0.0, replicas)


def _compile_throughput(query: Query) -> None:
    if query.is_timed:
        throughput.compile_loops(query.problem.arrays, query.algorithm)


LATENCY = Way("latency", _by_latency, lambda query: latency.compile_loops(query.problem))
"""The searches for latency."""
DESCENT = Way("latency_descent", _by_descent)
"""What stands in for them where there is no time, and where more time must not be worse."""
THROUGHPUT = Way("search", _by_throughput, _compile_throughput)
"""The searches for throughput and cost."""
WINDOWS = Way(
    "latency_windows", _by_windows, lambda query: compile_windows(smallest(query.problem))
)
"""The search for latency that improves list schedules, on large graphs, too."""
MOVES = Way("priced_moves", _by_moves, lambda query: compile_moves(smallest(query.problem)))
"""The search for throughput and cost on large graphs."""
PIPELINE = Way("training_pipeline", _by_stage_moves)
"""The search that moves the stages of the heuristic of the same name."""
REPLICATED = Way("replicated", _by_replicas)
"""Stages on several devices; for throughput and cost only."""
