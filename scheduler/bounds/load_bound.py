"""A lower bound on the largest device load: operators may be cut in pieces and sent for free.

min z  s.t.  sum_d x[u,d] = 1,  sum_u seconds[u,d] x[u,d] <= z,  sum_u bytes[u] x[u,d] <= limit[d],
x >= 0 (a linear programme over colocation classes u). By its dual, max over y, l >= 0 with
sum_d y[d] = 1 of

    f(y, l) = sum_u min_d (y[d] seconds[u,d] + l[d] bytes[u]) - sum_d l[d] limit[d]

Every (y, l) gives a bound, and devices that are alike share theirs.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.bounds.dual_bound import ROUNDING, dual_bound
from scheduler.problem import Problem

SMALL = 2_000
"""Classes x kinds of devices up to which the programme is solved at once: some milliseconds."""


class Classes(NamedTuple):
    """u colocation classes, d devices.

    Attributes:
        seconds: (u, d), infinite where a device may not run or cannot hold the class.
        held_bytes: (u,) at least.
        limit_bytes: (d,) infinite where memory cannot run out.
    """

    seconds: Floats
    held_bytes: Floats
    limit_bytes: Floats

    @property
    def kinds(self) -> list[list[int]]:
        """Devices in groups with the same times and the same memory."""
        groups: dict[bytes, list[int]] = {}
        for d, column in enumerate(self.seconds.T):
            key = column.tobytes() + self.limit_bytes[d].tobytes()
            groups.setdefault(key, []).append(d)
        return list(groups.values())


def classes_of(arrays: Arrays) -> Classes:
    """Times and memory of the colocation classes of a problem."""
    seconds, u, unit = arrays.seconds, arrays.num_units, arrays.unit
    if u < arrays.num_ops:
        seconds = np.stack([np.bincount(unit, column, u) for column in seconds.T], axis=1)
    held_bytes = np.bincount(unit, arrays.least_bytes, u).astype(np.float64)
    limit_bytes = np.where(held_bytes.sum() > arrays.limit_bytes, arrays.limit_bytes, np.inf)
    too_large = held_bytes[:, None] * (1 - ROUNDING) > limit_bytes
    fits = np.where(too_large, np.inf, seconds)
    fits_somewhere = np.isfinite(fits).any(axis=1, keepdims=True)
    return Classes(np.where(fits_somewhere, fits, seconds), held_bytes, limit_bytes)


def load_bound(problem: Problem, replicas: bool = False) -> float:
    """Largest device load (s) of a micro-batch at least; with `replicas` classes may be shared out.

    An optimizer, which runs once per batch, counts with its share.
    """
    classes = classes_of(replace(problem.arrays, seconds=problem.seconds_per_micro_batch))
    if not classes.seconds.size:
        return 0.0
    longest = 0.0 if replicas else float(classes.seconds.min(axis=1).max())
    return max(longest, cut_bound(classes)[0])


def cut_bound(classes: Classes) -> tuple[float, Floats, Floats]:
    """The best f(y, l), with the weight and the price of bytes of each device that gave it.

    O(classes x kinds of devices) a cutting plane.
    """
    kinds = classes.kinds
    one, alike = [kind[0] for kind in kinds], np.array([len(kind) for kind in kinds])
    possible = np.isfinite(classes.seconds[:, one])
    finite = np.where(possible, classes.seconds[:, one], 0.0)
    rows, k = np.arange(len(finite)), len(kinds)

    def cheapest(y: Floats, price: Floats) -> tuple[Floats, Floats]:
        cost = finite * y + classes.held_bytes[:, None] * price
        at = np.where(possible, cost, np.inf).argmin(axis=1)
        times, held = np.bincount(at, finite[rows, at], k), np.bincount(at, classes.held_bytes, k)
        return times.astype(np.float64), held.astype(np.float64)

    room = alike * classes.limit_bytes[one]
    start = _solved(np.where(possible, finite, np.inf), classes.held_bytes, alike, room)
    bound, y, price = dual_bound(cheapest, alike, room, start)
    kind_of = np.empty(classes.seconds.shape[1], dtype=np.int64)
    for number, kind in enumerate(kinds):
        kind_of[kind] = number
    return bound, y[kind_of], price[kind_of]


def _solved(
    seconds: Floats, held_bytes: Floats, alike: Ints, room: Floats
) -> tuple[Floats, Floats, float] | None:
    """The weights and prices of the programme's solution and its value; None for large ones."""
    from scipy.optimize import linprog

    u, k = seconds.shape
    if u * k > SMALL or not np.isfinite(seconds).any():
        return None
    short = np.flatnonzero(np.isfinite(room))
    kind = np.tile(np.arange(k), u)
    able, scale = np.isfinite(seconds).ravel(), float(seconds[np.isfinite(seconds)].max()) or 1.0
    load = np.where(able, seconds.ravel(), 0.0) / scale * (kind == np.arange(k)[:, None])
    held = np.repeat(held_bytes, k) * (kind == short[:, None]) / room[short, None]
    solved = linprog(
        np.append(np.zeros(u * k), 1.0),
        A_ub=np.block([[load, -alike[:, None]], [held, np.zeros((len(short), 1))]]),
        b_ub=np.append(np.zeros(k), np.ones(len(short))),
        A_eq=np.column_stack([np.repeat(np.eye(u), k, axis=1), np.zeros(u)]),
        b_eq=np.ones(u),
        bounds=np.column_stack([np.zeros(u * k + 1), np.append(able, np.inf)]),
        method="highs",
    )
    if not solved.success or not solved.fun > 0:
        return None
    dual, price = np.maximum(-solved.ineqlin.marginals, 0.0), np.zeros(k)
    y = dual[:k] / (alike @ dual[:k])
    price[short] = dual[k:] * scale / room[short]
    return y, price, float(solved.fun) * scale
