"""Candidate cuts of a linear order, and what pipeline stages between them cost."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints

MAX_CUTS = 700


@dataclass(frozen=True)
class Cuts:
    """Candidate cuts of an order; a cut at i separates what stands before i from the rest.

    Attributes:
        positions: (c,) of the candidates.
        load: (kinds, c, c) seconds of a stage between two cuts on a device of a kind; infinite
            where it cannot be.
        carried: (kinds, kinds, c) seconds of a link for all tensors that cross a cut, by the
            kinds before and after it. Zero where devices pay for transfers (`load` holds it).
    """

    positions: Ints
    load: Floats
    carried: Floats


def cuts_of(arrays: Arrays, order: Ints, groups: list[list[int]], most: int = MAX_CUTS) -> Cuts:
    """At most `most` candidate cuts of an order, and what stages between them cost."""
    n = arrays.num_ops
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    first, last = _ends_of_tensors(arrays, place)
    positions = _candidates(arrays, first, last, most)
    c = len(positions)
    load = np.zeros((len(groups), c, c))
    for g, group in enumerate(groups):
        device = group[0]
        seconds = arrays.seconds[order, device]
        never = ~np.isfinite(seconds)
        load[g] = between(np.where(never, 0.0, seconds), positions)
        load[g] += above(never.astype(float), 0.5, positions)
        load[g] += above(arrays.op_bytes[order], arrays.limit_bytes[device], positions)
        if arrays.serialised:
            load[g] += _cut_seconds(arrays, place, arrays.ends_s[:, device], positions)
        load[g][np.tril_indices(c, -1)] = np.inf
    carried = np.zeros((len(groups), len(groups), c))
    if not arrays.serialised:
        for (a, src), (b, dst) in product(enumerate(groups), repeat=2):
            p = src[0]
            q = next((q for q in reversed(dst) if q != p), p)
            if arrays.medium[p, q] < 0 and p != q:
                carried[a, b] = np.inf
            elif p != q:
                moved = arrays.transfer_s(np.arange(arrays.num_tensors), p, q)
                carried[a, b] = _crossing(first, last, moved, n)[positions]
    return Cuts(positions, load, carried)


def between(amount: Floats, positions: Ints) -> Floats:
    """(c, c) sum of the amounts, in order, of what stands between two cuts."""
    prefix = np.append(0.0, amount.cumsum())[positions]
    return np.asarray(prefix[None, :] - prefix[:, None])


def above(amount: Floats, limit: float, positions: Ints) -> Floats:
    """(c, c) infinite where the sum between two cuts exceeds a limit, else 0."""
    return np.where(between(amount, positions) > limit, np.inf, 0.0)


def _ends_of_tensors(arrays: Arrays, place: Ints) -> tuple[Ints, Ints]:
    """First and last place in the order of the operators that make or read each tensor."""
    first = place[arrays.producer].copy()
    last = first.copy()
    np.minimum.at(first, arrays.edge_tensor, place[arrays.reader])
    np.maximum.at(last, arrays.edge_tensor, place[arrays.reader])
    return first, last


def _crossing(first: Ints, last: Ints, amount: Floats, n: int) -> Floats:
    """(n + 1,) sum of the amounts of the tensors that cross a cut before each place."""
    change = np.bincount(first + 1, amount, n + 2) - np.bincount(last + 1, amount, n + 2)
    return change.cumsum()[: n + 1]


def _candidates(arrays: Arrays, first: Ints, last: Ints, most: int) -> Ints:
    """All cuts, or of each of `most` buckets the one that the least crosses."""
    n = arrays.num_ops
    if n <= most:
        return np.arange(n + 1)
    amount = arrays.ends_s.max(axis=1) if arrays.serialised else arrays.num_bytes
    crossing = _crossing(first, last, amount, n)
    buckets = np.array_split(np.arange(1, n), most - 2)
    return np.array([0, *(b[crossing[b].argmin()] for b in buckets), n])


def _cut_seconds(arrays: Arrays, place: Ints, ends_s: Floats, positions: Ints) -> Floats:
    """(c, c) seconds that a stage between two cuts pays for tensors with one end outside.

    A tensor costs its `ends_s` unless the stage holds all operators that make or read it, or
    none: the stage [i, j) holds none of those at sorted places p_1 < ... < p_m iff, for some k,
    p_k < i and j <= p_(k + 1) (p_0 = -1, p_(m + 1) = n), and all iff i <= p_1 and p_m < j.
    """
    n, t = arrays.num_ops, np.arange(arrays.num_tensors)
    tensor = np.concatenate([t, arrays.edge_tensor])
    at = np.concatenate([place[arrays.producer], place[arrays.reader]])
    order = np.lexsort((at, tensor))
    tensor, at = tensor[order], at[order]
    c = len(positions)
    free = np.zeros((c + 1, c + 1))
    is_first = np.append(True, tensor[1:] != tensor[:-1])
    is_last = np.append(is_first[1:], True)
    before = np.where(is_first, -1, np.append(-1, at[:-1]))
    pairs = [(before, at, tensor), (at[is_last], np.full(is_last.sum(), n), tensor[is_last])]
    for low, high, which in pairs:  # none: low < i, j <= high
        i = np.searchsorted(positions, low + 1)
        j = np.searchsorted(positions, high, side="right")
        np.add.at(free, (np.asarray(i), np.zeros_like(i)), ends_s[which])
        np.add.at(free, (np.asarray(i), np.asarray(j)), -ends_s[which])
    low = np.searchsorted(positions, at[is_first], side="right")  # all: i <= p_1, p_m < j
    high = np.searchsorted(positions, at[is_last] + 1)
    np.add.at(free, (np.zeros_like(high), np.asarray(high)), ends_s[tensor[is_last]])
    np.add.at(free, (np.asarray(low), np.asarray(high)), -ends_s[tensor[is_last]])
    free = free.cumsum(axis=0).cumsum(axis=1)[:c, :c]
    return np.asarray(np.maximum(ends_s.sum() - free, 0.0))
