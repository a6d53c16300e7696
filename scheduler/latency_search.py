"""Local search for latency: annealing from the best list schedule, within a time limit."""

import numba
import numpy as np

from scheduler.arrays import Ints
from scheduler.compiled import clock_s
from scheduler.cpop import cpop_schedule
from scheduler.heft import heft_schedule
from scheduler.latency_anneal import Cooling, anneal
from scheduler.latency_timeline import makespan_of
from scheduler.longest_paths import tails
from scheduler.m_etf import m_etf_schedule
from scheduler.peft import peft_schedule
from scheduler.tasks import Tasks, fits

HEATS = (0.4, 0.8, 1.6)
"""First temperatures of coolings, in turn, in makespans per task; all start from the best."""
COLDEST = 0.05
"""Temperature of the descent before the first cooling, likewise."""
COOLING = 1 / 30
"""Last temperature of a cooling as a share of its first."""
FIRST_MOVES_PER_TASK = 25
"""Length of the first cooling; each is twice as long as the one before."""
MOVES_PER_TASK = 6000
"""Of all coolings together."""
LEAST_MOVES_PER_TASK = 2
"""Length of a descent before the first cooling, which tells how fast moves are."""
UNLIMITED = 2**40
"""Moves of a cooling that lasts until the deadline."""


@numba.njit(cache=True)
def _best_list(tasks: Tasks) -> tuple[Ints, Ints, float]:
    """Device and order of the tasks by the best list schedule, or on one device; its makespan (s).

    m-SCT is left out: its linear programme takes longer than all others.
    """
    n, d = tasks.w.shape
    best, best_order, value = np.zeros(n, dtype=np.int64), np.arange(n), np.inf
    for k in range(4 + d):
        device, start = np.full(n, k - 4), np.arange(n).astype(np.float64)
        if k == 0:
            device, start = heft_schedule(tasks)
        elif k == 1:
            device, start = cpop_schedule(tasks)
        elif k == 2:
            device, start = peft_schedule(tasks)
        elif k == 3:
            device, start = m_etf_schedule(tasks)
        if not fits(tasks, device):
            continue
        order = np.argsort(start, kind="mergesort")
        makespan = makespan_of(tasks, device, order)
        if makespan < value:
            best, best_order, value = device, order, makespan
    return best, best_order, value


def best_start(tasks: Tasks) -> tuple[Ints, Ints] | None:
    """Device and order of the tasks by the best list schedule; None where none has the memory."""
    device, order, value = _best_list(tasks)
    return (device, order) if value < np.inf else None


@numba.njit(cache=True)
def _improved(
    tasks: Tasks, device: Ints, order: Ints, deadline_s: float, enough_s: float, seed: int
) -> tuple[Ints, Ints]:
    """Device and order of the tasks after coolings, until a time of `clock_s` or a makespan."""
    n = len(order)
    value, tail = makespan_of(tasks, device, order), tails(tasks)
    left, moves, heat = MOVES_PER_TASK * n, LEAST_MOVES_PER_TASK * n, COLDEST
    done, began_s = 0, clock_s()
    now_s = began_s
    while left > 0 and enough_s < value < np.inf and now_s < deadline_s:
        seed += 1
        hottest = heat * value / n
        cooling = Cooling(hottest, hottest * COOLING, moves, deadline_s, enough_s)
        device, order, value = anneal(tasks, device, order, value, tail, cooling, seed)
        now_s = clock_s()
        left, done, heat = left - moves, done + moves, HEATS[(seed - 1) % len(HEATS)]
        moves = FIRST_MOVES_PER_TASK * n * 2 ** (seed - 1)
        if done * (deadline_s - now_s) < 3 * moves * (now_s - began_s):
            moves = UNLIMITED
    return device, order


def improve_schedule(
    tasks: Tasks, device: Ints, order: Ints, deadline_s: float, bound_s: float = 0.0, seed: int = 0
) -> tuple[Ints, Ints]:
    """Device and order of the tasks after annealing from a schedule.

    Every cooling starts from the best so far; one that the next could not follow before the
    deadline (of `time.perf_counter`) lasts until then. The same for the same seed if the deadline
    is far; ends early at the bound.
    """
    return _improved(tasks, device, order, deadline_s, bound_s * (1 + 1e-9), seed)
