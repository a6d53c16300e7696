"""Local search for latency: annealing from the best list schedule, within a time limit."""

import time

import numpy as np

from scheduler.arrays import Ints
from scheduler.cpop import cpop_schedule
from scheduler.heft import heft_schedule
from scheduler.latency_anneal import anneal
from scheduler.latency_timeline import simulate, tails
from scheduler.m_etf import m_etf_schedule
from scheduler.peft import peft_schedule
from scheduler.tasks import Tasks, fits

HEATS = (0.01, 0.03, 0.1)
"""First temperatures of coolings, in turn, as a share of the makespan; all start from the best."""
COLDEST = 0.001
"""Temperature of the descent before the first cooling, likewise."""
COOLING = 1 / 30
"""Last temperature of a cooling as a share of its first."""
FIRST_MOVES_PER_TASK = 25
"""Length of the first cooling; each is twice as long as the one before."""
MOVES_PER_TASK = 6000
"""Of all coolings together."""
LEAST_MOVES_PER_TASK = 2
"""Length of a descent before the first cooling, which tells how fast moves are."""
TASKS_PER_CALL = 10_000
"""Tasks simulated between two looks at the clock: a millisecond or two."""
LEAST_MOVES_PER_CALL = 100


def makespan_of(tasks: Tasks, device: Ints, order: Ints) -> float:
    """Makespan (s) of tasks on their devices in an order."""
    scratch = np.zeros(len(order)), np.zeros(len(order), dtype=np.int64)
    return float(simulate(tasks, device, order, np.zeros_like(tasks.w), np.inf, *scratch))


def best_start(tasks: Tasks) -> tuple[Ints, Ints] | None:
    """Device and order of the tasks by the best list schedule, or on one device; None: none fits.

    m-SCT is left out: its linear programme takes longer than all others.
    """
    n, d = tasks.w.shape
    found = [
        (device, np.lexsort((np.arange(n), start)))
        for schedule in (heft_schedule, cpop_schedule, peft_schedule, m_etf_schedule)
        for device, start in [schedule(tasks)]
    ]
    found += [(np.full(n, p), np.arange(n)) for p in range(d)]
    found = [pair for pair in found if fits(tasks, pair[0])]
    return min(found, key=lambda pair: makespan_of(tasks, *pair), default=None)


def improve_schedule(
    tasks: Tasks, device: Ints, order: Ints, deadline_s: float, bound_s: float = 0.0, seed: int = 0
) -> tuple[Ints, Ints]:
    """Device and order of the tasks after annealing from a schedule.

    Every cooling starts from the best so far; one that the next could not follow before the
    deadline (of `time.perf_counter`) lasts until then. The same for the same seed if the deadline
    is far; ends early at the bound.
    """
    n, best = len(order), (device.copy(), order.copy())
    value, tail = makespan_of(tasks, device, order), tails(tasks)
    chunk = max(LEAST_MOVES_PER_CALL, TASKS_PER_CALL // n)
    left, moves, heat = MOVES_PER_TASK * n, LEAST_MOVES_PER_TASK * n, COLDEST
    cooling, done, began_s = 0, 0, time.perf_counter()
    while left > 0 and value < np.inf:
        now, calls = (best[0].copy(), best[1].copy()), -(-moves // chunk)
        for call in range(calls):
            if value <= bound_s * (1 + 1e-9):
                return best
            hot, cold = (value * heat * COOLING ** ((call + k) / calls) for k in (0, 1))
            seed, done = seed + 1, done + moves // calls
            value = anneal(tasks, now, best, value, tail, moves // calls, hot, cold, seed)
            if time.perf_counter() > deadline_s:
                return best
        spent_s = time.perf_counter() - began_s
        affordable = int((deadline_s - began_s - spent_s) / spent_s * done)
        left, heat = left - moves, HEATS[cooling % len(HEATS)]
        moves = FIRST_MOVES_PER_TASK * n * 2**cooling
        if affordable < 3 * moves:
            moves = max(affordable, 1)
        cooling += 1
    return best
