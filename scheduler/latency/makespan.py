"""The makespan of tasks that are placed and ordered, compiled: what searches for latency compare.

Both simulations have the semantics of `timeline.stage_timeline` on the stages of `plan.cut_runs`:
every device runs its tasks in order, a medium carries one tensor at a time, first come first
served, and what a task makes leaves in the order in which it is read.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.latency.by_clock import run_by_clock
from scheduler.latency.in_order import media_are_private, room_for, run_in_order
from scheduler.latency.placed import Times, no_times, ordered
from scheduler.list_scheduling.tasks import Tasks


@numba.njit(cache=True)
def simulate(
    tasks: Tasks, device: Ints, order: Ints, tail: Floats, most_s: float
) -> tuple[float, Times]:
    """Makespan (s) and times, by whichever of the two simulations is right and fast.

    Infinite where a link is missing, or where `tail` shows that it exceeds `most_s`.
    """
    at, times = ordered(device, order), no_times(tasks)
    if media_are_private(tasks):
        return run_in_order(tasks, at, tail, most_s, 0, times, times, room_for(tasks)), times
    return run_by_clock(tasks, at, tail, most_s, times), times


@numba.njit(cache=True)
def makespan_of(tasks: Tasks, device: Ints, order: Ints) -> float:
    """Makespan (s) of tasks on their devices in an order."""
    return simulate(tasks, device, order, np.zeros_like(tasks.w), np.inf)[0]
