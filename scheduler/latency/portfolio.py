"""Latency within a time limit: proofs where modules are small, annealing elsewhere."""

import time
import warnings
from importlib.util import find_spec

import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.bounds.longest_paths import tails
from scheduler.latency.anneal import Cooling, anneal
from scheduler.latency.batch import batch_makespan
from scheduler.latency.batch_search import anneal_batch, improve_batch
from scheduler.latency.makespan import makespan_of
from scheduler.latency.search import COLDEST, COOLING, best_start, improve_schedule
from scheduler.latency.series import series_schedule
from scheduler.list_scheduling.cpop import cpop_schedule
from scheduler.list_scheduling.heft import heft_schedule
from scheduler.list_scheduling.m_etf import m_etf_schedule
from scheduler.list_scheduling.peft import peft_schedule
from scheduler.list_scheduling.tasks import Tasks, fits, tasks_of, within_memory
from scheduler.plan import runnable
from scheduler.problem import Placement, Problem
from scheduler.stopped import Stopped

SEARCHES = ("latency_search", "latency_exact")
"""Both improve on the list schedules within a time limit; `auto` runs both."""
PROOF_SHARE = 0.8
"""Share of the time limit that `auto` gives to proofs."""
PROVEN = 1 + 1e-5
"""Value over bound within which a plan is optimal: the solver's times are whole numbers."""

LISTED = (heft_schedule, cpop_schedule, peft_schedule, m_etf_schedule)
"""From which searches start, beside single devices."""
DESCENT_PER_TASK, MOST_DESCENT = 60, 4_000_000
"""Moves per task of a descent without time, and tasks that run in all of them at most."""


def compile_loops(problem: Problem) -> None:
    """Compile what the searches run, so that no time limit pays for it."""
    tasks = tasks_of(problem)
    n = len(tasks.w)
    start = best_start(tasks) or (np.zeros(n, dtype=np.int64), np.arange(n))
    improve_schedule(tasks, *start, deadline_s=0.0)
    if problem.pipelines_batch:
        improve_batch(tasks, start, 2, 0.0, 0.0)
        anneal_batch(tasks, start, 2, Cooling(1.0, 1.0, 1, np.inf, 0.0, np.zeros(1, int)), 0)
    if has_solver():
        series_schedule(tasks, 0.0)


def has_solver() -> bool:
    """Whether ortools is installed, without which nothing is proven."""
    return find_spec("ortools") is not None


def latency(
    problem: Problem, deadline_s: float, bound_s: float = 0.0, name: str = "auto"
) -> tuple[Placement, str, float]:
    """Placement, the algorithm that found it, and a lower bound (s) on the makespan.

    Without ortools nothing is proven; a warning says so.

    Raises:
        Stopped: Ctrl-C in the search; it has the best schedule until then.
    """
    bound, found = bound_s, ""
    began_s = time.perf_counter()
    proves = name != "latency_search" and has_solver()
    if name != "latency_search" and not proves:
        done = "list schedules stand in" if name == "latency_exact" else "searched, not proven"
        warnings.warn(f"latency: ortools is not installed; {done}", stacklevel=2)

    def schedule(tasks: Tasks) -> tuple[Ints, Floats]:
        nonlocal bound, found
        best, found = best_start(tasks), "list_schedule"
        if proves:
            share = 1.0 if name == "latency_exact" else PROOF_SHARE
            until_s = began_s + share * (deadline_s - began_s)
            device, order, proven = series_schedule(tasks, until_s)
            bound = max(bound, proven)
            if fits(tasks, device) and (
                best is None or makespan_of(tasks, device, order) < makespan_of(tasks, *best)
            ):
                best, found = (device, order), "latency_exact"
        if best is None:
            refused: tuple[Ints, Floats] = heft_schedule(tasks)
            return refused
        value = makespan_of(tasks, *best)
        if name != "latency_exact" and value > bound * PROVEN:
            try:
                best = improve_schedule(tasks, *best, deadline_s, bound)
            except Stopped as stop:
                stop.bound_s = bound
                raise
            if makespan_of(tasks, *best) < value:
                found = "latency_search"
        return best[0], np.argsort(best[1]).astype(float)

    placed = within_memory(problem, schedule)
    return placed, found if name == "auto" else name, bound


def batch_latency(
    problem: Problem, start: Placement | None, deadline_s: float, bound_s: float
) -> Placement:
    """Improve the makespan of several micro-batches, from a placement or a list schedule.

    Raises:
        Stopped: Ctrl-C in the search; it has the best schedule until then.
    """
    m = problem.num_micro_batches

    def schedule(tasks: Tasks) -> tuple[Ints, Floats]:
        device, order = _best_known(problem, tasks, start)
        if fits(tasks, device):
            device, order = improve_batch(tasks, (device, order), m, deadline_s, bound_s)
        return device, np.argsort(order).astype(float)

    return within_memory(problem, schedule)


def descended(problem: Problem, start: Placement | None) -> Placement:
    """Place by a fixed number of moves from a placement, or from a list schedule."""
    m = problem.num_micro_batches if problem.pipelines_batch else 1

    def schedule(tasks: Tasks) -> tuple[Ints, Floats]:
        device, order = _best_known(problem, tasks, start)
        value, n = _seconds(tasks, (device, order), m), len(order)
        if fits(tasks, device) and value < np.inf:
            moves = min(DESCENT_PER_TASK * n, MOST_DESCENT // (n * m))
            heat_s, stop = COLDEST * value / n, np.zeros(1, dtype=np.int64)
            cooling = Cooling(heat_s, heat_s * COOLING, moves, np.inf, 0.0, stop)
            if m > 1:
                device, order, _ = anneal_batch(tasks, (device, order), m, cooling, 0)
            else:
                device, order, _ = anneal(tasks, device, order, value, tails(tasks), cooling, 0)
        return device, np.argsort(order).astype(float)

    return within_memory(problem, schedule)


def _best_known(problem: Problem, tasks: Tasks, start: Placement | None) -> tuple[Ints, Ints]:
    """Device and order of the tasks: as placed, where that fits, or by the best list schedule."""
    m = problem.num_micro_batches if problem.pipelines_batch else 1
    if start is not None:
        placed = _schedule_of(problem, start)
        if fits(tasks, placed[0]) and _seconds(tasks, placed, m) < np.inf:
            return placed
    n, d = tasks.w.shape
    known = [(np.full(n, p), np.arange(n)) for p in range(d)]
    for listed in LISTED:
        device, starts_s = listed(tasks)
        known.append((device, np.argsort(starts_s, kind="stable")))
    able = [one for one in known if fits(tasks, one[0])] or known[-1:]
    return min(able, key=lambda one: _seconds(tasks, one, m))


def _seconds(tasks: Tasks, schedule: tuple[Ints, Ints], m: int) -> float:
    """The makespan of m micro-batches."""
    if m > 1:
        return float(batch_makespan(tasks, *schedule, m))
    return float(makespan_of(tasks, *schedule))


def _schedule_of(problem: Problem, placement: Placement) -> tuple[Ints, Ints]:
    """Device of each task, and the tasks in the order of a placement, or of the graph."""
    row, column = problem.op_index, problem.device_index
    device = np.array([column[placement[op.name]] for op in problem.graph.ops], dtype=np.int64)
    names = runnable(problem.graph, placement)
    return device, np.array([row[name] for name in names], dtype=np.int64)
