"""The best contiguous split of a linear order into pipeline stages.

Source: the interval dynamic programme of PipeDream (Narayanan et al., SOSP 2019, section 3.1,
doi:10.1145/3341301.3359646), without replicated stages, for unequal devices and links: the state
holds how many devices of each kind are used, and which kind came last.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import isqrt, prod

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.evaluation.evaluate import excess_bytes, in_flight_of
from scheduler.evaluation.timeline import slowdown
from scheduler.list_scheduling.tasks import MEMORY_ROUNDS
from scheduler.plan import cut_stages
from scheduler.problem import Placement, Problem
from scheduler.throughput.contract import contract
from scheduler.throughput.cuts import MAX_CUTS, Cuts, above, cuts_of
from scheduler.throughput.even_split import sequences, split_evenly
from scheduler.throughput.orders import late, narrow

MOST_STEPS = 3e8
"""Pairs of cuts times transitions, about a second; more kinds of devices get fewer cuts."""
MOST_TRANSITIONS = 60_000
"""Transitions above which the order is split over a few sequences of devices instead."""
NO_SPLIT = "no contiguous split fits the devices' memory, pins and links"

State = tuple[tuple[int, ...], int]
"""Devices used of each kind, and the kind of the last stage (-1 before the first)."""


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

    For throughput and cost as it runs (`slowdown`).

    Where activations do not fit, what is missing is taken from the limit of all devices of the
    kind and all is done again. The last placement is returned even so: the plan's own check words
    the refusal.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    arrays, names = problem.arrays, np.array(problem.costs.devices)
    ops = [op.name for op in problem.graph.ops]
    placement: Placement = {}
    for _ in range(MEMORY_ROUNDS):
        try:
            splits = order_splits(contract(arrays, arrays.unit))
        except InfeasibleError:
            if not placement:
                raise
            break
        found = [names[split[arrays.unit]].tolist() for split in splits]
        placements = [dict(zip(ops, devices, strict=True)) for devices in found]
        placement = min(placements, key=partial(_as_it_runs, problem))
        excess = excess_bytes(problem, placement)
        if not excess.any():
            break
        for group in kinds(arrays):
            excess[group] = excess[group].max()
        arrays = replace(arrays, limit_bytes=arrays.limit_bytes - 1.05 * excess)
    return placement


def _as_it_runs(problem: Problem, placement: Placement) -> float:
    """The largest load of a split in steady state, or more where stages wait for each other."""
    device = np.array([problem.device_index[placement[op.name]] for op in problem.graph.ops])
    load_s = float(problem.arrays.loads(device).max())
    if problem.objective == "latency" or not load_s < np.inf:
        return load_s
    stages = cut_stages(problem.graph, placement)
    return load_s * slowdown(problem, stages, in_flight_of(problem, stages))


def best_order_split(arrays: Arrays) -> Ints:
    """(num_ops,) devices of the split of `order_splits` with the least load.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    return min(order_splits(arrays), key=lambda device: float(arrays.loads(device).max()))


def order_splits(arrays: Arrays) -> list[Ints]:
    """(num_ops,) devices of the best splits of three linear orders: given, late and narrow.

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
    return splits


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
                    load = load + above(held[order], limit, cuts.positions)
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
