"""Local search for the latency of several micro-batches: annealing on what the plan is worth."""

import time

import numba
import numpy as np

from scheduler.arrays import Ints
from scheduler.compiled import clock_s
from scheduler.latency.anneal import Cooling
from scheduler.latency.batch import batch_makespan
from scheduler.latency.moves import State, bring, changes, choose, put, state_of
from scheduler.latency.placed import Order, ordered
from scheduler.latency.search import COLDEST, COOLING, HEATS
from scheduler.list_scheduling.tasks import Tasks
from scheduler.stopped import Stopped

FIRST_MOVES_PER_TASK, MOVES_PER_TASK = 25, 6000
"""Length of the first cooling, of which each is twice as long as the one before; of all."""
LONGEST_S = 1.0
"""Seconds of a cooling, after which Ctrl-C is heard."""


@numba.njit(cache=True)
def _cool(
    tasks: Tasks, state: State, best: Order, best_s: float, m: int, cooling: Cooling
) -> float:
    """Move from where `state` stands; what is better than `best_s` overwrites `best`."""
    at, n = state.at, len(tasks.w)
    for i in range(n):
        state.path[i] = i
    current, began_s, temperature = best_s, clock_s(), cooling.hottest_s
    for move in range(cooling.num_moves):
        now_s = clock_s()
        if now_s >= cooling.until_s or best_s <= cooling.enough_s:
            break
        done = max(move / cooling.num_moves, (now_s - began_s) / (cooling.until_s - began_s))
        temperature = cooling.hottest_s * (cooling.coldest_s / cooling.hottest_s) ** done
        i, num, b = choose(tasks, state, n)
        a = at.place[i]
        if not changes(tasks, state, num) and (num > 0 or a == b):
            continue
        if a != b:
            bring(at.order, at.place, a, b)
        most = current - temperature * np.log(1.0 - np.random.random())
        value = np.inf
        if num == 0 or put(tasks, state, num, state.targets):
            value = batch_makespan(tasks, at.device, at.order, m)
        if value <= most and value < np.inf:
            current = value
            if value < best_s:
                best_s = value
                best.device[:], best.order[:] = at.device, at.order
            continue
        if num:
            put(tasks, state, num, state.sources)
        if a != b:
            bring(at.order, at.place, b, a)
    return best_s


@numba.njit(cache=True)
def anneal_batch(
    tasks: Tasks, start: tuple[Ints, Ints], m: int, cooling: Cooling, seed: int
) -> tuple[Ints, Ints, float]:
    """Device, order and makespan (s) of m micro-batches after a cooling from a schedule."""
    np.random.seed(seed)
    device, order = start
    state, best = state_of(tasks, device, order), ordered(device, order)
    value = _cool(tasks, state, best, batch_makespan(tasks, device, order, m), m, cooling)
    return best.device, best.order, value


def improve_batch(
    tasks: Tasks, start: tuple[Ints, Ints], m: int, deadline_s: float, bound_s: float
) -> tuple[Ints, Ints]:
    """Device and order of the tasks after a descent and coolings, each from the best so far.

    Ends at a deadline of `time.perf_counter`, or at the bound.

    Raises:
        Stopped: Ctrl-C; it has the best schedule until then.
    """
    n, value, enough_s = len(tasks.w), batch_makespan(tasks, *start, m), bound_s * (1 + 1e-9)
    left, moves, cooled = MOVES_PER_TASK * n, FIRST_MOVES_PER_TASK * n, 0
    (device, order), stop = start, np.zeros(1, dtype=np.int64)
    try:
        while left > 0 and enough_s < value < np.inf and time.perf_counter() < deadline_s:
            heat = HEATS[cooled % len(HEATS)] if cooled else COLDEST
            hottest = heat * value / n
            until_s = min(deadline_s, time.perf_counter() + LONGEST_S)
            cooling = Cooling(hottest, hottest * COOLING, moves, until_s, enough_s, stop)
            device, order, value = anneal_batch(tasks, (device, order), m, cooling, cooled)
            left, moves, cooled = left - moves, 2 * moves, cooled + 1
    except KeyboardInterrupt:
        raise Stopped(device, order) from None
    return device, order
