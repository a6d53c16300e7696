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
COOLING = 1 / 30
"""Last temperature of a cooling as a share of its first."""
FIRST_MOVES_PER_TASK = 25
"""Length of the first cooling; each is twice as long as the one before."""
MOVES_PER_TASK = 6000
"""Of all coolings together."""
TASKS_PER_CALL = 200_000
"""Tasks simulated between two looks at the clock."""


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

    The same for the same seed as long as the deadline (of `time.perf_counter`) does not cut it
    short; ends early at the bound.
    """
    n, device, order = len(order), device.copy(), order.copy()
    value = makespan_of(tasks, device, order)
    tail, chunk = tails(tasks), max(200, TASKS_PER_CALL // n)
    left, moves, cooling = MOVES_PER_TASK * n, FIRST_MOVES_PER_TASK * n, 0
    while left > 0 and value < np.inf:
        heat, calls = HEATS[cooling % len(HEATS)], -(-moves // chunk)
        for call in range(calls):
            if time.perf_counter() > deadline_s or value <= bound_s * (1 + 1e-9):
                return device, order
            hot, cold = (value * heat * COOLING ** ((call + k) / calls) for k in (0, 1))
            seed += 1
            value = anneal(tasks, device, order, tail, moves // calls, hot, cold, seed)
        left, moves, cooling = left - moves, 2 * moves, cooling + 1
    return device, order
