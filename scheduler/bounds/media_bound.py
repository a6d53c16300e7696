"""A lower bound on the largest load that counts what media between two sides of devices carry.

The devices are parted into two sides by kind, such as the faster and the slower; see `parting.py`.
"""

from dataclasses import replace

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.bounds.parting import Parting, Sides, parted
from scheduler.problem import Problem
from scheduler.throughput.contract import contract
from scheduler.throughput.even_split import crossing
from scheduler.training.folding import folded

STRETCH = 2000
"""Colocation classes beside each other between which transfers count, on average."""
MOST_SIDES = 3
"""Ways of parting the kinds of devices that are tried."""


def media_bound(problem: Problem) -> float:
    """Largest load (s) of a micro-batch at least, of devices and of the media between two sides.

    0 where devices are alike, or transfers occupy no media.
    """
    return problem.parting.bound_s if problem.parting else 0.0


def best_parting(problem: Problem) -> Parting | None:
    """The way of parting the devices with the highest bound; see `media_bound`."""
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)
    groups: dict[bytes, list[int]] = {}
    for d, column in enumerate(arrays.seconds.T):
        groups.setdefault(column.tobytes(), []).append(d)
    if arrays.serialised or len(groups) < 2 or not arrays.num_tensors:
        return None
    finite = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0).sum(axis=0)
    kinds = sorted(groups.values(), key=lambda kind: float(finite[kind[0]]))
    small = contract(arrays, arrays.unit)
    rank = _rank(problem, small)
    counts = _counts(problem, small, rank)
    splits = range(1, len(kinds))[:MOST_SIDES]
    partings = (parted(Sides.of(small, kinds, k, counts), rank) for k in splits)
    return max(partings, key=lambda parting: parting.bound_s)


def _rank(problem: Problem, small: Arrays) -> Ints:
    """(num_ops,) place of each colocation class, a backward pass beside its forward pass."""
    ops, unit = problem.graph.ops, problem.arrays.unit
    forward = all(op.phase == "forward" for op in ops)
    place = np.full(small.num_ops, np.inf)
    np.minimum.at(place, unit, np.arange(len(ops)) if forward else folded(problem))
    return place.argsort(kind="stable").argsort(kind="stable").astype(np.int64)


def _counts(problem: Problem, small: Arrays, rank: Ints) -> Floats:
    """(t,) 1 for the tensors of a contracted problem whose transfers the bound counts, else 0.

    Left out are those to an optimizer that runs once for all micro-batches, and those between
    stretches of the order, so that each minimum cut stays small: transfers left out lower a bound.
    """
    stretch = _stretches(contract(small, rank))[rank]
    e, often = small.edge_tensor, np.ones(small.num_ops)
    if problem.trains_in_parts:
        once = np.array([op.phase == "optimizer" for op in problem.graph.ops])
        often = 1.0 - np.bincount(problem.arrays.unit, once, small.num_ops).clip(max=1.0)
    counts, away = np.zeros(small.num_tensors), np.zeros(small.num_tensors, dtype=bool)
    np.maximum.at(counts, e, often[small.reader])
    np.logical_or.at(away, e, stretch[small.reader] != stretch[small.producer[e]])
    return np.where(away, 0.0, counts)


def _stretches(ordered: Arrays) -> Ints:
    """(num_ops,) number of the stretch of each operator in order; they part where least crosses."""
    crosses = crossing(ordered, ordered.num_bytes)
    ends, n = [0], ordered.num_ops
    while n - ends[-1] > STRETCH * 3 // 2:
        first = ends[-1] + STRETCH // 2
        ends.append(first + int(crosses[first : first + STRETCH].argmin()))
    return np.searchsorted(ends, np.arange(n), side="right") - 1
