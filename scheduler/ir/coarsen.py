"""Coarser graphs: operators fused to chains, layers or blocks, or to a number of operators.

A group of operators (`scheduler/ir/grouping.py`) becomes one operator that does the work of all.
FLOPs, bytes and parameters are sums over the members: their tensors are still written and read,
since placing operators together does not fuse their kernels. Only tensors that cross groups remain
tensors of the coarse graph, so that the memory of a plan is to be checked on the fine one.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, takewhile

import numpy as np

from scheduler.ir.graph import Graph, Op
from scheduler.ir.grouping import (
    Grain,
    Groups,
    acyclic_groups,
    join_neighbours,
    labels_of,
    predecessors,
)


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
    preds = predecessors(graph)
    labels = labels_of(graph, preds)[grain]
    return _contract(graph, acyclic_groups(labels, preds), by_module=grain != "chains")


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
    preds = predecessors(graph)
    labels = labels_of(graph, preds)
    order = [i for group in acyclic_groups(labels["layers"], preds) for i in group]
    ranks = [
        next((r for r, grain in enumerate(labels) if labels[grain][a] == labels[grain][b]), 3)
        for a, b in pairwise(order)
    ]
    return _contract(graph, join_neighbours(order, ranks, _weights(graph), num_ops))


def at_grain(graph: Graph, grain: Grain | int) -> Graph:
    """The graph at a grain, or with at most that many operators."""
    return coarsen_to(graph, grain) if isinstance(grain, int) else coarsen(graph, grain)


def groups_of(coarse: Graph) -> tuple[tuple[str, ...], ...]:
    """The members of each operator that is made of several: what a grain keeps together."""
    return tuple(op.members for op in coarse.ops if op.members)


def expand(placement: Mapping[str, str], coarse: Graph) -> dict[str, str]:
    """The device of every operator of the fine graph, from a placement of the coarse one."""
    return {member: placement[op.name] for op in coarse.ops for member in op.members or (op.name,)}


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
