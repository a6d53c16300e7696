"""Downward-closed sets (ideals) of a problem's units as bit sets: all, or a beam of them."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.throughput.orders import hyperedges, late, narrow

Bits = NDArray[np.uint64]

MOST_OPS = 1500
"""Operators, after merging, above which no ideals but the prefixes of linear orders are tried."""


def enumerate_ideals(before: list[list[int]], most: int) -> Bits | None:
    """(c, words) all ideals as bit sets, or None where there are more than `most`.

    Those of the first k units are those of the first k - 1, and, with unit k added, those of them
    that hold all its predecessors. O(units x ideals x words).
    """
    words = max(1, -(-len(before) // 64))
    sets = np.zeros((1, words), dtype=np.uint64)
    for u, needs in enumerate(before):
        need = _bits(needs, words)
        able = sets[((sets & need) == need).all(axis=1)]
        if len(sets) + len(able) > most:
            return None
        sets = np.concatenate([sets, able | _bits([u], words)])
    return sets


def _bits(members: list[int], words: int) -> Bits:
    bits = np.zeros(words, dtype=np.uint64)
    for u in members:
        bits[u >> 6] |= np.uint64(1) << np.uint64(u & 63)
    return bits


def beam(arrays: Arrays, before: list[list[int]], most: int) -> Bits:
    """(c, words) ideals of which the least is open, so many of each size; and all prefixes."""
    n = len(before)
    words = max(1, -(-n // 64))
    width = most // max(n, 1) if n <= MOST_OPS else 0
    sets = [_prefixes(order, words) for order in linear_orders(arrays, before)]
    cost = arrays.ends_s.max(axis=1) if arrays.serialised else arrays.num_bytes
    pins = hyperedges(arrays)[0]
    need = np.stack([_bits(needs, words) for needs in before])
    level = np.zeros((1, words), dtype=np.uint64)
    for _ in range(n if width else 0):
        grown = []
        for u in range(n):
            own = _bits([u], words)
            able = ((level & need[u]) == need[u]).all(axis=1) & ~(level & own).any(axis=1)
            grown.append(level[able] | own)
        level = np.unique(np.concatenate(grown), axis=0)
        if len(level) > width:
            level = level[np.argsort(_open_cost(level, pins, cost, n), kind="stable")[:width]]
        sets.append(level)
    return np.unique(np.concatenate(sets), axis=0)


def linear_orders(arrays: Arrays, before: list[list[int]]) -> list[Ints]:
    """Linear orders of the units that keep their precedence."""
    given = np.arange(arrays.num_ops)
    kept = [given]
    for order in (late(arrays), narrow(arrays)):
        place = np.empty(arrays.num_ops, dtype=np.int64)
        place[order] = given
        if all(place[p] < place[u] for u, needs in enumerate(before) for p in needs):
            kept.append(order)
    return kept


def _prefixes(order: Ints, words: int) -> Bits:
    steps = np.stack([_bits([u], words) for u in order.tolist()])
    prefixes = np.bitwise_or.accumulate(steps, axis=0)
    return np.concatenate([np.zeros((1, words), dtype=np.uint64), prefixes])


def members(sets: Bits, n: int) -> Floats:
    """(c, n) 1 where an ideal holds a unit, else 0."""
    as_bytes = np.ascontiguousarray(sets).view(np.uint8)
    return np.unpackbits(as_bytes, axis=1, bitorder="little")[:, :n].astype(np.float64)


def incidence_of(pins: list[list[int]], n: int) -> csc_array:
    """(n, t) 1 where a unit makes or reads a tensor."""
    t = np.repeat(np.arange(len(pins)), [len(p) for p in pins])
    u = np.array([u for p in pins for u in p], dtype=np.int64)
    return coo_array((np.ones(len(u)), (u, t)), shape=(n, len(pins))).tocsc()


def _open_cost(sets: Bits, pins: list[list[int]], cost: Floats, n: int) -> Floats:
    inside = members(sets, n) @ incidence_of(pins, n)
    size = np.array([len(p) for p in pins])
    return np.asarray(((inside > 0) & (inside < size)) @ cost)
