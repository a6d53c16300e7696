"""What `auto` runs on graphs that are too large for a search: near linear in the operators."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.baselines.single_device import memory_fill, single_device
from scheduler.large.multilevel import coarse_splits, multilevel
from scheduler.large.two_sides import two_sides
from scheduler.latency.makespan import makespan_of
from scheduler.list_scheduling.cpop import cpop_schedule
from scheduler.list_scheduling.heft import by_rank, heft, heft_schedule, upward_ranks
from scheduler.list_scheduling.m_etf import m_etf_schedule
from scheduler.list_scheduling.peft import peft_schedule
from scheduler.list_scheduling.tasks import (
    Schedule,
    Tasks,
    hold,
    need_bytes,
    tasks_of,
    within_memory,
)
from scheduler.problem import Placement, Problem
from scheduler.throughput.contiguous import contiguous

LARGE = 5000
"""Operators above which `auto` runs only what is near linear in them."""
LARGE_TABLE = 60_000
"""Operators x devices above which it does so, too."""
RIVALS_TABLE = 120_000
"""Operators x devices up to which it also runs what others would, seconds each."""


def is_large(problem: Problem) -> bool:
    """Whether a problem is too large for a search."""
    num_ops, num_devices = problem.costs.seconds.shape
    return bool(num_ops > LARGE or num_ops * num_devices > LARGE_TABLE)


def list_schedules(problem: Problem) -> Placement:
    """Place by the best of HEFT, CPOP, PEFT, m-ETF, fills of devices by speed, and even splits."""
    return within_memory(problem, best_schedule(problem))


def best_schedule(problem: Problem) -> Schedule:
    """The schedule with the least makespan among those that are near linear in the operators."""
    tasks = tasks_of(problem)
    schedules: list[Schedule] = [*SCHEDULES, partial(even_split, problem)]
    return min(schedules, key=lambda schedule: _makespan(tasks, *schedule(tasks)))


def _makespan(tasks: Tasks, device: Ints, start: Floats) -> float:
    return float(makespan_of(tasks, device, np.lexsort((np.arange(len(device)), start))))


def even_split(problem: Problem, tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task under the even split with the least makespan.

    Fewer, faster devices each do more: all sequences of devices are tried.
    """
    arrays = replace(problem.arrays, limit_bytes=tasks.limit_bytes)
    places = [split.projected() for split in coarse_splits(problem, arrays)]
    if not places:
        return fill_schedule(tasks)
    by_upward_rank = by_rank(tasks, upward_ranks(tasks))
    start = np.empty(len(by_upward_rank))
    start[by_upward_rank] = np.arange(len(start))
    return min(((device, start) for device in places), key=lambda pair: _makespan(tasks, *pair))


def fill_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Fill devices with tasks in order, the fastest first; go on when one is full."""
    total_s = np.where(np.isfinite(tasks.w), tasks.w, 0.0).sum(axis=0)
    device = _fill(tasks, np.argsort(total_s, kind="stable"))
    return device, np.arange(len(device), dtype=float)


@numba.njit(cache=True)
def _fill(tasks: Tasks, sequence: Ints) -> Ints:
    n, d = tasks.w.shape
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    of_unit = np.full(len(tasks.own_bytes), -1)
    device = np.empty(n, dtype=np.int64)
    current = 0
    for i in range(n):
        u = tasks.unit[i]
        if of_unit[u] < 0:
            at = -1
            for k in range(current, d):
                p = sequence[k]
                fits = need_bytes(tasks, held, u, p) <= tasks.limit_bytes[p] - used[p]
                if fits and np.isfinite(tasks.w[i, p]):
                    at = p
                    break
                if not fits and k == current and current < d - 1:
                    current += 1
            if at < 0:
                at = sequence[d - 1]
            of_unit[u] = at
            hold(tasks, held, used, u, at, 1)
        device[i] = of_unit[u]
    return device


SCHEDULES: tuple[Schedule, ...] = (
    heft_schedule,
    cpop_schedule,
    peft_schedule,
    m_etf_schedule,
    fill_schedule,
)


def large_algorithms(
    problem: Problem, timed: bool = False
) -> dict[str, Callable[[Problem], Placement]]:
    """The algorithms for a large graph; of devices with the same times and memory, one alone.

    `timed`: a search follows, which starts from the list schedules.
    """
    alone: dict[tuple[bytes, float], str] = {}
    for d, device in enumerate(problem.costs.devices):
        times = problem.seconds[:, d].tobytes()
        alone.setdefault((times, problem.memory_limit_bytes(device)), device)
    found: dict[str, Callable[[Problem], Placement]] = {
        f"single_device:{device}": partial(single_device, device=device)
        for device in alone.values()
    }
    found["memory_fill"] = memory_fill
    small, is_latency = problem.costs.seconds.size <= RIVALS_TABLE, problem.objective == "latency"
    if small or not is_latency:
        found["multilevel"] = multilevel
    if not is_latency and not problem.graph.is_sequential:
        found["two_sides"] = two_sides
    if small:
        found["contiguous"] = contiguous
    if small and not is_latency:
        found["heft"] = heft
    if problem.objective == "latency" and not timed:
        found["list_schedules"] = list_schedules
    return found
