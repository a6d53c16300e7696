"""The best set of operators for one device: a dynamic programme over a path decomposition.

A set S pays on a device the times of its operators, and `ends_s` of every tensor that has ends
both in S and outside. Operators are decided one by one in a narrow order; a state says of every
open tensor whether its ends so far are all outside, all inside, or mixed (paid). For integer
weights w (of either sign) the programme gives, for every weight level, the least load of a set of
that weight: exactly, in O(operators x states x levels).
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.orders import hyperedges, narrow

MOST_STATES = 300
OUTSIDE, INSIDE, MIXED = 0, 1, 2


class Steps(NamedTuple):
    """Transitions of every step: from a state, taking the operator in or not, to a state.

    Attributes:
        order: (n,) operator of each step.
        start: (n + 1,) transitions start[i]:start[i + 1] belong to step i.
        src, dst, takes, pays: (transitions,) states, whether the operator joins, seconds paid.
        num_states: (n,) after each step.
    """

    order: Ints
    start: Ints
    src: Ints
    dst: Ints
    takes: Ints
    pays: Floats
    num_states: Ints


def steps_of(arrays: Arrays, device: int) -> Steps:
    """Transitions for a device; tensors are let go for free where states become too many.

    Letting go of a tensor's cost can only lower loads, so that bounds stay bounds.
    """
    pins, nets = hyperedges(arrays)
    paid = arrays.ends_s[:, device] if arrays.serialised else np.zeros(len(pins))
    nets = [[e for e in mine if paid[e] > 0] for mine in nets]
    left = {e: len(pins[e]) for e in range(len(pins)) if paid[e] > 0}
    order = narrow(arrays) if left else np.arange(arrays.num_ops)
    opened: list[int] = []
    states: dict[tuple[int, ...], int] = {(): 0}
    rows: list[tuple[int, int, int, float]] = []
    counts, sizes = [0], []
    for u in order.tolist():
        mine = [e for e in nets[u] if e in left]
        for e in mine:
            left[e] -= 1
        known = set(opened)
        still = [e for e in opened if left[e]] + [e for e in mine if e not in known and left[e]]
        moves = _moves(states, opened, mine, still, paid)
        while len({key for *_, key in moves}) > MOST_STATES:
            cheapest = min(range(len(still)), key=lambda k: paid[still[k]])
            del left[still.pop(cheapest)]
            moves = [(*m, key[:cheapest] + key[cheapest + 1 :]) for *m, key in moves]  # type: ignore[misc]
        opened = still
        new: dict[tuple[int, ...], int] = {}
        for s, take, cost, key in moves:
            rows.append((s, new.setdefault(key, len(new)), take, cost))
        states = new
        counts.append(len(rows))
        sizes.append(len(new))
    src, dst, takes, pays = (np.array(column) for column in zip(*rows, strict=True))
    start, num_states = np.array(counts), np.array(sizes)
    return Steps(order, start, src, dst, takes, pays.astype(np.float64), num_states)


def _moves(
    states: dict[tuple[int, ...], int],
    opened: list[int],
    mine: list[int],
    still: list[int],
    paid: Floats,
) -> list[tuple[int, int, float, tuple[int, ...]]]:
    """(state, takes, seconds, next state's key) of one step."""
    moves = []
    for key, s in states.items():
        for take in (OUTSIDE, INSIDE):
            side = dict(zip(opened, key, strict=True))
            cost = 0.0
            for e in mine:
                before = side.setdefault(e, take)
                if before not in (MIXED, take):
                    side[e] = MIXED
                    cost += float(paid[e])
            moves.append((s, take, cost, tuple(side[e] for e in still)))
    return moves


@numba.njit(cache=True)
def least_loads(
    steps: Steps, seconds: Floats, weight: Ints, limit_s: float, trail: NDArray[np.int16], zero: int
) -> Floats:
    """(levels,) least load of a set of each weight; level `zero` is the weight of the empty set.

    The last level stands for all above; weights below the first count as the first. `trail`
    (n, states, levels) receives the transition that gave each value, -1 where a weight was out
    of range. Sets above `limit_s` are left out (infinite).
    """
    num_levels = trail.shape[2]
    top = num_levels - 1
    now = np.full((trail.shape[1], num_levels), np.inf)
    new = np.full((trail.shape[1], num_levels), np.inf)
    now[0, zero] = 0.0
    for i in range(len(steps.order)):
        u = steps.order[i]
        new[: steps.num_states[i]] = np.inf
        for r in range(steps.start[i], steps.start[i + 1]):
            s, q, k = steps.src[r], steps.dst[r], r - steps.start[i]
            add = steps.pays[r]
            gain = 0
            if steps.takes[r] == 1:
                add += seconds[u]
                gain = min(max(weight[u], -top), top)
            if not add <= limit_s:
                continue
            low, high = max(0, -gain), min(top - 1, top - gain)  # what reached the top stays
            for level in range(low, high + 1):
                load = now[s, level] + add
                if load <= limit_s and load < new[q, level + gain]:
                    new[q, level + gain] = load
                    trail[i, q, level + gain] = k
            for level in range(num_levels):
                if low <= level <= high:
                    continue
                end = 0 if level < low else top
                load = now[s, level] + add
                if load <= limit_s and load < new[q, end]:
                    new[q, end] = load
                    trail[i, q, end] = -1
        now, new = new, now
    return now[0].copy()  # type: ignore[no-any-return]


@numba.njit(cache=True)
def members(steps: Steps, weight: Ints, level: int, trail: NDArray[np.int16], into: Ints) -> bool:
    """Write the set behind a value of `least_loads`; False where its weight was out of range."""
    s = 0
    for i in range(len(steps.order) - 1, -1, -1):
        if level < 0 or level >= trail.shape[2]:
            return False
        k = trail[i, s, level]
        if k < 0:
            return False
        r = steps.start[i] + k
        u = steps.order[i]
        into[u] = steps.takes[r]
        if steps.takes[r] == 1:
            level -= weight[u]
        s = steps.src[r]
    return True
