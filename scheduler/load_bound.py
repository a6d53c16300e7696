"""A lower bound on the largest device load: operators may be cut in pieces and sent for free.

min z  s.t.  sum_d x[u,d] = 1,  sum_u seconds[u,d] x[u,d] <= z,  sum_u bytes[u] x[u,d] <= limit[d],
x >= 0 (a linear programme over colocation classes u). By its dual, max over y, l >= 0 with
sum_d y[d] = 1 of

    f(y, l) = sum_u min_d (y[d] seconds[u,d] + l[d] bytes[u]) - sum_d l[d] limit[d]

Every (y, l) gives a bound, and devices that are alike share theirs. Each f(y, l) is one cutting
plane.

Source: Kelley, "The cutting-plane method for solving convex programs", J. SIAM 8(4), 1960,
doi:10.1137/0108053.
"""

from typing import NamedTuple

import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.problem import Problem

MOST_CUTS = 200
"""Cutting planes, whose bounds hold however few there are."""
CUT_TOLERANCE = 1e-7
"""Relative distance from the best bound at which cutting stops."""
DEAREST_BYTE = 1000.0
"""Largest price of a device's whole memory, as a multiple of the bound without memory."""
ROUNDING = 1e-12


class Kinds(NamedTuple):
    """u colocation classes, k kinds of devices.

    Attributes:
        seconds: (u, k), infinite where a device may not run or cannot hold the class.
        held_bytes: (u,).
        limit_bytes: (k,) of one device; infinite where memory cannot bind.
        alike: (k,) devices of each kind.
    """

    seconds: Floats
    held_bytes: Floats
    limit_bytes: Floats
    alike: Ints

    @property
    def is_short(self) -> np.ndarray:
        """(k,) whether memory may bind."""
        return np.isfinite(self.limit_bytes)


def load_bound(problem: Problem, replicas: bool = False) -> float:
    """Largest device load (s) of a micro-batch at least; with `replicas` classes may be shared out.

    O(classes x kinds of devices) a cut. An optimizer, which runs once per batch, counts with its
    share.
    """
    kinds = _kinds(problem)
    if not kinds.seconds.size:
        return 0.0
    longest = float(kinds.seconds.min(axis=1).max())
    return max(0.0 if replicas else longest, _cut(kinds))


def _kinds(problem: Problem) -> Kinds:
    arrays, seconds = problem.arrays, problem.seconds_per_micro_batch
    u, unit = arrays.num_units, arrays.unit
    if u < arrays.num_ops:
        seconds = np.stack([np.bincount(unit, column, u) for column in seconds.T], axis=1)
    held_bytes = np.bincount(unit, arrays.least_bytes, u).astype(np.float64)
    limit_bytes = np.where(held_bytes.sum() > arrays.limit_bytes, arrays.limit_bytes, np.inf)
    too_large = held_bytes[:, None] * (1 - ROUNDING) > limit_bytes
    fits = np.where(too_large, np.inf, seconds)
    fits_somewhere = np.isfinite(fits).any(axis=1, keepdims=True)
    fits = np.where(fits_somewhere, fits, seconds)
    first: dict[bytes, list[int]] = {}
    for d, column in enumerate(fits.T):
        first.setdefault(column.tobytes() + limit_bytes[d].tobytes(), []).append(d)
    one = [group[0] for group in first.values()]
    alike = np.array([len(group) for group in first.values()])
    return Kinds(fits[:, one], held_bytes, limit_bytes[one], alike)


def _cut(kinds: Kinds) -> float:
    """The best f(y, l) that the cutting planes lead to."""
    u, k = kinds.seconds.shape
    possible, short = np.isfinite(kinds.seconds), kinds.is_short
    finite = np.where(possible, kinds.seconds, 0.0)
    room = np.where(short, kinds.limit_bytes, 0.0)
    y, price = np.full(k, 1 / kinds.alike.sum()), np.zeros(k)
    best, cuts, scale = 0.0, list[Floats](), 0.0
    for _ in range(MOST_CUTS):
        cost = finite * y + kinds.held_bytes[:, None] * price
        cheapest = np.where(possible, cost, np.inf).argmin(axis=1)
        loads = np.bincount(cheapest, finite[np.arange(u), cheapest], k)
        excess = np.bincount(cheapest, kinds.held_bytes, k) - kinds.alike * room
        paid = loads @ y + price @ (kinds.alike * room + np.maximum(excess, 0))
        best = max(best, float(loads @ y + price @ excess - ROUNDING * paid))
        scale = scale or best or 1.0
        cuts.append(np.concatenate([loads / scale, excess[short] / room[short]]))
        point, ceiling = _highest(np.array(cuts), kinds.alike)
        y, price = point[:k], np.zeros(k)
        price[short] = point[k:] * scale / room[short]
        if ceiling * scale <= best * (1 + CUT_TOLERANCE):
            break
    return best


def _highest(cuts: Floats, alike: Ints) -> tuple[Floats, float]:
    """The point under which the lowest of the cuts is highest, and that height."""
    from scipy.optimize import linprog

    k, prices = len(alike), cuts.shape[1] - len(alike)
    solved = linprog(
        np.append(np.zeros(k + prices), -1.0),
        A_ub=np.column_stack([-cuts, np.ones(len(cuts))]),
        b_ub=np.zeros(len(cuts)),
        A_eq=np.concatenate([alike, np.zeros(prices + 1)])[None, :],
        b_eq=[1.0],
        bounds=[(0, None)] * k + [(0, DEAREST_BYTE)] * prices + [(None, None)],
        method="highs",
    )
    if not solved.success:
        return np.concatenate([1 / (k * alike), np.zeros(prices)]), 0.0
    point = np.maximum(solved.x[:-1], 0.0)
    point[:k] /= alike @ point[:k]
    return point, float(solved.x[-1])
