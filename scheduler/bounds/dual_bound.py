"""The highest bound of a Lagrangian dual by cutting planes: each point that is tried is a bound.

Source: Kelley, "The cutting-plane method for solving convex programs", J. SIAM 8(4), 1960,
doi:10.1137/0108053.
"""

from collections.abc import Callable

import numpy as np

from scheduler.arrays import Floats, Ints

MOST_CUTS = 200
"""Cutting planes, whose bounds hold however few there are."""
CUT_TOLERANCE = 1e-7
"""Relative distance from the best bound at which cutting stops."""
DEAREST_BYTE = 1000.0
"""Largest price of a device's whole memory, as a multiple of the bound without memory."""
ROUNDING = 1e-11
"""Relative error of sums at most."""

Answer = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""From weights of times and prices of bytes (k,) to the times, and the bytes that kinds hold, of
the cheapest placement. Its cost must be a bound on (times @ weights + bytes @ prices) of all."""


def dual_bound(
    answer: Answer, alike: Ints, room: Floats, start: tuple[Floats, Floats, float] | None = None
) -> tuple[float, Floats, Floats]:
    """Max over weights y >= 0, alike @ y = 1, and prices l >= 0 of y @ times + l @ (bytes - room).

    With the y and l that gave it. `room` (k,): bytes of all devices of a kind together, infinite
    where they cannot run out. `start`: y and l to try first, and what no bound is above.
    """
    short = np.isfinite(room)
    y, price, most = start or (np.full(len(alike), 1 / alike.sum()), np.zeros(len(room)), np.inf)
    best, at, cuts, scale = 0.0, (y, price.copy()), list[Floats](), 0.0
    for _ in range(MOST_CUTS):
        times, held = answer(y, price)
        if not np.isfinite(times).all():
            break
        paid, free = times @ y + price @ held, price[short] @ room[short]
        bound = float(paid - free - ROUNDING * (paid + free))
        if bound > best:
            best, at = bound, (y, price.copy())
        if best * (1 + CUT_TOLERANCE) >= most:
            break
        scale = scale or best or 1.0
        cuts.append(np.concatenate([times / scale, held[short] / room[short] - 1]))
        point, ceiling = highest(np.array(cuts), alike)
        y = point[: len(alike)]
        price[short] = point[len(alike) :] * scale / room[short]
        if ceiling * scale <= best * (1 + CUT_TOLERANCE):
            break
    return best, *at


def highest(cuts: Floats, alike: Ints) -> tuple[Floats, float]:
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
