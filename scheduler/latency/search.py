"""Local search for latency: annealing from the best list schedule, within a time limit."""

import os
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numba
import numpy as np

from scheduler.arrays import Ints
from scheduler.bounds.longest_paths import tails
from scheduler.compiled import clock_s
from scheduler.latency.anneal import Cooling, anneal
from scheduler.latency.makespan import makespan_of
from scheduler.list_scheduling.cpop import cpop_schedule
from scheduler.list_scheduling.heft import heft_schedule
from scheduler.list_scheduling.m_etf import m_etf_schedule
from scheduler.list_scheduling.peft import peft_schedule
from scheduler.list_scheduling.tasks import Tasks, fits
from scheduler.stopped import Stopped

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
NUM_SEARCHES = 2
"""Searches side by side, as many as CP-SAT has workers."""
LEAST_BESIDE_S = 0.002
"""Time from which a second search is worth its thread, which takes some 0.1 ms to start."""
THREAD_ENDS_S = 0.0003
"""Time before the deadline at which a search in a thread ends, so that nobody waits for it."""
LEAST_STOPPABLE_S = 0.1
"""Time from which this thread only waits, so that Ctrl-C reaches it: loops hear nothing."""
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


@numba.njit(cache=True, nogil=True)
def _improved(
    tasks: Tasks,
    device: Ints,
    order: Ints,
    deadline_s: float,
    enough_s: float,
    stop: Ints,
    seed: int,
) -> tuple[Ints, Ints, float]:
    """Device and order of the tasks, and the makespan (s), after coolings from the best so far.

    They end at a time of `clock_s`, at a makespan (then `stop` (1,) is set), or where it is set.
    """
    n = len(order)
    value, tail = makespan_of(tasks, device, order), tails(tasks)
    left, moves, heat = MOVES_PER_TASK * n, LEAST_MOVES_PER_TASK * n, COLDEST
    done, cooled, began_s = 0, 0, clock_s()
    now_s = began_s
    while left > 0 and enough_s < value < np.inf and now_s < deadline_s and not stop[0]:
        hottest = heat * value / n
        cooling = Cooling(hottest, hottest * COOLING, moves, deadline_s, enough_s, stop)
        stream = NUM_SEARCHES * cooled + seed
        device, order, value = anneal(tasks, device, order, value, tail, cooling, stream)
        now_s = clock_s()
        left, done, heat = left - moves, done + moves, HEATS[(cooled + seed) % len(HEATS)]
        moves = FIRST_MOVES_PER_TASK * n * 2**cooled
        cooled += 1
        if done * (deadline_s - now_s) < 3 * moves * (now_s - began_s):
            moves = UNLIMITED
    if value <= enough_s:
        stop[0] = 1
    return device, order, value


def improve_schedule(
    tasks: Tasks, device: Ints, order: Ints, deadline_s: float, bound_s: float = 0.0
) -> tuple[Ints, Ints]:
    """Device and order of the tasks after annealing from a schedule.

    Every cooling starts from the best so far; one that the next could not follow before the
    deadline (of `time.perf_counter`) lasts until then. Where there is time and a core for it a
    second search runs beside, with other random numbers; the better result counts. The same
    again if the deadline is far; ends early at the bound.

    Raises:
        Stopped: Ctrl-C; it has the best schedule until then.
    """
    left_s, stop = deadline_s - time.perf_counter(), np.zeros(1, dtype=np.int64)
    several = left_s >= LEAST_BESIDE_S and (os.cpu_count() or 1) >= NUM_SEARCHES
    num, own = NUM_SEARCHES if several else 1, int(left_s < LEAST_STOPPABLE_S)
    enough_s, is_interrupted = bound_s * (1 + 1e-9), False

    def search(seed: int, until_s: float) -> tuple[Ints, Ints, float]:
        return _improved(tasks, device, order, until_s, enough_s, stop, seed)

    with ThreadPoolExecutor(num) as pool:
        until_s = deadline_s - THREAD_ENDS_S
        beside = [pool.submit(search, seed, until_s) for seed in range(own, num)]
        found = [search(0, deadline_s)] if own else []
        try:
            while wait(beside, LEAST_STOPPABLE_S).not_done:
                pass
        except KeyboardInterrupt:
            is_interrupted, stop[0] = True, 1
        found += [run.result() for run in beside]
    best = min(found, key=lambda schedule: schedule[2])[:2]
    if is_interrupted:
        raise Stopped(*best)
    return best
