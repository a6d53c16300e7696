"""Longest paths to and from every task, transfers included, compiled."""

import numba
import numpy as np

from scheduler.arrays import Floats
from scheduler.list_scheduling.tasks import Tasks, move_s


@numba.njit(cache=True)
def tails(tasks: Tasks) -> Floats:
    """(n, d) seconds that must follow a task on a device: the longest path, transfers included.

    tail(i, p) = max over readers j of min over q of (move(i, j, p, q) + w(j, q) + tail(j, q));
    where media contend or devices are busy it takes longer. O(edges x devices^2).
    """
    n, d = tasks.w.shape
    serialised = len(tasks.ends_s) > 0
    tail = np.zeros((n, d))
    for i in range(n - 1, -1, -1):
        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[k]
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                for p in range(d):
                    least = np.inf
                    for q in range(d):
                        rest = tasks.w[j, q] + tail[j, q]
                        if p != q and tasks.medium[p, q] < 0:
                            continue
                        if p != q:
                            rest += tasks.ends_s[t, q] if serialised else move_s(tasks, t, p, q)
                        least = min(least, rest)
                    tail[i, p] = max(tail[i, p], least)
    return tail


@numba.njit(cache=True)
def heads(tasks: Tasks) -> Floats:
    """(n, d) seconds until a task has run on a device, at least: the longest path to it.

    Tasks of one unit are on one device.
    head(j, q) = w(j, q) + max over what j reads of min over p of (head(i, p) + move(i, j, p, q)).
    O(edges x devices^2).
    """
    n, d = tasks.w.shape
    head = np.zeros((n, d))
    for j in range(n):
        for q in range(d):
            ready = 0.0
            for k in range(tasks.ins_start[j], tasks.ins_start[j + 1]):
                t = tasks.ins[k]
                i = tasks.producer[t]
                least = np.inf
                for p in range(d):
                    if p == q:
                        least = min(least, head[i, p])
                    elif tasks.medium[p, q] >= 0 and tasks.unit[i] != tasks.unit[j]:
                        least = min(least, head[i, p] + move_s(tasks, t, p, q))
                ready = max(ready, least)
            head[j, q] = ready + tasks.w[j, q]
    return head
