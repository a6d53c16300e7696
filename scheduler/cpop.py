"""CPOP: the critical path on one processor.

Source: Topcuoglu, Hariri, Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13(3), 2002, section 4.3, doi:10.1109/71.993206.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.heft import by_rank, earliest_finish, upward_ranks
from scheduler.problem import Placement, Problem
from scheduler.tasks import Tasks, mean_moves, mean_seconds, within_memory


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


def _critical(tasks: Tasks, priority: Floats) -> list[int]:
    """Tasks from an entry to an exit whose priority is the critical path's length."""
    entries = np.flatnonzero(np.diff(tasks.ins_start) == 0)
    i = int(entries[np.argmax(priority[entries])])
    path = [i]
    while True:
        made = tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]].tolist()
        after = [
            j for t in made for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]].tolist()
        ]
        if not after:
            return path
        i = max(after, key=lambda j: float(f"{priority[j]:.12g}"))
        path.append(i)


def cpop_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task by CPOP. O(edges x devices + tasks^2)."""
    rank_d = _downward(tasks, mean_seconds(tasks), mean_moves(tasks))
    priority = upward_ranks(tasks) + rank_d
    path = _critical(tasks, priority)
    wanted = np.full(len(tasks.w), -1)
    wanted[path] = np.argmin(tasks.w[path].sum(axis=0))
    order = by_rank(tasks, priority)
    schedule: tuple[Ints, Floats] = earliest_finish(tasks, order, np.zeros_like(tasks.w), wanted)
    return schedule


def cpop(problem: Problem) -> Placement:
    """Place by CPOP."""
    return within_memory(problem, cpop_schedule)
