"""A lower bound on the largest load that counts what media between two sides of devices carry.

The devices are parted into two sides by kind, such as the faster and the slower. For weights y of
devices and m of the media between the sides, all >= 0 and together 1, the largest load is at least

    min over placements of  sum_u y[d(u)] seconds[u,d(u)] + sum_t m seconds of t, where t crosses

which is a minimum cut: operators between the terminals, a node for each tensor and direction. Each
(y, m) gives a bound; cutting planes look for the best.

Source: Stone, "Multiprocessor scheduling with the aid of network flow algorithms", IEEE TSE 3(1),
1977, doi:10.1109/TSE.1977.233840.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.contract import contract
from scheduler.dual_bound import ROUNDING, highest
from scheduler.folding import folded
from scheduler.problem import Problem

MOST_CUTS, MOST_WORK = 60, 1_000_000
"""Cutting planes, and cutting planes x operators: some seconds."""
CUT_TOLERANCE = 1e-3
"""Relative distance from the best bound at which cutting stops."""
STRETCH = 1000
"""Colocation classes beside each other between which transfers count."""
MOST_SIDES = 3
"""Ways of parting the kinds of devices that are tried."""
WHOLE, ENDLESS = 1.5e9, 2**30
"""What the capacities of operators add up to, in whole numbers of 32 bits; and an endless one."""


def media_bound(problem: Problem) -> float:
    """Largest load (s) of a micro-batch at least, of devices and of the media between two sides.

    0 where devices are alike, or transfers occupy no media.
    """
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)
    groups: dict[bytes, list[int]] = {}
    for d, column in enumerate(arrays.seconds.T):
        groups.setdefault(column.tobytes(), []).append(d)
    if arrays.serialised or len(groups) < 2 or not arrays.num_tensors:
        return 0.0
    finite = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0).sum(axis=0)
    kinds = sorted(groups.values(), key=lambda kind: float(finite[kind[0]]))
    small = contract(arrays, arrays.unit)
    counts = _counts(problem, small)
    splits = range(1, len(kinds))[:MOST_SIDES]
    return max(_bound(_Sides.of(small, kinds, k, counts)) for k in splits)


def _counts(problem: Problem, small: Arrays) -> Floats:
    """(t,) 1 for the tensors of a contracted problem whose transfers the bound counts, else 0.

    Left out are those to an optimizer that runs once for all micro-batches, and those between
    stretches of the order, so that each minimum cut stays small: transfers left out lower a bound.
    """
    ops, unit = problem.graph.ops, problem.arrays.unit
    forward = all(op.phase == "forward" for op in ops)
    place = np.full(small.num_ops, np.inf)
    np.minimum.at(place, unit, np.arange(len(ops)) if forward else folded(problem))
    stretch = place.argsort(kind="stable").argsort(kind="stable") // STRETCH
    e, often = small.edge_tensor, np.ones(small.num_ops)
    if problem.trains_in_parts:
        once = np.array([op.phase == "optimizer" for op in ops])
        often = 1.0 - np.bincount(unit, once, small.num_ops).clip(max=1.0)
    counts, away = np.zeros(small.num_tensors), np.zeros(small.num_tensors, dtype=bool)
    np.maximum.at(counts, e, often[small.reader])
    np.logical_or.at(away, e, stretch[small.reader] != stretch[small.producer[e]])
    return np.where(away, 0.0, counts)


@dataclass(frozen=True)
class _Sides:
    """Kinds of devices on two sides, and tensors that may cross from one to the other.

    Attributes:
        seconds: (u, k) by kind, the first side's kinds first.
        num_first: kinds of the first side.
        alike: (k + 2,) devices of each kind, media from the first side to the second, and back.
        move_s: (2, t) least seconds of each tensor on such media.
    """

    arrays: Arrays
    seconds: Floats
    num_first: int
    alike: Ints
    move_s: Floats

    @staticmethod
    def of(arrays: Arrays, kinds: list[list[int]], num_first: int, counts: Floats) -> "_Sides":
        """Part the kinds; `counts` (t,): as `_counts`."""
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
            moves.append(np.where(np.isfinite(least), least * counts, 0.0))
        alike = np.array([*(len(kind) for kind in kinds), *num_media])
        seconds = arrays.seconds[:, [kind[0] for kind in kinds]]
        return _Sides(arrays, seconds, num_first, alike, np.array(moves))


def _bound(sides: _Sides) -> float:
    """The best bound among those of some weights."""
    k = sides.seconds.shape[1]
    weights = np.append(np.full(k, 0.9), (0.1, 0.1))
    weights /= sides.alike @ weights
    best, lines = 0.0, list[Floats]()
    for _ in range(min(MOST_CUTS, 1 + MOST_WORK // len(sides.seconds))):
        bound, loads = _cheapest(sides, weights)
        best = max(best, bound)
        if not np.isfinite(loads).all():
            break
        lines.append(loads)
        scale = float(np.max(lines)) or 1.0
        weights, ceiling = highest(np.array(lines) / scale, sides.alike)
        if ceiling * scale <= best * (1 + CUT_TOLERANCE):
            break
    return best


def _cheapest(sides: _Sides, weights: Floats) -> tuple[float, Floats]:
    """A bound on the cost of every placement, and the loads (k + 2,) of about the cheapest one."""
    arrays, k, n = sides.arrays, sides.num_first, len(sides.seconds)
    with np.errstate(invalid="ignore"):
        cost = np.where(
            np.isfinite(sides.seconds), sides.seconds * weights[: sides.seconds.shape[1]], np.inf
        )
    at = np.stack([cost[:, :k].argmin(axis=1), k + cost[:, k:].argmin(axis=1)])
    either = cost[np.arange(n), at]
    paid = either.min(axis=0)
    moves = sides.move_s * weights[-2:, None]
    flow, second = _minimum_cut(arrays, either - paid, moves)
    bound = float(paid.sum() + flow)
    kind = at[second.astype(np.int64), np.arange(n)]
    loads = np.bincount(kind, sides.seconds[np.arange(n), kind], len(weights)).astype(np.float64)
    source = second[arrays.producer]
    away = np.zeros(arrays.num_tensors, dtype=bool)
    np.logical_or.at(away, arrays.edge_tensor, second[arrays.reader] != source[arrays.edge_tensor])
    loads[-2] = sides.move_s[0, away & ~source].sum()
    loads[-1] = sides.move_s[1, away & source].sum()
    return bound * (1 - ROUNDING), loads


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
