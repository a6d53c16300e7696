"""CPOP: the critical path on one processor.

Source: Topcuoglu, Hariri, Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13(3), 2002, section 4.3, doi:10.1109/71.993206.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.list_scheduling.heft import by_rank, earliest_finish, rounded, upward_ranks
from scheduler.list_scheduling.tasks import Tasks, mean_moves, mean_seconds, within_memory
from scheduler.problem import Placement, Problem


@numba.njit(cache=True)
def _downward(tasks: Tasks, mean_w: Floats, mean_c: Floats) -> Floats:
    """rank_d(i) = max over predecessors j of (rank_d(j) + mean w(j) + mean c(j, i)), eq. 10."""
    rank = np.zeros(len(mean_w))
    for i in range(len(mean_w)):
        for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
            t = tasks.ins[k]
            j = tasks.producer[t]
            rank[i] = max(rank[i], rank[j] + mean_w[j] + mean_c[t])
    return rank


@numba.njit(cache=True)
def _critical_path(tasks: Tasks, priority: Floats) -> list[int]:
    """Tasks from an entry to an exit whose priority is the critical path's length."""
    path, i = [0 for _ in range(0)], -1
    for k in range(len(priority)):
        if tasks.ins_start[k] == tasks.ins_start[k + 1] and (i < 0 or priority[k] > priority[i]):
            i = k
    while i >= 0:
        path.append(i)
        after = -1
        for t in tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]:
            for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]]:
                if after < 0 or rounded(priority[j]) > rounded(priority[after]):
                    after = j
        i = after
    return path


@numba.njit(cache=True)
def cpop_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task by CPOP. O(edges x devices + tasks^2)."""
    rank_d = _downward(tasks, mean_seconds(tasks), mean_moves(tasks))
    priority = upward_ranks(tasks) + rank_d
    wanted, total_s = np.full(len(tasks.w), -1), np.zeros(tasks.w.shape[1])
    path = _critical_path(tasks, priority)
    for i in path:
        total_s += tasks.w[i]
    for i in path:
        wanted[i] = np.argmin(total_s)
    order = by_rank(tasks, priority)
    return earliest_finish(tasks, order, np.zeros_like(tasks.w), wanted)


def cpop(problem: Problem) -> Placement:
    """Place by CPOP."""
    return within_memory(problem, cpop_schedule)
