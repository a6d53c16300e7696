"""Which operators may become one: groups by chain, layer and block, and joined neighbours.

Groups never make a cycle:

    a -> b -> c   {a, c} and {b} would wait for each other, so a and c stay apart
    |         ^
    +---------+

Source for merging neighbours in a topological order: Herrmann et al., "Multilevel Algorithms for
Acyclic Partitioning of Directed Acyclic Graphs", SIAM J. Sci. Comput. 41(4), 2019,
doi:10.1137/18M1176865.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

from scheduler.ir.graph import Graph, Op

Grain = Literal["operators", "chains", "layers", "blocks"]
Groups = list[list[int]]
"""Rows of operators by group, groups and members in topological order."""

SEARCH_LIMIT = 300
"""Groups visited to prove that two groups may be joined; beyond it they stay apart."""

NUMBERED = re.compile(r"(?:.*_)?\d+")
"""A module's name as an element of a ModuleList or Sequential, e.g. '3' or 'encoder_layer_3'."""


def predecessors(graph: Graph) -> Groups:
    """Rows of the operators that each operator reads from."""
    maker = {tensor.name: i for i, op in enumerate(graph.ops) for tensor in op.outputs}
    return [
        list(dict.fromkeys(maker[name] for name in op.inputs if name in maker)) for op in graph.ops
    ]


def labels_of(graph: Graph, preds: Groups) -> dict[Grain, list[Hashable]]:
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


def acyclic_groups(labels: Sequence[Hashable], preds: Groups) -> Groups:
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


def join_neighbours(
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
