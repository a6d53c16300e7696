"""The best contiguous split of a linear order into pipeline stages.

Source: the interval dynamic programme of PipeDream (Narayanan et al., SOSP 2019, section 3.1,
doi:10.1145/3341301.3359646), without replicated stages, for unequal devices and links: the state
holds how many devices of each kind are used, and which kind came last.
"""

from dataclasses import dataclass, replace
from itertools import product
from math import isqrt, prod

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.contract import contract
from scheduler.evaluate import excess_bytes
from scheduler.even_split import sequences, split_evenly
from scheduler.orders import late, narrow
from scheduler.problem import Placement, Problem
from scheduler.tasks import MEMORY_ROUNDS

MAX_CUTS = 700
MOST_STEPS = 3e8
"""Pairs of cuts times transitions, about a second; more kinds of devices get fewer cuts."""
MOST_TRANSITIONS = 60_000
"""Transitions above which the order is split over a few sequences of devices instead."""
NO_SPLIT = "no contiguous split fits the devices' memory and pins"

State = tuple[tuple[int, ...], int]
"""Devices used of each kind, and the kind of the last stage (-1 before the first)."""


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


@dataclass(frozen=True)
class Saved:
    """What every operator keeps for the backward pass of its micro-batch.

    Attributes:
        num_bytes: (num_ops,).
        copies: (num_devices + 1,) micro-batches for which the k-th stage keeps it, k from 1.
    """

    num_bytes: Floats
    copies: Ints


def contiguous(problem: Problem) -> Placement:
    """Split the operators, in order, over some of the devices so that the largest load is least.

    Where activations do not fit, what is missing is taken from the limit of all devices of the
    kind and all is done again. The last placement is returned even so: the plan's own check words
    the refusal.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    arrays, names = problem.arrays, problem.costs.devices
    placement: Placement = {}
    for _ in range(MEMORY_ROUNDS):
        try:
            device = best_order_split(contract(arrays, arrays.unit))[arrays.unit]
        except InfeasibleError:
            if not placement:
                raise
            break
        placement = {o.name: names[d] for o, d in zip(problem.graph.ops, device, strict=True)}
        excess = excess_bytes(problem, placement)
        if not excess.any():
            break
        for group in kinds(arrays):
            excess[group] = excess[group].max()
        arrays = replace(arrays, limit_bytes=arrays.limit_bytes - 1.05 * excess)
    return placement


def best_order_split(arrays: Arrays) -> Ints:
    """(num_ops,) devices of the best split over three linear orders: given, late and narrow.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    splits = []
    for order in (np.arange(arrays.num_ops), late(arrays), narrow(arrays)):
        try:
            splits.append(split_order(arrays, order))
        except InfeasibleError as error:
            refusal = error
    if not splits:
        raise refusal
    return min(splits, key=lambda device: float(arrays.loads(device).max()))


def split_order(arrays: Arrays, order: Ints) -> Ints:
    """(num_ops,) device of each operator under the best split of `order` (num_ops,).

    Overlapped transfers are charged at every cut that they cross; serialised ones exactly.
    Optimal over the candidate cuts (all of them up to 700 operators, unless devices are of many
    kinds) when no tensor skips a stage, or transfers are serialised. O(cuts^2 x states x kinds);
    above 9 kinds the best even split over a few sequences of devices, not optimal.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    if transitions(kinds(arrays)) > MOST_TRANSITIONS:
        return _even_split(arrays, order)
    table = split_table(arrays, order)
    if not table.ends:
        raise InfeasibleError(NO_SPLIT)
    return table.devices(min(table.ends, key=lambda end: (table.load(end), sum(end[0]))))


@dataclass(frozen=True)
class SplitTable:
    """What the dynamic programme found out about an order.

    Attributes:
        value: by state, (c,) largest load of a split that ends at a cut.
        parent: by state, the cut before the last stage, and the kind before it.
    """

    order: Ints
    cuts: Cuts
    groups: list[list[int]]
    value: dict[State, Floats]
    parent: dict[State, tuple[Ints, Ints]]

    @property
    def ends(self) -> list[State]:
        """States in which all operators are placed, the best for each choice of devices."""
        best: dict[tuple[int, ...], State] = {}
        for state in self.parent:
            if self.load(state) < (self.load(best[state[0]]) if state[0] in best else np.inf):
                best[state[0]] = state
        return list(best.values())

    def load(self, state: State) -> float:
        """The largest load when all operators are placed."""
        return float(self.value[state][-1])

    def devices(self, state: State) -> Ints:
        """(num_ops,) device of each operator."""
        device = np.zeros(len(self.order), dtype=np.int64)
        j = len(self.cuts.positions) - 1
        while state in self.parent:
            used, last = state
            i, e = int(self.parent[state][0][j]), int(self.parent[state][1][j])
            stage = self.order[self.cuts.positions[i] : self.cuts.positions[j]]
            device[stage] = self.groups[last][used[last] - 1]
            state, j = (tuple(n - (g == last) for g, n in enumerate(used)), e), i
        return device


def transitions(groups: list[list[int]]) -> int:
    """Transitions between states of the dynamic programme, for devices in groups of a kind."""
    return prod(len(group) + 1 for group in groups) * len(groups) ** 2


def split_table(arrays: Arrays, order: Ints, saved: Saved | None = None) -> SplitTable:
    """The best splits of an order over every number of devices of each kind."""
    groups = kinds(arrays)
    most = isqrt(int(MOST_STEPS) // transitions(groups))
    cuts = cuts_of(arrays, order, groups, min(most, MAX_CUTS))
    start = np.full(len(cuts.positions), np.inf)
    start[0] = 0.0
    value: dict[State, Floats] = {((0,) * len(groups), -1): start}
    parent: dict[State, tuple[Ints, Ints]] = {}
    for used in sorted(product(*(range(len(g) + 1) for g in groups)), key=sum):
        for last in range(len(groups)):
            if used[last]:
                before = tuple(n - (g == last) for g, n in enumerate(used))
                load = cuts.load[last]
                if saved:
                    limit = arrays.limit_bytes[groups[last][0]]
                    held = arrays.op_bytes + saved.copies[sum(used)] * saved.num_bytes
                    load = load + _above(held[order], limit, cuts.positions)
                value[used, last], *trail = _extend(cuts, value, before, last, load)
                parent[used, last] = (trail[0], trail[1])
    return SplitTable(order, cuts, groups, value, parent)


def _even_split(arrays: Arrays, order: Ints) -> Ints:
    """(num_ops,) devices of the best split of an order over a few sequences of devices."""
    rank = np.empty(arrays.num_ops, dtype=np.int64)
    rank[order] = np.arange(arrays.num_ops)
    ordered = contract(arrays, rank)
    found = (split_evenly(ordered, sequence) for sequence in sequences(ordered))
    splits = [split for split in found if split is not None]
    if not splits:
        raise InfeasibleError(NO_SPLIT)
    return min(splits, key=lambda device: float(ordered.loads(device).max()))[rank]


def _extend(
    cuts: Cuts, value: dict[State, Floats], before: tuple[int, ...], last: int, load: Floats
) -> tuple[Floats, Ints, Ints]:
    """value[j] = min over i, e of max(value[before, e][i], link, load of the stage from i to j).

    Returns the values, and the i and e that give them.
    """
    num_cuts = len(cuts.positions)
    best, at = np.full(num_cuts, np.inf), np.arange(num_cuts)
    arg, origin = np.zeros(num_cuts, dtype=np.int64), np.full(num_cuts, -1)
    for e in range(-1, len(cuts.load)):
        if (before, e) not in value:
            continue
        arrival = value[before, e]
        if e >= 0:
            arrival = np.maximum(arrival, cuts.carried[e, last])
        total = np.maximum(arrival[:, None], load)
        i = total.argmin(axis=0)
        better = total[i, at] < best
        best[better], arg[better], origin[better] = total[i, at][better], i[better], e
    return best, arg, origin


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
        load[g] = _between(np.where(never, 0.0, seconds), positions)
        load[g] += _above(never.astype(float), 0.5, positions)
        load[g] += _above(arrays.op_bytes[order], arrays.limit_bytes[device], positions)
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


def _between(amount: Floats, positions: Ints) -> Floats:
    """(c, c) sum of the amounts, in order, of what stands between two cuts."""
    prefix = np.append(0.0, amount.cumsum())[positions]
    return np.asarray(prefix[None, :] - prefix[:, None])


def _above(amount: Floats, limit: float, positions: Ints) -> Floats:
    """(c, c) infinite where the sum between two cuts exceeds a limit, else 0."""
    return np.where(_between(amount, positions) > limit, np.inf, 0.0)


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
