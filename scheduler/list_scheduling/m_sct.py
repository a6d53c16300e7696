"""m-SCT: small communication times, with memory limits.

Source: Jeon, Cai, Srivastava, Jiang, Ke, Meng, Xie, Gupta, "Baechi: fast device placement of
machine learning graphs", ACM SoCC 2020, section 3.2, doi:10.1145/3419111.3421302; after Hanen,
Munier, "An approximation algorithm for scheduling dependent tasks on m processors with small
communication delays", ETFA 1995, doi:10.1109/ETFA.1995.496785.
"""

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Floats, Ints
from scheduler.list_scheduling.m_etf import earliest_task
from scheduler.list_scheduling.tasks import Tasks, mean_moves, mean_seconds, tasks_of, within_memory
from scheduler.problem import Placement, Problem

MOST_EDGES = 20_000
"""Edges above which the linear programme would take longer than all other list schedules."""
LONGEST_S = 20.0
"""Seconds that the linear programme may take."""


def favourites(tasks: Tasks) -> Ints:
    """(n,) favourite child of each task, or -1: the one that it is best followed by without delay.

    min w  s.t.  s_i + k_i + c_ij x_ij <= s_j on every edge,  s_i + k_i <= w,
    sum_j x_ij >= |children of i| - 1,  sum_i x_ij >= |parents of j| - 1,  0 <= x <= 1;
    k and c are mean times. j is i's favourite where x_ij < 1/2: of all children, and of all
    parents, one at most.

    Raises:
        InfeasibleError: the programme is too large, or HiGHS did not solve it in time.
    """
    made_by = np.repeat(np.arange(len(tasks.producer)), np.diff(tasks.start))
    n, src, dst = len(tasks.w), tasks.producer[made_by], tasks.reader
    favourite = np.full(n, -1)
    if not len(src):
        return favourite
    if len(src) > MOST_EDGES:
        raise InfeasibleError(f"m_sct solves graphs of up to {MOST_EDGES} edges, not {len(src)}")
    x = _delays(mean_seconds(tasks), mean_moves(tasks)[made_by], src, dst)
    chosen = x < 0.5
    favourite[src[chosen]] = dst[chosen]
    return favourite


def _delays(k: Floats, c: Floats, src: Ints, dst: Ints) -> Floats:
    """(e,) x of the linear programme: near 0 where an edge should cost no transfer."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    n, e = len(k), len(src)
    scale = max(float(k.max()), float(c.max())) or 1.0
    row, one = np.arange(e), np.ones(e)
    before, after = (csr_array((one, (row, ends)), shape=(e, n)) for ends in (src, dst))
    no_w, no_s, no_x = csr_array((e, 1)), csr_array((n, n)), csr_array((n, e))
    delays = csr_array((c / scale, (row, row)), shape=(e, e))
    last = hstack([eye_array(n), no_x, csr_array(-np.ones((n, 1)))])
    a = vstack(
        [
            hstack([before - after, delays, no_w]),
            last,
            hstack([no_s, -before.T, csr_array((n, 1))]),
            hstack([no_s, -after.T, csr_array((n, 1))]),
        ]
    )
    children, parents = np.bincount(src, minlength=n), np.bincount(dst, minlength=n)
    b = [-k[src] / scale, -k / scale, 1.0 - np.maximum(children, 1), 1.0 - np.maximum(parents, 1)]
    solved = linprog(
        np.append(np.zeros(n + e), 1.0),
        A_ub=a.tocsr(),
        b_ub=np.concatenate(b),
        bounds=[(0, None)] * n + [(0, 1)] * e + [(0, None)],
        method="highs",
        options={"time_limit": LONGEST_S},
    )
    if solved.x is None:
        raise InfeasibleError(f"m_sct: its linear programme was not solved: {solved.message}")
    return np.asarray(solved.x[n : n + e])


def m_sct_schedule(tasks: Tasks) -> tuple[Ints, Floats]:
    """Device and start (s) of each task by m-SCT."""
    schedule: tuple[Ints, Floats] = earliest_task(tasks, favourites(tasks))
    return schedule


def m_sct(problem: Problem) -> Placement:
    """Place by m-SCT."""
    favourite = favourites(tasks_of(problem))
    return within_memory(problem, lambda tasks: earliest_task(tasks, favourite))
