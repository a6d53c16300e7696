"""PEFT: predict earliest finish time, a list schedule by an optimistic cost table.

Source: Arabnejad, Barbosa, "List scheduling algorithm for heterogeneous systems by an optimistic
cost table", IEEE TPDS 25(3), 2014, doi:10.1109/TPDS.2013.57.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.list_scheduling.heft import by_rank, earliest_finish
from scheduler.list_scheduling.tasks import Tasks, mean_moves, within_memory
from scheduler.problem import Placement, Problem


@numba.njit(cache=True)
def optimistic_costs(tasks: Tasks) -> Floats:
    """OCT(i, p) = max over successors j of min over q of (OCT(j, q) + w(j, q) + c), equation 3.

    (n, d) seconds; c is the mean transfer time, 0 where q = p.
    """
    n, d = tasks.w.shape
    mean_c, oct_s = mean_moves(tasks), np.zeros((n, d))
    for j in range(n - 1, -1, -1):
        rest = oct_s[j] + tasks.w[j]
        for k in range(tasks.ins_start[j], tasks.ins_start[j + 1]):
            t = tasks.ins[k]
            i = tasks.producer[t]
            away = rest.min() + mean_c[t]
            for p in range(d):
                oct_s[i, p] = max(oct_s[i, p], min(rest[p], away))
    return oct_s


@numba.njit(cache=True)
def peft_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task by PEFT. O(edges x devices + tasks^2)."""
    n, d = tasks.w.shape
    oct_s = optimistic_costs(tasks)
    order = by_rank(tasks, oct_s.sum(axis=1) / d)
    return earliest_finish(tasks, order, oct_s, np.full(n, -1))


def peft(problem: Problem) -> Placement:
    """Place by PEFT."""
    return within_memory(problem, peft_schedule)
