"""Lower bounds on the makespan from the longest path.

Without memory each operator of a path may run anywhere (`longest_paths.heads`). With memory a
path is a row of runs, each on one device whose memory holds it:

    device a  |o0 o1 o2|                  |o5 o6|
    device b             >o3 o4|      >       >       (> a transfer)

The least time of such a row is a bound, as is the dual of the limits on all bytes of a kind of
devices: operators then pay for the bytes that they hold (`dual_bound`).
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.bounds.dual_bound import ROUNDING, dual_bound
from scheduler.bounds.load_bound import Classes, classes_of
from scheduler.bounds.longest_paths import heads
from scheduler.bounds.modules import series_bound
from scheduler.list_scheduling.tasks import tasks_of
from scheduler.problem import Problem

MOST_PATH_STEPS = 20_000_000
"""Edges x devices^2 up to which the critical path counts transfers, about a second; x devices^3
up to which it goes module by module."""


def path_bound(problem: Problem) -> float:
    """Seconds of the longest path, its transfers and its devices' memory counted."""
    if not problem.graph.ops:
        return 0.0
    path, classes = _longest(problem.arrays), classes_of(problem.arrays)
    bound = max(critical_path(problem), float(problem.seconds.min(axis=1)[path].sum()))
    if np.isfinite(classes.limit_bytes).any():
        bound = max(bound, _within_memory(problem, classes, path))
    return bound


def critical_path(problem: Problem) -> float:
    """Seconds of the longest path with transfers, memory left out; 0 where that takes long."""
    arrays = problem.arrays
    steps = len(arrays.reader) * arrays.num_devices**2
    if steps * arrays.num_devices <= MOST_PATH_STEPS:
        return series_bound(tasks_of(problem))
    if steps > MOST_PATH_STEPS:
        return 0.0
    return float(heads(tasks_of(problem)).min(axis=1).max(initial=0.0))


def _longest(arrays: Arrays) -> Ints:
    """The operators of the longest path if each ran where it is fastest. O(edges log edges)."""
    src, dst = arrays.edges
    by_reader = np.argsort(dst, kind="stable")
    start = np.searchsorted(dst[by_reader], np.arange(arrays.num_ops + 1))
    came = np.full(arrays.num_ops, -1)
    at = _reach(src[by_reader], start, arrays.seconds.min(axis=1), came)
    path = [at]
    while came[path[-1]] >= 0:
        path.append(int(came[path[-1]]))
    return np.array(path[::-1])


@numba.njit(cache=True)
def _reach(src: Ints, start: Ints, seconds: Floats, came: Ints) -> int:
    """Last operator of the longest path; fills `came` with the one before each."""
    end, last = np.zeros(len(seconds)), 0
    for i in range(len(seconds)):
        for e in range(start[i], start[i + 1]):
            if came[i] < 0 or end[src[e]] > end[came[i]]:
                came[i] = src[e]
        end[i] = seconds[i] + (end[came[i]] if came[i] >= 0 else 0.0)
        if end[i] > end[last]:
            last = i
    return last


class Path(NamedTuple):
    """A path of n operators on k kinds of devices.

    Attributes:
        seconds: (n, k), infinite where the kind may not run or cannot hold the operator.
        held_bytes: (n,) of its colocation class, where the path comes to it first.
        move_s: (n, k, k) from the operator before on another device; infinite where none may be.
        earliest: (n, k) where a run on one device that ends with the operator may start.
    """

    seconds: Floats
    held_bytes: Floats
    move_s: Floats
    earliest: Ints


def _within_memory(problem: Problem, classes: Classes, ops: Ints) -> float:
    """The least time of a row of runs, with the best prices of bytes."""
    arrays, kinds = problem.arrays, _kinds(problem.arrays, classes)
    one, unit = [kind[0] for kind in kinds], arrays.unit[ops]
    limit_bytes = classes.limit_bytes[one]
    first = np.unique(unit, return_index=True)[1]
    held_bytes = np.zeros(len(ops))
    held_bytes[first] = classes.held_bytes[unit[first]]
    fits = np.isfinite(classes.seconds[unit][:, one])
    path = Path(
        np.where(fits, problem.seconds[ops][:, one], np.inf),
        held_bytes,
        _moves(arrays, ops, kinds),
        _earliest(unit, classes.held_bytes, limit_bytes),
    )
    alike = np.array([len(kind) for kind in kinds])
    elsewhere = np.setdiff1d(np.arange(arrays.num_units), unit)
    other = np.isfinite(classes.seconds[elsewhere][:, one])

    def least(_: Floats, price: Floats) -> tuple[Floats, Floats]:
        at = np.zeros(len(ops), dtype=np.int64)
        seconds = _least_runs(path, price, at)
        held = np.bincount(at, path.held_bytes, len(kinds))
        cheapest = np.where(other, price, np.inf).argmin(axis=1)
        held += np.bincount(cheapest, classes.held_bytes[elsewhere], len(kinds))
        return np.array([seconds]), held.astype(np.float64)

    return dual_bound(least, np.array([1]), alike * limit_bytes)[0]


def _kinds(arrays: Arrays, classes: Classes) -> list[list[int]]:
    """Devices in groups with the same times, memory, and ends of serialised transfers."""
    if not arrays.serialised:
        return classes.kinds
    groups: dict[bytes, list[int]] = {}
    for group in classes.kinds:
        for d in group:
            key = np.append(arrays.ends_s[:, d], group[0]).tobytes()
            groups.setdefault(key, []).append(d)
    return list(groups.values())


def _moves(arrays: Arrays, ops: Ints, kinds: list[list[int]]) -> Floats:
    """(n, k, k) least seconds between two devices of two kinds, from each operator to the next."""
    n, k = len(ops), len(kinds)
    src, dst = arrays.edges
    place = np.full(arrays.num_ops, -2)
    place[ops] = np.arange(n)
    here = np.flatnonzero((place[src] >= 0) & (place[dst] == place[src] + 1))
    at, tensor = place[dst[here]], arrays.edge_tensor[here]
    together = arrays.unit[src[here]] == arrays.unit[dst[here]]
    move_s = np.zeros((n, k, k))
    for a, first in enumerate(kinds):
        for b, second in enumerate(kinds):
            moved = np.full(len(at), np.inf)
            for p, q in _pairs(arrays, first, second):
                if arrays.serialised:
                    seconds = arrays.ends_s[tensor, p] + arrays.ends_s[tensor, q]
                else:
                    seconds = arrays.transfer_s(tensor, p, q)
                moved = np.minimum(moved, seconds)
            np.maximum.at(move_s[:, a, b], at, np.where(together, np.inf, moved))
    return move_s


def _pairs(arrays: Arrays, first: list[int], second: list[int]) -> list[tuple[int, int]]:
    """Two joined devices of two kinds, one pair for each way in which they may be joined."""
    found: dict[tuple[float, ...], tuple[int, int]] = {}
    for p in first:
        for q in second:
            if p != q and arrays.medium[p, q] >= 0:
                link = (float(arrays.latency_s[p, q]), float(arrays.s_per_byte[p, q]))
                own = (float(p), float(q)) if len(arrays.table_s) and not arrays.serialised else ()
                found.setdefault((*link, *own), (p, q))
    return list(found.values())


@numba.njit(cache=True)
def _earliest(unit: Ints, held_bytes: Floats, limit_bytes: Floats) -> Ints:
    """(n, k) first place from which all classes up to each place fit into one device's memory."""
    n, k = len(unit), len(limit_bytes)
    first = np.empty((n, k), dtype=np.int64)
    for d in range(k):
        count, held, low = np.zeros(len(held_bytes), dtype=np.int64), 0.0, 0
        for i in range(n):
            count[unit[i]] += 1
            if count[unit[i]] == 1:
                held += held_bytes[unit[i]]
            while low < i and held * (1 - ROUNDING) > limit_bytes[d]:
                count[unit[low]] -= 1
                if count[unit[low]] == 0:
                    held -= held_bytes[unit[low]]
                low += 1
            first[i, d] = low
    return first


@numba.njit(cache=True)
def _least_runs(path: Path, price: Floats, at: Ints) -> float:
    """Least seconds of the path where bytes cost `price`; writes the kind of each operator.

    end(i, b) = sum(b, i) + min over starts j of the run of (enter(j, b) - sum(b, j - 1)), with
    enter(j, b) = min over a of (end(j - 1, a) + move(j, a, b)). O(n k^2): the best start is kept
    in a queue of rising values.
    """
    n, k = path.seconds.shape
    total, end = np.zeros(k), np.full((n, k), np.inf)
    start, before = np.zeros((n, k), dtype=np.int64), np.zeros((n, k), dtype=np.int64)
    queue, value = np.empty((k, n), dtype=np.int64), np.empty((k, n))
    low, high = np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64)
    for i in range(n):
        for b in range(k):
            enter = 0.0 if i == 0 else np.inf
            for a in range(k):
                if i > 0 and end[i - 1, a] + path.move_s[i, a, b] < enter:
                    enter, before[i, b] = end[i - 1, a] + path.move_s[i, a, b], a
            if path.seconds[i, b] == np.inf:
                low[b] = high[b] = 0
                continue
            fresh = enter - total[b]
            while high[b] > low[b] and value[b, high[b] - 1] >= fresh:
                high[b] -= 1
            queue[b, high[b]], value[b, high[b]] = i, fresh
            high[b] += 1
            while queue[b, low[b]] < path.earliest[i, b]:
                low[b] += 1
            total[b] += path.seconds[i, b] + price[b] * path.held_bytes[i]
            end[i, b] = total[b] + value[b, low[b]]
            start[i, b] = queue[b, low[b]]
    i, b, seconds = n - 1, int(np.argmin(end[n - 1])), 0.0
    if end[i, b] == np.inf:
        return np.inf
    while i >= 0:
        first = start[i, b]
        for j in range(first, i + 1):
            at[j] = b
            seconds += path.seconds[j, b]
        i, last = first - 1, b
        if i >= 0:
            b = before[first, last]
            seconds += path.move_s[first, b, last]
    return seconds
