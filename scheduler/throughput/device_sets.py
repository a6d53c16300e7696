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
from scheduler.throughput.orders import hyperedges

MOST_STATES = 300
LIMIT = 2**29
"""Ticks of the load that sets may have."""
OUTSIDE, INSIDE, MIXED, UNKNOWN = range(4)


class Steps(NamedTuple):
    """Transitions of every step: from a state, taking the operator in or not, to a state.

    Attributes:
        order: (n,) operator of each step.
        start: (n + 1,) transitions start[i]:start[i + 1] belong to step i, by rising `dst`.
        op: (transitions,) operator that is decided.
        src, dst, takes: (transitions,) states, and whether the operator joins.
        pays, others_pay: (transitions,) of `Toll`, paid by the set and by the rest.
        row: (n + 1,) row[i] + s is the number of state s before step i, among all states.
        num_states: after all steps together, the one before them included.
    """

    order: Ints
    start: Ints
    op: Ints
    src: Ints
    dst: Ints
    takes: Ints
    pays: Floats
    others_pay: Floats
    row: Ints
    num_states: int

    def costs(self, seconds: Floats, weight: Ints, limit_s: float) -> "Costs":
        """What the set pays and weighs, where operators take `seconds` and weigh `weight`."""
        inside = self.takes == INSIDE
        paid = self.pays + np.where(inside, seconds[self.op], 0.0)
        return Costs.of(paid, np.where(inside, weight[self.op], 0), limit_s)


class Costs(NamedTuple):
    """Costs of every transition in whole numbers, rounded down, so that bounds stay bounds.

    Attributes:
        ticks: (transitions,) of the limit's `LIMIT`; above it a set is left out.
        gain: (transitions,) levels of weight.
        tick_s: seconds of a tick.
    """

    ticks: NDArray[np.int32]
    gain: Ints
    tick_s: float

    @classmethod
    def of(cls, paid_s: Floats, gain: Ints, limit_s: float) -> "Costs":
        """Cut seconds into ticks of a limit."""
        ticks = np.minimum(paid_s * (LIMIT / limit_s), LIMIT + 1)
        return cls(ticks.astype(np.int32), gain, limit_s / LIMIT)


class Layers(NamedTuple):
    """Least ticks of a set by (state, level), and the levels of each state that sets reach."""

    ticks: NDArray[np.int32]
    low: Ints
    high: Ints


def layers_of(num_states: int, levels: int) -> Layers:
    """Room for the values of a dynamic programme."""
    bounds = np.empty((2, num_states), dtype=np.int64)
    return Layers(np.empty((num_states, levels), dtype=np.int32), bounds[0], bounds[1])


class Toll(NamedTuple):
    """What a tensor costs: the set, and the rest of the operators, by its ends.

    Attributes:
        outside: seconds of the rest where the set holds some of the ends but not all.
        inside: seconds of the set in that case.
        abroad: whether it has ends elsewhere too: then each side pays as soon as it holds one.
    """

    outside: float
    inside: float
    abroad: bool = False


def steps_of(arrays: Arrays, device: int, order: Ints, least_s: float = 0.0) -> Steps:
    """Transitions for the sets that one device may hold; tensors below `least_s` are free."""
    paid = arrays.ends_s[:, device] if arrays.serialised else np.zeros(arrays.num_tensors)
    tolls = [Toll(0.0, float(seconds)) for seconds in np.where(paid < least_s, 0.0, paid)]
    return transitions(hyperedges(arrays)[0], tolls, order)


def transitions(pins: list[list[int]], tolls: list[Toll], order: Ints) -> Steps:
    """Transitions over the operators of `order`; each tensor has `pins` among them and a toll.

    Tensors are let go for free where states become too many: that can only lower loads, so that
    bounds stay bounds.
    """
    left = {e: len(mine) for e, mine in enumerate(pins) if max(tolls[e][:2]) > 0}
    nets: dict[int, list[int]] = {u: [] for u in order.tolist()}
    for e in left:
        for u in pins[e]:
            nets[u].append(e)
    opened: list[int] = []
    states: dict[tuple[int, ...], int] = {(): 0}
    rows: list[tuple[int, int, int, int, float, float]] = []
    counts, row = [0], [0, 1]
    for u in order.tolist():
        mine = [e for e in nets[u] if e in left]
        for e in mine:
            left[e] -= 1
        known = set(opened)
        still = [e for e in opened if left[e]] + [e for e in mine if e not in known and left[e]]
        moves = _moves(states, opened, mine, still, tolls)
        while len({key for key, *_ in moves}) > MOST_STATES:
            cheapest = min(range(len(still)), key=lambda k: max(tolls[still[k]][:2]))
            del left[still.pop(cheapest)]
            moves = [(key[:cheapest] + key[cheapest + 1 :], *move) for key, *move in moves]  # type: ignore[misc]
        opened = still
        states = {}
        step = [(u, s, states.setdefault(key, len(states)), *rest) for key, s, *rest in moves]
        rows += sorted(step, key=lambda r: r[2])
        counts.append(len(rows))
        row.append(row[-1] + len(states))
    op, src, dst, takes, pays, others_pay = (np.array(column) for column in zip(*rows, strict=True))
    return Steps(
        order,
        np.array(counts),
        op,
        src,
        dst,
        takes,
        pays.astype(float),
        others_pay.astype(float),
        np.array(row[:-1]),
        row[-1],
    )


def _moves(
    states: dict[tuple[int, ...], int],
    opened: list[int],
    mine: list[int],
    still: list[int],
    tolls: list[Toll],
) -> list[tuple[tuple[int, ...], int, int, float, float]]:
    """(next state's key, state, takes, seconds of the set and of the rest) of one step."""
    first = [e for e in mine if e not in opened]
    place = {e: k for k, e in enumerate([*opened, *first])}
    touched = [(place[e], tolls[e]) for e in mine]
    kept = [place[e] for e in still]
    moves = []
    for key, s in states.items():
        for take in (OUTSIDE, INSIDE):
            side = [*key, *(UNKNOWN for _ in first)]
            pays = [0.0, 0.0]
            for k, toll in touched:
                before = side[k]
                mixed = before == 1 - take
                if toll.abroad:
                    if before == UNKNOWN or mixed:
                        pays[take] += toll[take]
                elif mixed:
                    pays[OUTSIDE] += toll[OUTSIDE]
                    pays[INSIDE] += toll[INSIDE]
                if mixed or before == UNKNOWN:
                    side[k] = MIXED if mixed else take
            new = tuple([side[k] for k in kept])
            moves.append((new, s, take, pays[INSIDE], pays[OUTSIDE]))
    return moves


def least_loads(steps: Steps, costs: Costs, layers: Layers, zero: int) -> Floats:
    """(levels,) least load in seconds of a set of each weight; the empty set is at level `zero`.

    The last level stands for all above; weights below the first count as the first. Infinite where
    every set is above the limit. `layers` receives the values after every step, from which
    `members` reads the sets.
    """
    _fill(steps, costs, layers, zero)
    last = steps.row[len(steps.order)]
    load = np.full(layers.ticks.shape[1], np.inf)
    reached = slice(layers.low[last], layers.high[last] + 1)
    load[reached] = layers.ticks[last, reached]
    load[load > LIMIT] = np.inf
    return load * costs.tick_s


@numba.njit(cache=True)
def _fill(steps: Steps, costs: Costs, layers: Layers, zero: int) -> None:
    ticks, low, high = layers
    top = ticks.shape[1] - 1
    ticks[0, zero] = 0
    low[0] = high[0] = zero
    for i in range(len(steps.order)):
        r = steps.start[i]
        while r < steps.start[i + 1]:
            dst = steps.row[i + 1] + steps.dst[r]
            first, lowest, highest = r, top + 1, -1
            while r < steps.start[i + 1] and steps.dst[r] == steps.dst[first]:
                src = steps.row[i] + steps.src[r]
                if costs.ticks[r] <= LIMIT and low[src] <= high[src]:
                    lowest = min(lowest, min(max(low[src] + costs.gain[r], 0), top))
                    highest = max(highest, min(max(high[src] + costs.gain[r], 0), top))
                r += 1
            ticks[dst, lowest : highest + 1] = LIMIT + 1
            for k in range(first, r):
                src = steps.row[i] + steps.src[k]
                if costs.ticks[k] <= LIMIT and low[src] <= high[src]:
                    here = ticks[src, low[src] : high[src] + 1]
                    _shift(here, ticks[dst], costs.ticks[k], low[src] + costs.gain[k])
            while highest >= lowest and ticks[dst, highest] > LIMIT:
                highest -= 1
            while highest >= lowest and ticks[dst, lowest] > LIMIT:
                lowest += 1
            low[dst], high[dst] = lowest, highest


@numba.njit(cache=True)
def _shift(src: NDArray[np.int32], dst: NDArray[np.int32], add: np.int32, at: int) -> None:
    """dst[at + k] = min(itself, src[k] + add); the ends of dst stand for all beyond them."""
    top = len(dst) - 1
    first = min(max(-at, 0), len(src))
    last = max(min(len(src), top + 1 - at), first)
    here, there = src[first:last], dst[at + first : at + last]
    for k in range(len(here)):
        there[k] = min(there[k], here[k] + add)
    for k in range(first):
        dst[0] = min(dst[0], src[k] + add)
    for k in range(last, len(src)):
        dst[top] = min(dst[top], src[k] + add)


def members(steps: Steps, costs: Costs, level: int, layers: Layers) -> NDArray[np.bool_]:
    """(operators,) the set behind a value that `least_loads` left in `layers`."""
    inside = np.zeros(int(steps.order.max()) + 1, dtype=np.bool_)
    _trace(steps, costs, level, layers, inside)
    return inside


@numba.njit(cache=True)
def _trace(
    steps: Steps, costs: Costs, level: int, layers: Layers, inside: NDArray[np.bool_]
) -> None:
    ticks = layers.ticks
    top = ticks.shape[1] - 1
    q = 0
    for i in range(len(steps.order) - 1, -1, -1):
        value = ticks[steps.row[i + 1] + q, level]
        arrival, found = q, False
        for r in range(steps.start[i], steps.start[i + 1]):
            if steps.dst[r] != arrival or found:
                continue
            src = steps.row[i] + steps.src[r]
            low = high = level - costs.gain[r]
            if level == top:
                high = top
            if level == 0:
                low = 0
            for before in range(max(low, layers.low[src]), min(high, layers.high[src]) + 1):
                if ticks[src, before] + costs.ticks[r] == value:
                    found = True
                    inside[steps.op[r]] = steps.takes[r] == 1
                    q, level = steps.src[r], before
                    break
