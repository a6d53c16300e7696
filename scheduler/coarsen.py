"""Coarser graphs: operators fused to chains, layers or blocks, or to a number of operators.

A group of operators becomes one operator that does the work of all. Groups never make a cycle:

    a -> b -> c   {a, c} and {b} would wait for each other, so a and c stay apart
    |         ^
    +---------+

FLOPs, bytes and parameters are sums over the members: their tensors are still written and read,
since placing operators together does not fuse their kernels. Only tensors that cross groups remain
tensors of the coarse graph, so that the memory of a plan is to be checked on the fine one.

Source for merging neighbours in a topological order: Herrmann et al., "Multilevel Algorithms for
Acyclic Partitioning of Directed Acyclic Graphs", SIAM J. Sci. Comput. 41(4), 2019,
doi:10.1137/18M1176865.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware.errors import InfeasibleError
from scheduler.costs import CostTable
from scheduler.graph import Graph, Op

Array = NDArray[np.float64]
Grain = Literal["operators", "chains", "layers", "blocks"]
Groups = list[list[int]]
"""Rows of operators by group, groups and members in topological order."""

SEARCH_LIMIT = 300
"""Groups visited to prove that two groups may be joined; beyond it they stay apart."""

NUMBERED = re.compile(r"(?:.*_)?\d+")
"""A module's name as an element of a ModuleList or Sequential, e.g. '3' or 'encoder_layer_3'."""


def coarsen(graph: Graph, grain: Grain) -> Graph:
    """The graph at a grain. About linear in operators and edges.

    - chains: paths on which each operator is the only reader of the one before it, and reads
      nothing else that an operator made;
    - layers: operators of one module;
    - blocks: operators of one repeated element of a ModuleList or Sequential.

    Backward operators form layers and blocks of their own. Operators without a module stay in
    their chain.
    """
    if grain == "operators":
        return graph
    preds = _predecessors(graph)
    labels = _labels(graph, preds)[grain]
    return _contract(graph, _acyclic_groups(labels, preds), by_module=grain != "chains")


def coarsen_to(graph: Graph, num_ops: int) -> Graph:
    """The graph with at most `num_ops` operators. O(n log n).

    Joins neighbours in a topological order, the lightest pair first: inside chains, then inside
    layers, inside blocks, and then any. Weight is the share of all FLOPs plus that of all bytes.

    Raises:
        ValueError: `num_ops` is below 1.
    """
    if num_ops < 1:
        raise ValueError(f"a coarse graph needs at least 1 operator, got {num_ops}")
    if num_ops >= len(graph.ops):
        return graph
    preds = _predecessors(graph)
    labels = _labels(graph, preds)
    order = [i for group in _acyclic_groups(labels["layers"], preds) for i in group]
    ranks = [
        next((r for r, grain in enumerate(labels) if labels[grain][a] == labels[grain][b]), 3)
        for a, b in pairwise(order)
    ]
    return _contract(graph, _join_neighbours(order, ranks, _weights(graph), num_ops))


def at_grain(graph: Graph, grain: Grain | int) -> Graph:
    """The graph at a grain, or with at most that many operators."""
    return coarsen_to(graph, grain) if isinstance(grain, int) else coarsen(graph, grain)


def groups_of(coarse: Graph) -> tuple[tuple[str, ...], ...]:
    """The members of each operator that is made of several: what a grain keeps together."""
    return tuple(op.members for op in coarse.ops if op.members)


def expand(placement: Mapping[str, str], coarse: Graph) -> dict[str, str]:
    """The device of every operator of the fine graph, from a placement of the coarse one."""
    return {member: placement[op.name] for op in coarse.ops for member in op.members or (op.name,)}


def coarsen_costs(costs: CostTable, graph: Graph, coarse: Graph) -> CostTable:
    """Times of coarse operators: per device the sums of those of their members.

    Intervals widen as those of `CostTable.sum_s`.

    Raises:
        InfeasibleError: no device can run all members of a coarse operator.
    """
    row = {op.name: i for i, op in enumerate(graph.ops)}
    members = [[row[name] for name in op.members or (op.name,)] for op in coarse.ops]
    flat = np.concatenate([np.array(rows) for rows in members])
    starts = np.cumsum([0, *(len(rows) for rows in members[:-1])])
    finite = np.isfinite(costs.seconds)

    def summed(table: Array) -> Array:
        return np.asarray(np.add.reduceat(np.where(finite, table, 0.0)[flat], starts, axis=0))

    def shared(half: Array) -> Array:
        return summed(np.sqrt(costs.common) * half)

    def joined(half: Array) -> Array:
        return np.asarray(np.sqrt(shared(half) ** 2 + summed((1 - costs.common) * half**2)))

    can_run = np.logical_and.reduceat(finite[flat], starts, axis=0)
    for op, runs in zip(coarse.ops, can_run, strict=True):
        if not runs.any():
            raise InfeasibleError(
                f"operator '{op.name}': no device can run all its {len(op.members)} members; "
                "plan at a finer grain"
            )
    with np.errstate(invalid="ignore"):
        later = costs.high_s - costs.seconds
        below, above = joined(costs.seconds - costs.low_s), joined(later)
        common = np.where(above > 0, (shared(later) / above) ** 2, 1.0)
    seconds = summed(costs.seconds)
    tables = (seconds, np.maximum(seconds - below, 0.0), seconds + above)
    seconds, low_s, high_s = (np.where(can_run, table, np.inf) for table in tables)
    return replace(costs, seconds=seconds, low_s=low_s, high_s=high_s, common=common)


def _predecessors(graph: Graph) -> Groups:
    """Rows of the operators that each operator reads from."""
    maker = {tensor.name: i for i, op in enumerate(graph.ops) for tensor in op.outputs}
    return [
        list(dict.fromkeys(maker[name] for name in op.inputs if name in maker)) for op in graph.ops
    ]


def _labels(graph: Graph, preds: Groups) -> dict[Grain, list[Hashable]]:
    """What operators of one chain, layer and block have in common."""
    num_readers = Counter(p for sources in preds for p in sources)
    chain: list[Hashable] = []
    for i, (op, sources) in enumerate(zip(graph.ops, preds, strict=True)):
        first = sources[0] if len(sources) == 1 and num_readers[sources[0]] == 1 else i
        joins = first != i and graph.ops[first].phase == op.phase
        chain.append(chain[first] if joins else i)
    block = _block_names(op.module for op in graph.ops)

    def label(op: Op, module: str, own: Hashable) -> Hashable:
        return (module, op.phase) if op.module else own

    return {
        "chains": chain,
        "layers": [label(op, op.module, own) for op, own in zip(graph.ops, chain, strict=True)],
        "blocks": [
            label(op, block[op.module], own) for op, own in zip(graph.ops, chain, strict=True)
        ],
    }


def _block_names(modules: Iterable[str]) -> dict[str, str]:
    """The block that each module belongs to; a module outside of any is one.

    The outermost numbered element on its path that has a sibling of the same shape; without
    one, the outermost numbered element.
    """
    size = Counter(modules)
    shape: dict[str, list[tuple[str, int]]] = defaultdict(list)
    numbered: dict[str, list[str]] = {}
    for module, count in size.items():
        parts = module.split(".")
        numbered[module] = [
            ".".join(parts[: k + 1]) for k, part in enumerate(parts) if NUMBERED.fullmatch(part)
        ]
        for element in numbered[module]:
            shape[element].append((module[len(element) :], count))
    alike = Counter((_parent(element), tuple(sorted(s))) for element, s in shape.items())
    repeated = {e for e, s in shape.items() if alike[_parent(e), tuple(sorted(s))] > 1}
    parents = {_parent(element) for element in repeated}
    return {
        module: next((e for e in path if _parent(e) in parents), path[0]) if path else module
        for module, path in numbered.items()
    }


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _acyclic_groups(labels: Sequence[Hashable], preds: Groups) -> Groups:
    """Operators by label; those of one label only together where that makes no cycle.

    An operator's level is the largest number of label changes on a path that leads to it. Groups
    of one label and level cannot wait for each other, since every edge between groups raises
    the level. Then groups of one label are joined as far as no path leads from one to the other
    through a third.
    """
    level = [0] * len(labels)
    for i, sources in enumerate(preds):
        level[i] = max((level[p] + (labels[p] != labels[i]) for p in sources), default=0)
    index: dict[tuple[Hashable, int], int] = {}
    group = [index.setdefault(key, len(index)) for key in zip(labels, level, strict=True)]
    by_label: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for (label, at), k in index.items():
        by_label[label].append((at, k))
    quotient = _Quotient(group, preds, len(index))
    for parts in by_label.values():
        ordered = [k for _, k in sorted(parts)]
        current = ordered[0]
        for k in ordered[1:]:
            current = quotient.join(current, k) if quotient.may_join(current, k) else k
    return _sorted_groups([quotient.find(k) for k in group], preds)


class _Quotient:
    """The graph of groups while groups are being joined (union-find with edges)."""

    def __init__(self, group: Sequence[int], preds: Groups, num_groups: int) -> None:
        self.root = list(range(num_groups))
        self.before: list[set[int]] = [set() for _ in self.root]
        self.after: list[set[int]] = [set() for _ in self.root]
        for i, sources in enumerate(preds):
            for p in sources:
                if group[p] != group[i]:
                    self.before[group[i]].add(group[p])
                    self.after[group[p]].add(group[i])

    def find(self, k: int) -> int:
        """The group that group k is now part of."""
        while self.root[k] != k:
            self.root[k] = k = self.root[self.root[k]]
        return k

    def join(self, a: int, b: int) -> int:
        """Make one group of two; returns it."""
        if len(self.before[a]) + len(self.after[a]) < len(self.before[b]) + len(self.after[b]):
            a, b = b, a
        self.root[b] = a
        self.before[a] |= self.before[b]
        self.after[a] |= self.after[b]
        return a

    def may_join(self, a: int, b: int) -> bool:
        """Whether it is shown that no path leads from one to the other through a third group."""
        degrees = (len(edges[k]) for edges in (self.before, self.after) for k in (a, b))
        if max(degrees) > SEARCH_LIMIT:
            return False
        return self._apart(a, b) and self._apart(b, a)

    def _apart(self, a: int, b: int) -> bool:
        """Search forward from a and backward from b at once; safe when either side ends."""
        sides = [self.after, self.before]
        fronts = [self._next(a, self.after) - {b}, self._next(b, self.before) - {a}]
        seen = [set(front) for front in fronts]
        while fronts[0] and fronts[1]:
            if seen[0] & seen[1] or a in seen[1] or b in seen[0]:
                return False
            if len(seen[0]) + len(seen[1]) > SEARCH_LIMIT:
                return False
            side = 0 if len(fronts[0]) <= len(fronts[1]) else 1
            reached = {n for k in fronts[side] for n in self._next(k, sides[side])}
            fronts[side] = reached - seen[side]
            seen[side] |= reached
        return True

    def _next(self, k: int, edges: list[set[int]]) -> set[int]:
        return {self.find(n) for n in edges[k]} - {k}


def _sorted_groups(group: Sequence[int], preds: Groups) -> Groups:
    """Groups in topological order, of those that are free the one that starts first (Kahn)."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, k in enumerate(group):
        members[k].append(i)
    after: dict[int, set[int]] = defaultdict(set)
    for i, sources in enumerate(preds):
        for p in sources:
            if group[p] != group[i]:
                after[group[p]].add(group[i])
    missing = Counter(k for readers in after.values() for k in readers)
    ready = [(rows[0], k) for k, rows in members.items() if not missing[k]]
    heapq.heapify(ready)
    result = []
    while ready:
        _, k = heapq.heappop(ready)
        result.append(members[k])
        for n in after[k]:
            missing[n] -= 1
            if not missing[n]:
                heapq.heappush(ready, (members[n][0], n))
    return result


def _join_neighbours(
    order: Sequence[int], ranks: Sequence[int], weights: Sequence[float], num_groups: int
) -> Groups:
    """Join neighbours until `num_groups` remain: lowest rank first, then the lightest pair."""
    last = len(order) - 1
    weight = [weights[i] for i in order]
    start, end = list(range(len(order))), list(range(len(order)))  # of the group, at its ends
    alive = [True] * len(order)  # whether a group starts here
    heap = [(rank, weight[i] + weight[i + 1], i, i + 1) for i, rank in enumerate(ranks)]
    heapq.heapify(heap)
    for _ in range(len(order) - num_groups):
        while True:  # an entry holds while both its groups are as they were
            _, total, a, b = heapq.heappop(heap)
            if alive[a] and alive[b] and end[a] + 1 == b and total == weight[a] + weight[b]:
                break
        alive[b] = False
        weight[a], end[a] = total, end[b]
        start[end[a]] = a
        if a > 0:
            before = start[a - 1]
            heapq.heappush(heap, (ranks[a - 1], weight[before] + total, before, a))
        if end[a] < last:
            after = end[a] + 1
            heapq.heappush(heap, (ranks[end[a]], total + weight[after], a, after))
    return [list(order[a : end[a] + 1]) for a in range(len(order)) if alive[a]]


def _weights(graph: Graph) -> list[float]:
    flops = np.array([op.flops for op in graph.ops], dtype=float)
    moved = np.array([op.bytes_moved for op in graph.ops])
    shares = [figure / figure.sum() if figure.any() else figure for figure in (flops, moved)]
    return [float(w) for w in shares[0] + shares[1]]


def _contract(graph: Graph, groups: Groups, by_module: bool = False) -> Graph:
    """Replace each group by one operator, named after its module or its first member."""
    group_of = {i: k for k, group in enumerate(groups) for i in group}
    maker = {tensor.name: group_of[i] for i, op in enumerate(graph.ops) for tensor in op.outputs}
    crossing = set(graph.outputs)
    for i, op in enumerate(graph.ops):
        crossing.update(name for name in op.inputs if maker.get(name) != group_of[i])
    taken = {graph.ops[group[0]].name for group in groups if len(group) == 1}
    ops = []
    for k, group in enumerate(groups):
        members = [graph.ops[i] for i in group]
        if len(members) > 1:
            read = dict.fromkeys(n for op in members for n in op.inputs if maker.get(n) != k)
            module = _common_module(members)
            base = f"{module}{_suffix(members[0])}" if by_module and module else ""
            name = _distinct(base or members[0].name, taken)
            ops.append(_fused(name, module, members, tuple(read), crossing))
        else:
            ops.append(members[0])
    return replace(graph, ops=tuple(ops))


def _fused(
    name: str, module: str, members: list[Op], inputs: tuple[str, ...], crossing: set[str]
) -> Op:
    """One operator that does the work of several; it is of the kind of the heaviest.

    A parameter that several members read is read again: from the second time on, its bytes count
    among `bytes_read`.
    """
    working = [op for op in members if op.kind != "view"]
    main = max(working or members, key=lambda op: (op.flops, op.bytes_read + op.bytes_written))
    weights = {key: size for op in members for key, size in op.weights.items()}
    held, params_read = sum(weights.values()), sum(op.params_read for op in members)
    only_views = not working and len(inputs) > 1  # a view has the memory of its one input
    return Op(
        name=name,
        kind="copy" if only_views else main.kind,
        flops=sum(op.flops for op in members),
        bytes_read=sum(op.bytes_read for op in members) + max(0.0, params_read - held),
        bytes_written=sum(op.bytes_written for op in members),
        dtype=main.dtype,
        inputs=inputs,
        outputs=tuple(out for op in members for out in op.outputs if out.name in crossing),
        weights=weights,
        target=main.target,
        module=module,
        dims=main.dims if len(working) == 1 else {},
        phase=members[0].phase,
        weight_share=min(1.0, params_read / held) if held else 1.0,
        state_bytes=sum(op.state_bytes for op in members),
        costed=all(op.costed for op in members),
        members=tuple(name for op in members for name in op.members or (op.name,)),
    )


def _suffix(op: Op) -> str:
    return "" if op.phase == "forward" else f" {op.phase}"


def _common_module(members: list[Op]) -> str:
    """The innermost module that holds all members."""
    levels = zip(*(op.module.split(".") for op in members), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, levels)
    return ".".join(parts[0] for parts in shared)


def _distinct(name: str, taken: set[str]) -> str:
    """The name, with a number after it if another has it; it is taken from now on."""
    number = 1
    while (found := name if number == 1 else f"{name}:{number}") in taken:
        number += 1
    taken.add(found)
    return found
