"""Placement of large graphs for throughput: coarsen, split, refine while un-coarsening.

    fine     o-o-o-o-o-o-o-o-o      project and refine the operators at the boundaries
    coarser  o---o---o---o---o      project and refine
    coarsest o-------o-------o      split the order

Neighbours in a linear order are joined where the cut between them carries most. Every step is
linear in operators and tensor uses, but for a sort; a level has about half the operators of the
one below.

Source: Herrmann et al., "Multilevel Algorithms for Acyclic Partitioning of Directed Acyclic
Graphs", SIAM J. Sci. Comput. 41(4), 2019, doi:10.1137/18M1176865. The coarsest graph is split by
`scheduler/throughput/even_split.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Ints
from scheduler.evaluation.evaluate import excess_bytes
from scheduler.large.refine import refine
from scheduler.list_scheduling.tasks import MEMORY_ROUNDS
from scheduler.problem import Placement, Problem
from scheduler.throughput.contract import contract
from scheduler.throughput.even_split import crossing, sequences, split_evenly
from scheduler.training.folding import folded

COARSEST = 2000
"""Operators at which coarsening ends."""
SHARE = 0.05
"""Largest share of an even load, and of a device's memory, that one joined operator may be."""


@dataclass(frozen=True)
class _Level:
    """A graph whose operators stand in a linear order, and the operator above of each."""

    arrays: Arrays
    above: Ints


def multilevel(problem: Problem) -> Placement:
    """Place by the best split of an order of the operators: as given, or folded (see `folded`).

    Where activations do not fit, what is missing is taken from the device's limit and all is done
    again. The last placement is returned even so: the plan's own check words the refusal.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    arrays = problem.arrays
    names = problem.costs.devices
    for _ in range(MEMORY_ROUNDS):
        splits = coarse_splits(problem, arrays)
        if not splits:
            break
        best = min(splits, key=lambda split: float(split.arrays.loads(split.device).max()))
        device = best.refined()
        placement = {o.name: names[d] for o, d in zip(problem.graph.ops, device, strict=True)}
        excess = excess_bytes(problem, placement)
        if not excess.any():
            return placement
        arrays = replace(arrays, limit_bytes=arrays.limit_bytes - 1.05 * excess)
    if arrays is problem.arrays:
        raise InfeasibleError(
            "no split of the operators' order fits the devices' memory, pins and links"
        )
    return placement


@dataclass(frozen=True)
class CoarseSplit:
    """A split of a coarse graph, and the way back to the operators.

    Attributes:
        arrays: the coarse graph.
        levels: from fine to coarse.
        rank: (num_ops,) operator of the finest level for each of the problem's.
        device: (arrays.num_ops,).
        sequence: devices in the order in which they follow each other.
    """

    arrays: Arrays
    levels: Sequence["_Level"]
    rank: Ints
    device: Ints
    sequence: Ints

    def projected(self) -> Ints:
        """(num_ops,) device of each of the problem's operators, as it is."""
        device = self.device
        for level in reversed(self.levels):
            device = device[level.above]
        return device[self.rank]

    def refined(self) -> Ints:
        """(num_ops,) device of each of the problem's operators, refined at every level."""
        device = self.device
        for level in reversed(self.levels):
            device = refine(level.arrays, device[level.above], self.sequence)
        return device[self.rank]


def coarse_splits(problem: Problem, arrays: Arrays) -> list[CoarseSplit]:
    """Splits of the coarse graph for every order of operators and every sequence of devices."""
    orders = [np.arange(arrays.num_ops, dtype=float)]
    if any(op.phase != "forward" for op in problem.graph.ops):
        orders.append(folded(problem))
    found = []
    for place in orders:
        first = np.full(arrays.num_units, np.inf)
        np.minimum.at(first, arrays.unit, place)
        rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")[arrays.unit]
        coarsest, levels = _coarsen(contract(arrays, rank))
        for sequence in sequences(coarsest):
            split = split_evenly(coarsest, sequence)
            if split is not None:
                device = refine(coarsest, split, sequence)
                found.append(CoarseSplit(coarsest, levels, rank, device, sequence))
    return found


def _coarsen(arrays: Arrays) -> tuple[Arrays, list[_Level]]:
    levels: list[_Level] = []
    while arrays.num_ops > COARSEST:
        above = _pair(arrays)
        if above[-1] + 1 > 0.9 * arrays.num_ops:
            break
        levels.append(_Level(arrays, above))
        arrays = contract(arrays, above)
    return arrays, levels


def _pair(arrays: Arrays) -> Ints:
    """(num_ops,) group of each operator: neighbours in order, where most crosses between them."""
    fastest = arrays.seconds.min(axis=1)
    limit_s = SHARE * fastest.sum() / arrays.num_devices
    limit_bytes = SHARE * arrays.limit_bytes.min()
    possible = np.isfinite(arrays.seconds)
    may = (possible[1:] & possible[:-1]).any(axis=1)
    may &= fastest[1:] + fastest[:-1] <= limit_s
    may &= arrays.op_bytes[1:] + arrays.op_bytes[:-1] <= limit_bytes
    carried = crossing(arrays, arrays.num_bytes)[1:-1]
    return _matched(np.argsort(-carried, kind="stable"), may)


@numba.njit(cache=True)
def _matched(cuts: Ints, may: np.ndarray) -> Ints:
    """Groups of one or two neighbours: a cut joins its two sides if both are alone."""
    n = len(cuts) + 1
    joined = np.zeros(n + 1, dtype=np.bool_)  # [i]: operators i - 1 and i are one group
    for cut in cuts:
        if may[cut] and not joined[cut] and not joined[cut + 2]:
            joined[cut + 1] = True
    group = np.zeros(n, dtype=np.int64)
    for i in range(1, n):
        group[i] = group[i - 1] + (not joined[i])
    return group
