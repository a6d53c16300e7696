"""m-ETF: earliest task first, with memory limits.

Source: Jeon, Cai, Srivastava, Jiang, Ke, Meng, Xie, Gupta, "Baechi: fast device placement of
machine learning graphs", ACM SoCC 2020, section 3.1, doi:10.1145/3419111.3421302; after Hwang,
Chow, Anger, Lee, "Scheduling precedence graphs in systems with interprocessor communication
times", SIAM J. Comput. 18(2), 1989, doi:10.1137/0218016.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.list_scheduling.linked import linked_seconds, take
from scheduler.list_scheduling.tasks import Tasks, hold, move_s, need_bytes, within_memory
from scheduler.problem import Placement, Problem

WINDOW = 128
"""Ready tasks, those ready longest, among which the next one is chosen."""


@numba.njit(cache=True)
def earliest_task(tasks: Tasks, favourite: Ints) -> tuple[Ints, Floats]:
    """Again and again, start the (ready task, device) that can start first; ties: in order.

    The same task on several devices: where it ends first. `favourite` (n,): child of each task, or
    -1, for which its device is kept during the longest transfer between the two, but for urgent
    tasks, which might start on any device then. A device without memory for the task's unit is
    passed over; what fits nowhere goes where most is free. O(tasks x WINDOW x devices).
    """
    n, d = tasks.w.shape
    w, has_gaps = linked_seconds(tasks)
    free = np.zeros(d)
    awake, child = np.zeros(d), np.full(d, -1)
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    of_unit, able = np.full(len(tasks.own_bytes), -1), np.zeros(d, dtype=np.bool_)
    device, start, finish = np.full(n, -1), np.zeros(n), np.zeros(n)
    data = np.zeros((n, d))
    missing = np.empty(n, dtype=np.int64)
    ready, head, num = np.empty(n, dtype=np.int64), 0, 0
    for i in range(n):
        missing[i] = tasks.ins_start[i + 1] - tasks.ins_start[i]
        if missing[i] == 0:
            ready[num] = i
            num += 1
    for _ in range(n):
        best, best_end, first, slot, at = np.inf, np.inf, n, -1, -1
        for k in range(head, min(num, head + WINDOW)):
            i = ready[k]
            u = tasks.unit[i]
            urgent = 0.0
            for p in range(d):
                able[p] = np.isfinite(w[i, p]) and of_unit[u] in (-1, p)
                if able[p] and of_unit[u] < 0:
                    able[p] = need_bytes(tasks, held, u, p) <= tasks.limit_bytes[p] - used[p]
                if able[p]:
                    urgent = max(urgent, free[p], data[i, p])
            for p in range(d):
                if not able[p]:
                    continue
                s = max(free[p], data[i, p])
                if child[p] >= 0 and child[p] != i and device[child[p]] < 0:
                    s = max(s, min(awake[p], urgent))
                end = s + w[i, p]
                if s < best or (s == best and (i < first or (i == first and end < best_end))):
                    best, best_end, first, slot, at = s, end, i, k, p
        if at < 0:
            slot = head
            i = ready[head]
            at = of_unit[tasks.unit[i]]
            for p in range(d):
                more = at < 0 or tasks.limit_bytes[p] - used[p] > tasks.limit_bytes[at] - used[at]
                if of_unit[tasks.unit[i]] < 0 and np.isfinite(w[i, p]) and more:
                    at = p
            at = max(at, 0)
            best = free[at]
            for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
                best = max(best, finish[tasks.producer[tasks.ins[k]]])
            best_end = best + (w[i, at] if np.isfinite(w[i, at]) else 0.0)
        i = ready[slot]
        for k in range(slot, head, -1):
            ready[k] = ready[k - 1]
        head += 1
        if of_unit[tasks.unit[i]] < 0:
            of_unit[tasks.unit[i]] = at
            hold(tasks, held, used, tasks.unit[i], at, 1)
            has_gaps = has_gaps and take(tasks, w, tasks.unit[i], at)
        device[i], start[i], finish[i] = at, best, best_end
        free[at] = best_end
        child[at], awake[at] = favourite[i], best_end
        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[k]
            away = 0.0
            for q in range(d):
                if tasks.medium[at, q] >= 0:
                    away = max(away, move_s(tasks, t, at, q))
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                if j == favourite[i]:
                    awake[at] = max(awake[at], best_end + away)
                for q in range(d):
                    data[j, q] = max(data[j, q], best_end + move_s(tasks, t, at, q))
                missing[j] -= 1
                if missing[j] == 0:
                    ready[num] = j
                    num += 1
    return device, start


@numba.njit(cache=True)
def m_etf_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task by m-ETF."""
    return earliest_task(tasks, np.full(len(tasks.w), -1))


def m_etf(problem: Problem) -> Placement:
    """Place by m-ETF."""
    return within_memory(problem, m_etf_schedule)
