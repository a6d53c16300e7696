"""The best split into contiguous stages: an exact dynamic programme over downward-closed sets.

An ideal is a set of operators that holds all predecessors of its members. Stages are the
differences of ideals on a chain from the empty set to all operators:

    {} = J0 < J1 < ... < Jk = all      stage i = Ji - J(i-1)

    value[I, used] = min over J < I, kind g of
                     max(value[J, used - g], link at J, load of I - J on g)

Source: Tarnawski et al., "Efficient algorithms for device placement of DNN graph operators",
NeurIPS 2020, section 5.1 and appendix on training, arXiv:2006.16423. Added here: counts of unequal
devices, and a known plan's load U: a set J is left out where the remaining devices cannot take the
remaining work within U.
"""

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Ints, kinds
from scheduler.problem import Placement, Problem
from scheduler.throughput.contiguous import split_order
from scheduler.throughput.contract import contract, together
from scheduler.throughput.ideal_chain import best_chain, chain_of
from scheduler.throughput.ideal_sets import MOST_OPS, beam, enumerate_ideals, linear_orders

MOST_IDEALS = 60_000
"""Ideals above which the exact programme refuses."""
MOST_BEAM_IDEALS = 30_000


def ideals(problem: Problem) -> Placement:
    """The best contiguous split, exactly.

    Optimal with serialised transfers; with overlapped ones when no tensor skips a stage and the
    links between two kinds of devices are alike. Backward operators count as the forward ones
    that they are colocated with.

    Raises:
        InfeasibleError: no split fits the memory, or there are too many ideals.
    """
    return _placed(problem, MOST_IDEALS, exact=True)


def ideals_beam(problem: Problem) -> Placement:
    """The best split over some ideals only: those of each size that the least crosses.

    Not exact; no worse than `contiguous`.

    Raises:
        InfeasibleError: no split fits the memory.
    """
    return _placed(problem, MOST_BEAM_IDEALS, exact=False)


def _placed(problem: Problem, most: int, exact: bool) -> Placement:
    backward = np.array([op.phase != "forward" for op in problem.graph.ops])
    device = ideal_split(problem.arrays, backward, most, exact)
    names = problem.costs.devices
    return {op.name: names[d] for op, d in zip(problem.graph.ops, device, strict=True)}


def ideal_split(arrays: Arrays, backward: NDArray[np.bool_], most: int, exact: bool) -> Ints:
    """(num_ops,) devices of the best chain of ideals; `backward` (num_ops,): see `precedence`.

    Raises:
        InfeasibleError: no split fits, or (if exact) there are too many ideals.
    """
    edges = precedence(arrays, backward)
    first, before = condense(arrays.unit, edges)
    whole = contract(arrays, first)
    device, value = _known(whole, before)
    merged = together(whole, value) if value < np.inf else whole.unit
    unit, before = condense(merged, first[edges])
    small = contract(whole, unit)
    sets = enumerate_ideals(before, most) if len(before) <= MOST_OPS else None
    if sets is None and exact:
        raise InfeasibleError(f"too many downward-closed sets (limit {most:,}); take ideals_beam")
    if sets is None:
        sets = beam(small, before, most)
    can_run = np.isfinite(small.seconds).any(axis=1).all()
    found = best_chain(chain_of(small, sets), kinds(small), value) if can_run else None
    if found is not None and whole.loads(found[unit]).max() <= value:
        device = found[unit]
    if device is None:
        raise InfeasibleError("no contiguous split fits the devices' memory, pins and links")
    return device[first]


def _known(arrays: Arrays, before: list[list[int]]) -> tuple[Ints | None, float]:
    """The best split of the linear orders that keep precedence, and its largest load."""
    device, value = None, np.inf
    for order in linear_orders(arrays, before):
        try:
            split = split_order(arrays, order)
        except InfeasibleError:
            continue
        load = float(arrays.loads(split).max())
        if load < value:
            device, value = split, load
    return device, value


def precedence(arrays: Arrays, backward: NDArray[np.bool_]) -> Ints:
    """(2, e) operators of which the first may not be in a later stage than the second.

    Edges from backward operators are reversed where that leaves fewer cycles through colocated
    operators: the backward part of a pipeline runs through the devices in the other direction.
    """
    src, dst = arrays.edges
    back = backward[src]
    ways = (np.stack([src, dst]), np.stack([np.where(back, dst, src), np.where(back, src, dst)]))
    return max(ways, key=lambda edges: len(condense(arrays.unit, edges)[1]))


def condense(unit: Ints, edges: Ints) -> tuple[Ints, list[list[int]]]:
    """Units in topological order, those on a cycle made one, and the predecessors of each.

    No contiguous stage can part the units of a cycle.
    """
    a, b = unit[edges]
    n = int(unit.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(n, n))
    label = connected_components(graph, directed=True, connection="strong")[1]
    a, b = label[a], label[b]
    pairs = np.unique(np.stack([a, b])[:, a != b], axis=1)
    num = int(label.max(initial=-1)) + 1
    after: list[list[int]] = [[] for _ in range(num)]
    missing = np.bincount(pairs[1], minlength=num).tolist()
    for p, q in pairs.T.tolist():
        after[p].append(q)
    first = np.full(num, len(unit))
    np.minimum.at(first, label[unit], np.arange(len(unit)))
    ready = [(int(first[u]), u) for u in range(num) if not missing[u]]
    heapq.heapify(ready)
    place = np.empty(num, dtype=np.int64)
    for k in range(num):
        _, u = heapq.heappop(ready)
        place[u] = k
        for v in after[u]:
            missing[v] -= 1
            if not missing[v]:
                heapq.heappush(ready, (int(first[v]), v))
    before: list[list[int]] = [[] for _ in range(num)]
    for p, q in place[pairs].T.tolist():
        before[q].append(p)
    return place[label[unit]].astype(np.int64), before
