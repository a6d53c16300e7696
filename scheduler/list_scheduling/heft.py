"""HEFT: heterogeneous earliest finish time, with memory, colocation and pins.

Source: Topcuoglu, Hariri, Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13(3), 2002, doi:10.1109/71.993206.
"""

import heapq

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.compiled import lean
from scheduler.list_scheduling.linked import linked_seconds, take
from scheduler.list_scheduling.tasks import (
    Tasks,
    hold,
    mean_moves,
    mean_seconds,
    move_s,
    need_bytes,
    reads_of,
    within_memory,
)
from scheduler.problem import Placement, Problem

LOOK_BACK = 500
"""Busy intervals of a device, the last ones, between which a gap for a task is looked for."""


@numba.njit(cache=True)
def upward_ranks(tasks: Tasks) -> Floats:
    """rank_u(i) = mean w(i) + max over successors j of (mean c(i, j) + rank_u(j)), equation 8."""
    mean_w, mean_c = mean_seconds(tasks), mean_moves(tasks)
    rank = np.zeros(len(mean_w))
    for j in range(len(mean_w) - 1, -1, -1):
        rank[j] += mean_w[j]
        for k in range(tasks.ins_start[j], tasks.ins_start[j + 1]):
            t = tasks.ins[k]
            i = tasks.producer[t]
            rank[i] = max(rank[i], mean_c[t] + rank[j])
    return rank


@lean
def rounded(rank: float) -> float:
    """To 12 significant digits, so that sums in another order tie."""
    scale = 10.0 ** (11 - np.floor(np.log10(rank))) if 0 < rank < np.inf else 1e11
    return np.rint(rank * scale) / scale if max(rank, scale) < np.inf else rank


@numba.njit(cache=True)
def by_rank(tasks: Tasks, rank: Floats) -> Ints:
    """Tasks by falling `rounded` rank among those ready; ties keep the tasks' order."""
    key = np.empty(len(rank))
    for i in range(len(rank)):
        key[i] = -rounded(rank[i])
    return _by_key(tasks, key)


@numba.njit(cache=True)
def _by_key(tasks: Tasks, key: Floats) -> Ints:
    """Tasks by rising key among those ready, a binary heap of (key, task)."""
    n = len(key)
    missing, order, num = reads_of(tasks), np.empty(n, dtype=np.int64), 0
    ready = [(key[i], i) for i in range(n) if missing[i] == 0]
    heapq.heapify(ready)
    while len(ready) > 0:
        i = heapq.heappop(ready)[1]
        order[num] = i
        num += 1
        for t in tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]:
            for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]]:
                missing[j] -= 1
                if missing[j] == 0:
                    heapq.heappush(ready, (key[j], j))
    return order


@numba.njit(cache=True)
def earliest_finish(
    tasks: Tasks, order: Ints, after_s: Floats, wanted: Ints
) -> tuple[Ints, Floats]:
    """Give each task, in order, the device that finishes it first, gaps included (section 4.2).

    `after_s` (n, d) is added to the finish when devices are compared; `wanted` (n,) is a device to
    take where memory allows, or -1. A unit's first task chooses for all; a device without memory
    for the unit is passed over; what fits nowhere goes where most is free.
    """
    n, d = tasks.w.shape
    w, has_gaps = linked_seconds(tasks)
    begin, end = np.zeros((d, n)), np.zeros((d, n))
    count = np.zeros(d, dtype=np.int64)
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    of_unit = np.full(len(tasks.own_bytes), -1)
    device, start, finish = np.full(n, -1), np.zeros(n), np.zeros(n)
    for i in order:
        u = tasks.unit[i]
        best, best_start, at = np.inf, 0.0, -1
        roomiest, most_free = 0, -np.inf
        for p in range(d):
            if not np.isfinite(w[i, p]) or (of_unit[u] >= 0 and of_unit[u] != p):
                continue
            free = tasks.limit_bytes[p] - used[p]
            if free > most_free:
                roomiest, most_free = p, free
            if of_unit[u] < 0 and need_bytes(tasks, held, u, p) > free:
                continue
            ready = _ready(tasks, device, finish, i, p)
            s = _earliest_start(begin[p, : count[p]], end[p, : count[p]], ready, w[i, p])
            value = s + w[i, p] + after_s[i, p]
            if wanted[i] == p and np.isfinite(value):
                value = -np.inf
            if value < best:
                best, best_start, at = value, s, p
        if at < 0:
            at = of_unit[u] if of_unit[u] >= 0 else roomiest
            best_start = end[at, count[at] - 1] if count[at] else 0.0
            for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
                best_start = max(best_start, finish[tasks.producer[tasks.ins[k]]])
        if of_unit[u] < 0:
            of_unit[u] = at
            hold(tasks, held, used, u, at, 1)
            has_gaps = has_gaps and take(tasks, w, u, at)
        device[i], start[i] = at, best_start
        finish[i] = best_start + (w[i, at] if np.isfinite(w[i, at]) else 0.0)
        k = count[at]
        while k > 0 and begin[at, k - 1] > best_start:
            begin[at, k], end[at, k] = begin[at, k - 1], end[at, k - 1]
            k -= 1
        begin[at, k], end[at, k] = start[i], finish[i]
        count[at] += 1
    return device, start


@lean
def _ready(tasks: Tasks, device: Ints, finish: Floats, i: int, p: int) -> float:
    ready = 0.0
    for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
        t = tasks.ins[k]
        j = tasks.producer[t]
        ready = max(ready, finish[j] + move_s(tasks, t, device[j], p))
    return ready


@lean
def _earliest_start(begin: Floats, end: Floats, ready: float, duration: float) -> float:
    """First gap of a device's last busy intervals, from `ready` on, that takes the task."""
    first, earliest = len(begin), max(0, len(begin) - LOOK_BACK)
    while first > earliest and end[first - 1] > ready:
        first -= 1
    start = ready if first == 0 else max(ready, end[first - 1])
    for k in range(first, len(begin)):
        if start + duration <= begin[k]:
            return start
        start = max(start, end[k])
    return start


@numba.njit(cache=True)
def heft_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task by HEFT. O((edges + tasks x LOOK_BACK) x devices)."""
    order = by_rank(tasks, upward_ranks(tasks))
    return earliest_finish(tasks, order, np.zeros_like(tasks.w), np.full(len(tasks.w), -1))


def heft(problem: Problem) -> Placement:
    """Place by HEFT."""
    return within_memory(problem, heft_schedule)
