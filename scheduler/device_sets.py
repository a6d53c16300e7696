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
from scheduler.orders import hyperedges

MOST_STATES = 300
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

    def costs(self, seconds: Floats, weight: Ints) -> tuple[Floats, Ints]:
        """(transitions,) seconds and weight that the set gains; infinite or huge ones are kept."""
        add = self.pays + np.where(self.takes == INSIDE, seconds[self.op], 0.0)
        return add, np.where(self.takes == INSIDE, weight[self.op], 0)


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


def steps_of(arrays: Arrays, device: int, order: Ints) -> Steps:
    """Transitions for the sets that one device may hold."""
    paid = arrays.ends_s[:, device] if arrays.serialised else np.zeros(arrays.num_tensors)
    tolls = [Toll(0.0, float(seconds)) for seconds in paid]
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
    steps: Steps, add: Floats, gain: Ints, limit_s: float, layers: Floats, zero: int
) -> Floats:
    """(levels,) least load of a set of each weight; level `zero` is the weight of the empty set.

    `add`, `gain` (transitions,): seconds and weight of each. The last level stands for all above;
    weights below the first count as the first. Sets above `limit_s` are left out (infinite).
    `layers` (at least num_states, levels) receives the values after every step, from which
    `members` reads the sets.
    """
    top = layers.shape[1] - 1
    layers[0] = np.inf
    layers[0, zero] = 0.0
    for i in range(len(steps.order)):
        last = -1
        for r in range(steps.start[i], steps.start[i + 1]):
            dst = layers[steps.row[i + 1] + steps.dst[r]]
            if steps.dst[r] != last:
                last = steps.dst[r]
                dst[:] = np.inf
            if add[r] <= limit_s:
                src = layers[steps.row[i] + steps.src[r]]
                _shift(src, dst, add[r], min(max(gain[r], -top), top))
    load = layers[steps.row[len(steps.order)]].copy()
    load[load > limit_s] = np.inf
    return load  # type: ignore[no-any-return]


def members(steps: Steps, add: Floats, gain: Ints, level: int, layers: Floats) -> NDArray[np.bool_]:
    """(operators,) the set behind a value that `least_loads` left in `layers`."""
    inside = np.zeros(int(steps.order.max()) + 1, dtype=np.bool_)
    _trace(steps, add, gain, level, layers, inside)
    return inside


@numba.njit(cache=True, error_model="numpy")
def _trace(
    steps: Steps, add: Floats, gain: Ints, level: int, layers: Floats, inside: NDArray[np.bool_]
) -> None:
    top = layers.shape[1] - 1
    q = 0
    for i in range(len(steps.order) - 1, -1, -1):
        value = layers[steps.row[i + 1] + q, level]
        arrival, found = q, False
        for r in range(steps.start[i], steps.start[i + 1]):
            if steps.dst[r] != arrival or found:
                continue
            low = high = level - min(max(gain[r], -top), top)
            if level == top:
                low, high = min(low, top), top
            if level == 0:
                low, high = 0, max(high, 0)
            for before in range(max(low, 0), min(high, top) + 1):
                if layers[steps.row[i] + steps.src[r], before] + add[r] == value:
                    found = True
                    inside[steps.op[r]] = steps.takes[r] == 1
                    q, level = steps.src[r], before
                    break
