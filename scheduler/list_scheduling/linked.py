"""Devices that links leave to a task: no schedule may lead where a tensor cannot follow.

Where not every two devices are joined, a task may run on a device only if each task beside it has
a device that is the same or joined to that. What is placed leaves the others fewer.

Source: arc consistency, Mackworth, "Consistency in networks of relations", Artificial Intelligence
8(1), 1977, doi:10.1016/0004-3702(77)90007-8.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.compiled import lean
from scheduler.list_scheduling.tasks import Tasks


@numba.njit(cache=True)
def linked_seconds(tasks: Tasks) -> tuple[Floats, bool]:
    """(n, d) times of the tasks, infinite where links rule a device out; whether they might.

    They do not where every two devices are joined, or where no device would be left to some task.
    """
    n, d = tasks.w.shape
    if _is_joined(tasks.medium, d):
        return tasks.w, False
    w = tasks.w.copy()
    if _narrow(tasks, w, np.arange(n)) < 0:
        return w, True
    return tasks.w, False


@numba.njit(cache=True)
def stranded(tasks: Tasks) -> int:
    """A task to which links leave no device, whatever the others do; -1 where none is known."""
    return _narrow(tasks, tasks.w.copy(), np.arange(len(tasks.w)))


@numba.njit(cache=True)
def take(tasks: Tasks, w: Floats, u: int, p: int) -> bool:
    """Leave unit u device p alone in `w`, and the others what that leaves them; False if nothing.

    Then `w` is as it was without links.
    """
    members = tasks.member[tasks.member_start[u] : tasks.member_start[u + 1]]
    for i in members:
        for q in range(w.shape[1]):
            if q != p:
                w[i, q] = np.inf
    if _narrow(tasks, w, members) < 0:
        return True
    w[:] = tasks.w
    return False


@lean
def _is_joined(medium: Ints, d: int) -> bool:
    for p in range(d):
        for q in range(d):
            if p != q and medium[p, q] < 0:
                return False
    return True


@numba.njit(cache=True)
def _narrow(tasks: Tasks, w: Floats, changed: Ints) -> int:
    """Forbid what tasks that lost devices rule out; a task that has none left, else -1."""
    waits, todo = np.zeros(len(w), dtype=np.bool_), [int(i) for i in changed]
    waits[changed] = True
    while len(todo) > 0:
        i = todo.pop()
        waits[i] = False
        for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
            j = tasks.producer[tasks.ins[k]]
            if not _support(tasks, w, i, j, True, waits, todo):
                return j  # type: ignore[no-any-return]
        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[k]
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                if not _support(tasks, w, i, j, False, waits, todo):
                    return j  # type: ignore[no-any-return]
    return -1


@numba.njit(cache=True)
def _support(
    tasks: Tasks, w: Floats, i: int, j: int, sends: bool, waits: np.ndarray, todo: list[int]
) -> bool:
    """Forbid task j the devices from which none of task i's is reached; whether one is left.

    `sends`: j's tensor goes to i, else i's to j.
    """
    d, left = w.shape[1], False
    for q in range(d):
        if not np.isfinite(w[j, q]):
            continue
        is_reached = False
        for p in range(d):
            joined = p == q or (tasks.medium[q, p] if sends else tasks.medium[p, q]) >= 0
            is_reached = is_reached or (joined and np.isfinite(w[i, p]))
        left = left or is_reached
        if is_reached:
            continue
        u = tasks.unit[j]
        for e in range(tasks.member_start[u], tasks.member_start[u + 1]):
            k = tasks.member[e]
            w[k, q] = np.inf
            if not waits[k]:
                waits[k] = True
                todo.append(k)
    return left
