"""Latency within a time limit: proofs where modules are small, annealing elsewhere."""

import time
import warnings
from importlib.util import find_spec

import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.latency.makespan import makespan_of
from scheduler.latency.search import best_start, improve_schedule
from scheduler.latency.series import series_schedule
from scheduler.list_scheduling.tasks import Tasks, fits, tasks_of, within_memory
from scheduler.problem import Placement, Problem
from scheduler.stopped import Stopped

SEARCHES = ("latency_search", "latency_exact")
"""Both improve on the list schedules within a time limit; `auto` runs both."""
PROOF_SHARE = 0.8
"""Share of the time limit that `auto` gives to proofs."""
PROVEN = 1 + 1e-5
"""Value over bound within which a plan is optimal: the solver's times are whole numbers."""


def compile_loops(problem: Problem) -> None:
    """Compile what the searches run, so that no time limit pays for it."""
    tasks = tasks_of(problem)
    n = len(tasks.w)
    start = best_start(tasks) or (np.zeros(n, dtype=np.int64), np.arange(n))
    improve_schedule(tasks, *start, deadline_s=0.0)
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
            return np.zeros(len(tasks.w), dtype=np.int64), np.arange(len(tasks.w), dtype=float)
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
