"""Local search for latency: annealing from the best list schedule, within a time limit."""

import time

import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.cpop import cpop_schedule
from scheduler.heft import heft_schedule
from scheduler.latency_anneal import anneal
from scheduler.latency_timeline import simulate, tails
from scheduler.m_etf import m_etf_schedule
from scheduler.peft import peft_schedule
from scheduler.problem import Placement, Problem
from scheduler.tasks import Tasks, hold, within_memory

HEATS = (0.01, 0.03, 0.1)
"""First temperatures of coolings, in turn, as a share of the makespan; all start from the best."""
COOLING = 1 / 30
"""Last temperature of a cooling as a share of its first."""
FIRST_MOVES_PER_TASK = 50
"""Length of the first cooling; each is twice as long as the one before."""
MOVES_PER_TASK = 6000
"""Of all coolings together."""
TASKS_PER_CALL = 200_000
"""Tasks simulated between two looks at the clock."""


def _makespan(tasks: Tasks, device: Ints, order: Ints) -> float:
    start, cause = np.zeros(len(order)), np.zeros(len(order), dtype=np.int64)
    return float(simulate(tasks, device, order, np.zeros_like(tasks.w), np.inf, start, cause))


def _fits(tasks: Tasks, device: Ints) -> bool:
    used, held = (
        np.zeros(tasks.w.shape[1]),
        np.zeros((tasks.w.shape[1], len(tasks.weight_bytes)), dtype=np.int32),
    )
    for u, i in enumerate(tasks.member[tasks.member_start[:-1]].tolist()):
        hold(tasks, held, used, u, device[i], 1)
    runs = np.isfinite(tasks.w[np.arange(len(device)), device]).all()
    return bool(runs and (used <= tasks.limit_bytes).all())


def _starts(tasks: Tasks) -> list[tuple[Ints, Ints]]:
    """(device, order) of the list schedules, and of every device alone."""
    n, d = tasks.w.shape
    found = [
        (device, np.lexsort((np.arange(n), start)))
        for schedule in (heft_schedule, cpop_schedule, peft_schedule, m_etf_schedule)
        for device, start in [schedule(tasks)]
    ]
    return [*found, *((np.full(n, p), np.arange(n)) for p in range(d))]


def search_schedule(
    tasks: Tasks, deadline_s: float, bound_s: float = 0.0, seed: int = 0
) -> tuple[Ints, Floats]:
    """Device and start (s) of each task after annealing from the best list schedule.

    The same for the same seed as long as the deadline (of `time.perf_counter`) does not cut it
    short; ends early at the bound.
    """
    starts = [pair for pair in _starts(tasks) if _fits(tasks, pair[0])]
    if not starts:
        return heft_schedule(tasks)
    device, order = min(starts, key=lambda pair: _makespan(tasks, *pair))
    return improve_schedule(tasks, device, order, deadline_s, bound_s, seed)


def improve_schedule(
    tasks: Tasks, device: Ints, order: Ints, deadline_s: float, bound_s: float = 0.0, seed: int = 0
) -> tuple[Ints, Floats]:
    """As `search_schedule`, from a given schedule (device and order of the tasks)."""
    n, device, order = len(order), device.copy(), order.copy()
    value = _makespan(tasks, device, order)
    tail, chunk = tails(tasks), max(200, TASKS_PER_CALL // n)
    left, moves, cooling = MOVES_PER_TASK * n, FIRST_MOVES_PER_TASK * n, 0
    while left > 0 and value < np.inf:
        heat, calls = HEATS[cooling % len(HEATS)], -(-moves // chunk)
        for call in range(calls):
            if time.perf_counter() > deadline_s or value <= bound_s * (1 + 1e-9):
                return device, np.argsort(order).astype(float)
            hot, cold = (value * heat * COOLING ** ((call + k) / calls) for k in (0, 1))
            seed += 1
            value = anneal(tasks, device, order, tail, moves // calls, hot, cold, seed)
        left, moves, cooling = left - moves, 2 * moves, cooling + 1
    return device, np.argsort(order).astype(float)


def latency_search(problem: Problem, deadline_s: float, bound_s: float = 0.0) -> Placement:
    """Place by annealing from the best list schedule until the deadline (`time.perf_counter`)."""
    return within_memory(problem, lambda tasks: search_schedule(tasks, deadline_s, bound_s))
