"""Placements on two sides of devices that are cheapest at given weights: minimum cuts.

For weights y of devices and m of the media between the sides, all >= 0 and together 1, the largest
load of any placement is at least

    min over placements of  sum_u y[d(u)] seconds[u,d(u)] + sum_t m seconds of t, where t crosses

which is a minimum cut: operators between the terminals, a node for each tensor and direction. Each
(y, m) gives a bound; cutting planes look for the best.

Source: Stone, "Multiprocessor scheduling with the aid of network flow algorithms", IEEE TSE 3(1),
1977, doi:10.1109/TSE.1977.233840.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.bounds.dual_bound import ROUNDING, highest

MOST_CUTS, MOST_WORK = 60, 1_000_000
"""Cutting planes, and cutting planes x operators: some seconds."""
CUT_TOLERANCE = 1e-3
"""Relative distance from the best bound at which cutting stops."""
WHOLE, ENDLESS = 1.5e9, 2**30
"""What the capacities of operators add up to, in whole numbers of 32 bits; and an endless one."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Sides:
    """Kinds of devices on two sides, and tensors that may cross from one to the other.

    Attributes:
        devices: of either side.
        seconds: (u, k) by kind, the first side's kinds first.
        num_first: kinds of the first side.
        alike: (k + 2,) devices of each kind, media from the first side to the second, and back.
        move_s: (2, t) least seconds of each tensor on such media.
        counts: (t,) as `media_bound._counts`.
    """

    arrays: Arrays
    devices: tuple[list[int], list[int]]
    seconds: Floats
    num_first: int
    alike: Ints
    move_s: Floats
    counts: Floats

    @staticmethod
    def of(arrays: Arrays, kinds: list[list[int]], num_first: int, counts: Floats) -> "Sides":
        """Part the kinds."""
        first = [d for kind in kinds[:num_first] for d in kind]
        second = [d for kind in kinds[num_first:] for d in kind]
        num_media, moves = [], []
        for sources, targets in ((first, second), (second, first)):
            media, least = set[int](), np.full(arrays.num_tensors, np.inf)
            known = set[tuple[float, float]]()
            for p in sources:
                for q in targets:
                    speed = float(arrays.latency_s[p, q]), float(arrays.s_per_byte[p, q])
                    if arrays.medium[p, q] < 0:
                        continue
                    media.add(int(arrays.medium[p, q]))
                    if len(arrays.table_s) or speed not in known:
                        known.add(speed)
                        t = np.arange(arrays.num_tensors)
                        least = np.minimum(least, arrays.transfer_s(t, p, q))
            num_media.append(max(1, len(media)))
            moves.append(np.where(np.isfinite(least), least, 0.0))
        alike = np.array([*(len(kind) for kind in kinds), *num_media])
        seconds = arrays.seconds[:, [kind[0] for kind in kinds]]
        return Sides(arrays, (first, second), seconds, num_first, alike, np.array(moves), counts)


@dataclass(frozen=True)
class Parting:
    """Placements on two sides: each is about the cheapest at some weights.

    Attributes:
        bound_s: largest load of any placement at least.
        rank: (num_ops,) place of each operator in the order that stretches were made of.
        loads: (j, k + 2) seconds of each kind, and of the media from side to side.
        second: (j, num_ops) whether an operator is on the second side.
        prices: (k + 2,) the weights that gave the bound.
    """

    bound_s: float
    sides: Sides
    rank: Ints
    loads: Floats
    second: Flags
    prices: Floats


def parted(sides: Sides, rank: Ints) -> Parting:
    """The best bound among those of some weights, and the placements that gave them."""
    k = sides.seconds.shape[1]
    weights = np.append(np.full(k, 0.9), (0.1, 0.1))
    weights /= sides.alike @ weights
    best, prices, lines, places = 0.0, weights, list[Floats](), list[Flags]()
    for _ in range(min(MOST_CUTS, 1 + MOST_WORK // len(sides.seconds))):
        bound, loads, second = _cheapest(sides, weights)
        if bound > best:
            best, prices = bound, weights
        if not np.isfinite(loads).all():
            break
        lines.append(loads)
        places.append(second)
        scale = float(np.max(lines)) or 1.0
        weights, ceiling = highest(np.array(lines) / scale, sides.alike)
        if ceiling * scale <= best * (1 + CUT_TOLERANCE):
            break
    return Parting(best, sides, rank, np.array(lines), np.array(places), prices)


def _cheapest(sides: Sides, weights: Floats) -> tuple[float, Floats, Flags]:
    """A bound on the cost of every placement; loads (k + 2,) and sides of the cheapest one."""
    arrays, k, n = sides.arrays, sides.num_first, len(sides.seconds)
    with np.errstate(invalid="ignore"):
        cost = np.where(
            np.isfinite(sides.seconds), sides.seconds * weights[: sides.seconds.shape[1]], np.inf
        )
    at = np.stack([cost[:, :k].argmin(axis=1), k + cost[:, k:].argmin(axis=1)])
    either = cost[np.arange(n), at]
    paid = either.min(axis=0)
    moves = sides.move_s * sides.counts * weights[-2:, None]
    flow, second = _minimum_cut(arrays, either - paid, moves)
    bound = float(paid.sum() + flow)
    kind = at[second.astype(np.int64), np.arange(n)]
    loads = np.bincount(kind, sides.seconds[np.arange(n), kind], len(weights)).astype(np.float64)
    loads[-2:] = carried(sides, second, sides.counts)
    return bound * (1 - ROUNDING), loads, second


def carried(sides: Sides, second: Flags, counts: Floats | float = 1.0) -> Floats:
    """(2,) seconds of the media from the first side to the second, and back."""
    arrays = sides.arrays
    source = second[arrays.producer]
    away = np.zeros(arrays.num_tensors, dtype=bool)
    np.logical_or.at(away, arrays.edge_tensor, second[arrays.reader] != source[arrays.edge_tensor])
    moves = sides.move_s * counts
    return np.array([moves[0, away & ~source].sum(), moves[1, away & source].sum()])


def _minimum_cut(arrays: Arrays, more: Floats, moves: Floats) -> tuple[float, np.ndarray]:
    """Least cost of parting operators into two sides, at least, and which go to the second one.

    `more` (2, u): what each side costs beyond the other; `moves` (2, t): what a tensor costs that
    goes from the first side to the second, or back. Capacities are rounded down.
    """
    n, num, e = arrays.num_ops, arrays.num_tensors, arrays.edge_tensor
    op, t, endless = np.arange(n), np.arange(num), np.full(len(e), np.inf)
    source, sink = n + 2 * num, n + 2 * num + 1
    src = [np.full(n, source), op, arrays.producer, n + e, arrays.reader, n + num + t]
    dst = [op, np.full(n, sink), n + t, arrays.reader, n + num + e, arrays.producer]
    capacity = np.concatenate([more[1], more[0], moves[0], endless, endless, moves[1]])
    total = float(more[np.isfinite(more)].sum()) or 1.0
    whole = np.minimum(np.floor(capacity * (WHOLE / total)), ENDLESS).astype(np.int32)
    places = (np.concatenate(src), np.concatenate(dst))
    graph = coo_array((whole, places), shape=(sink + 1, sink + 1)).tocsr()
    graph.indices, graph.indptr = (part.astype(np.int32) for part in (graph.indices, graph.indptr))
    solved = maximum_flow(graph, source, sink)
    left = graph - solved.flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    second = np.ones(n, dtype=bool)
    second[reached[reached < n]] = False
    return solved.flow_value * total / WHOLE, second
