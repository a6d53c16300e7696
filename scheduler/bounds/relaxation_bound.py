"""A lower bound on the makespan by a linear programme: tasks may be cut, but not their times.

Whatever S a device runs part of, nothing of S starts before its least head, and the least tail of
S still follows:

    min T  s.t.  sum_d x[u,d] = 1,  sum_u bytes[u] x[u,d] <= limit[d],  x >= 0,
                 head(S) + sum_{i in S} w[i,d] x[i,d] + tail(S) <= T

for S = the tasks of head h and tail t at least, whose rows are added where they are broken. For a
makespan T, x[i,d] is 0 where the longest path through i on d is above T; if the programme then
ends above T, no schedule has makespan T. Of m micro-batches w[i,d] counts m times, on paths, too,
where they pass i: none of them begins before the head, and the tail follows the last.

Source: heads and tails, Carlier, "The one-machine sequencing problem", European Journal of
Operational Research 11(1), 1982, doi:10.1016/S0377-2217(82)80007-6; destructive improvement, Klein
and Scholl, EJOR 112(2), 1999, doi:10.1016/S0377-2217(97)00442-6.
"""

import time
from typing import NamedTuple

import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.bounds.load_bound import Classes, classes_of
from scheduler.bounds.longest_paths import heads, tails
from scheduler.list_scheduling.tasks import Tasks, tasks_of
from scheduler.problem import Problem

LEVELS = 60
"""Heads, and tails, at which sets of tasks begin."""
MOST_ROUNDS, ROWS_PER_ROUND = 12, 40
"""Times that the programme is solved with more rows, and the rows added each time at most."""
BROKEN = 1e-4
"""By how much of T a row must be broken to be added."""
FIRST_STEP, LAST_STEP = 0.01, 0.002
"""Shares of the bound by which a higher makespan is tried."""
PROVEN = 1 + 1e-5
"""Value over bound at which nothing is left to prove."""
LARGEST = 30_000
"""Colocation classes x devices above which the programme takes too long."""


class Windows(NamedTuple):
    """What n tasks of u classes may do within a makespan.

    Attributes:
        w: (n, d) seconds of all micro-batches, infinite where a task may not run.
        able: (u, d) devices that a class may run on.
        level: (n, 2) the last of `at` that the least head and tail of each task reaches.
        at: heads and tails (s) at which sets begin.
    """

    w: Floats
    able: np.ndarray
    level: Ints
    at: tuple[Floats, Floats]

    def sets(self, weight: Floats) -> Floats:
        """(heads, tails) weight of the tasks that begin at each, or after both."""
        total = np.zeros((len(self.at[0]), len(self.at[1])))
        np.add.at(total, (self.level[:, 0], self.level[:, 1]), weight)
        return total[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]


def relaxation_bound(problem: Problem, value_s: float, bound_s: float, deadline_s: float) -> float:
    """Seconds of the makespan at least, from `bound_s` up; `value_s` is that of some plan.

    Each makespan tried is a few linear programmes; ends at a deadline of `time.perf_counter`.
    """
    tasks, classes = tasks_of(problem), classes_of(problem.arrays)
    m = 1 if problem.trains_in_parts else problem.num_micro_batches
    if classes.seconds.size > LARGEST or not bound_s * PROVEN < value_s < np.inf:
        return bound_s
    bound_s = max(bound_s, min(value_s, _least(tasks, classes, m, value_s, deadline_s)))
    step = FIRST_STEP
    while 0 < bound_s * PROVEN < value_s and step >= LAST_STEP:
        if time.perf_counter() > deadline_s:
            break
        trial_s = min(value_s, bound_s * (1 + step))
        found_s = _least(tasks, classes, m, trial_s, deadline_s)
        step = step * 2 if found_s > trial_s else step / 4
        bound_s = max(bound_s, min(found_s, trial_s))
    return bound_s


def _windows(tasks: Tasks, classes: Classes, m: int, makespan_s: float) -> Windows | None:
    """Where tasks may run within a makespan; None where one may run nowhere."""
    able = np.isfinite(classes.seconds)
    while able.any(axis=1).all():
        w = np.where(able[tasks.unit], tasks.w, np.inf)
        head, tail = heads(tasks._replace(w=w)), tails(tasks._replace(w=w))
        still, more = able.copy(), (m - 1) * np.where(np.isfinite(w), w, 0.0)
        np.logical_and.at(still, tasks.unit, head + more + tail <= makespan_s * (1 + 1e-9))
        if (still == able).all():
            least = (head - np.where(np.isfinite(w), w, 0.0)).min(axis=1), tail.min(axis=1)
            share = np.linspace(0, 1, LEVELS)
            at = [np.unique(np.quantile(part, share, method="lower")) for part in least]
            level = [
                np.searchsorted(a, x, side="right") - 1 for a, x in zip(at, least, strict=True)
            ]
            return Windows(m * w, able, np.column_stack(level), (at[0], at[1]))
        able = still
    return None


def _least(tasks: Tasks, classes: Classes, m: int, makespan_s: float, deadline_s: float) -> float:
    """The programme's value (s), infinite where a task has no device; more than that is enough."""
    windows = _windows(tasks, classes, m, makespan_s)
    if windows is None:
        return np.inf
    u, d = windows.able.shape
    share = np.where(np.isfinite(windows.w), windows.w, 0.0) / makespan_s
    filled = windows.sets(np.ones(len(share))) > 0
    ends = np.add.outer(*windows.at) / makespan_s
    known, rows, free, best = set[tuple[int, ...]](), list[Floats](), list[float](), 0.0
    new = [(0, 0, p) for p in range(d)]
    for _ in range(MOST_ROUNDS):
        for h, t, p in new:
            inside = (windows.level >= (h, t)).all(axis=1)
            row = np.zeros((u, d))
            row[:, p] = np.bincount(tasks.unit[inside], share[inside, p], u)
            rows.append(row.ravel())
            free.append(float(ends[h, t]))
        known.update(new)
        left_s = deadline_s - time.perf_counter()
        if left_s <= 0:
            break
        x, value = _solve((np.array(rows), np.array(free)), classes, windows.able, left_s)
        best = max(best, value)
        if x is None or best > 1:
            break
        broken = []
        for p in range(d):
            total = np.where(filled, windows.sets(share[:, p] * x[tasks.unit, p]) + ends, 0.0)
            for k in np.argsort(-total, axis=None)[:ROWS_PER_ROUND].tolist():
                h, t = divmod(k, total.shape[1])
                broken.append((float(total[h, t]), (h, t, p)))
        broken.sort(reverse=True)
        new = [k for value, k in broken if value > best + BROKEN and k not in known]
        new = new[:ROWS_PER_ROUND]
        if not new:
            break
    return best * makespan_s


def _solve(
    cuts: tuple[Floats, Floats], classes: Classes, able: np.ndarray, time_limit_s: float
) -> tuple[Floats | None, float]:
    """The x (u, d) of min T with rows @ x + free <= T, and its value by its dual.

    With weights y of the rows and prices l of memory the bound is sum_k y[k] free[k] - sum_d l[d]
    + sum_u min_d (sum_k y[k] rows[k,u,d] + l[d] bytes[u] / limit[d]).
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    (rows, free), (u, d) = cuts, able.shape
    short = np.flatnonzero(np.isfinite(classes.limit_bytes))
    held = np.zeros((len(short), u, d))
    held[np.arange(len(short)), :, short] = classes.held_bytes / classes.limit_bytes[short, None]
    memory = held.reshape(len(short), u * d)
    a_ub = np.block([[rows, -np.ones((len(rows), 1))], [memory, np.zeros((len(short), 1))]])
    one_each = csr_array(
        (np.ones(u * d), (np.repeat(np.arange(u), d), np.arange(u * d))), (u, u * d + 1)
    )
    most = np.append(able.ravel().astype(float), np.inf)
    solved = linprog(
        np.append(np.zeros(u * d), 1.0),
        A_ub=csr_array(a_ub),
        b_ub=np.concatenate([-free, np.ones(len(short))]),
        A_eq=one_each,
        b_eq=np.ones(u),
        bounds=np.column_stack([np.zeros(u * d + 1), most]),
        method="highs",
        options={"time_limit": time_limit_s},
    )
    if not solved.success:
        return None, 0.0
    y, price = np.split(np.maximum(-solved.ineqlin.marginals, 0.0), [len(rows)])
    y = y / y.sum()
    cost = np.where(able, (y @ rows + price @ memory).reshape(u, d), np.inf)
    return solved.x[:-1].reshape(u, d), float(y @ free - price.sum() + cost.min(axis=1).sum())
