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

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.orders import hyperedges

MOST_STATES = 300
OUTSIDE, INSIDE, MIXED = 0, 1, 2


class Steps(NamedTuple):
    """Transitions of every step: from a state, taking the operator in or not, to a state.

    Attributes:
        order: (n,) operator of each step.
        start: (n + 1,) transitions start[i]:start[i + 1] belong to step i, by rising `dst`.
        src, dst, takes, pays: (transitions,) states, whether the operator joins, seconds paid.
        row: (n + 1,) row[i] + s is the number of state s before step i, among all states.
        num_states: after all steps together, the one before them included.
    """

    order: Ints
    start: Ints
    src: Ints
    dst: Ints
    takes: Ints
    pays: Floats
    row: Ints
    num_states: int


def steps_of(arrays: Arrays, device: int, order: Ints) -> Steps:
    """Transitions for a device; tensors are let go for free where states become too many.

    Letting go of a tensor's cost can only lower loads, so that bounds stay bounds.
    """
    pins = hyperedges(arrays)[0]
    paid = arrays.ends_s[:, device] if arrays.serialised else np.zeros(len(pins))
    left = {e: len(pins[e]) for e in range(len(pins)) if paid[e] > 0}
    nets: list[list[int]] = [[] for _ in range(arrays.num_ops)]
    for e in left:
        for u in pins[e]:
            nets[u].append(e)
    opened: list[int] = []
    states: dict[tuple[int, ...], int] = {(): 0}
    rows: list[tuple[int, int, int, float]] = []
    counts, row = [0], [0, 1]
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
        mine_rows = [(s, new.setdefault(key, len(new)), take, cost) for s, take, cost, key in moves]
        rows += sorted(mine_rows, key=lambda r: r[1])
        states = new
        counts.append(len(rows))
        row.append(row[-1] + len(new))
    src, dst, takes, pays = (np.array(column) for column in zip(*rows, strict=True))
    return Steps(
        order, np.array(counts), src, dst, takes, pays.astype(float), np.array(row[:-1]), row[-1]
    )


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


@numba.njit(cache=True, error_model="numpy")
def _shift(src: Floats, dst: Floats, add: float, gain: int) -> None:
    """dst[level + gain] = min(itself, src[level] + add); the ends stand for all beyond them."""
    top = len(src) - 1
    low, high = max(0, -gain), min(top, top - gain)  # levels that stay in range
    here, there = src[low:high], dst[low + gain : high + gain]
    for k in range(len(here)):
        there[k] = min(there[k], here[k] + add)
    for level in range(low):
        dst[0] = min(dst[0], src[level] + add)
    for level in range(high, top + 1):
        dst[top] = min(dst[top], src[level] + add)


@numba.njit(cache=True, error_model="numpy")
def least_loads(
    steps: Steps, seconds: Floats, weight: Ints, limit_s: float, layers: Floats, zero: int
) -> Floats:
    """(levels,) least load of a set of each weight; level `zero` is the weight of the empty set.

    The last level stands for all above; weights below the first count as the first. Sets above
    `limit_s` are left out (infinite). `layers` (sum of states + 1, levels) receives the values
    after every step, from which `members` reads the sets.
    """
    top = layers.shape[1] - 1
    layers[0] = np.inf
    layers[0, zero] = 0.0
    for i in range(len(steps.order)):
        u = steps.order[i]
        last = -1
        for r in range(steps.start[i], steps.start[i + 1]):
            dst = layers[steps.row[i + 1] + steps.dst[r]]
            if steps.dst[r] != last:
                last = steps.dst[r]
                dst[:] = np.inf
            add = steps.pays[r] + (seconds[u] if steps.takes[r] else 0.0)
            if add <= limit_s:
                gain = weight[u] if steps.takes[r] else 0
                _shift(layers[steps.row[i] + steps.src[r]], dst, add, min(max(gain, -top), top))
    load = layers[steps.row[len(steps.order)]].copy()
    load[load > limit_s] = np.inf
    return load  # type: ignore[no-any-return]


@numba.njit(cache=True, error_model="numpy")
def members(
    steps: Steps, seconds: Floats, weight: Ints, level: int, layers: Floats, into: Ints
) -> None:
    """Write to `into` (n,) the set (0 or 1) behind a value that `least_loads` left in `layers`."""
    top = layers.shape[1] - 1
    q = 0
    for i in range(len(steps.order) - 1, -1, -1):
        u = steps.order[i]
        value = layers[steps.row[i + 1] + q, level]
        found = False
        for r in range(steps.start[i], steps.start[i + 1]):
            if steps.dst[r] != q or found:
                continue
            add = steps.pays[r] + (seconds[u] if steps.takes[r] else 0.0)
            gain = min(max(weight[u], -top), top) if steps.takes[r] else 0
            low, high = level - gain, level - gain
            if level == top:
                low, high = min(low, top), top
            if level == 0:
                low, high = 0, max(high, 0)
            for before in range(max(low, 0), min(high, top) + 1):
                if not found and layers[steps.row[i] + steps.src[r], before] + add == value:
                    found = True
                    into[u] = steps.takes[r]
                    q, level = steps.src[r], before
                    break
