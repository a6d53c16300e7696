"""Compiled steps, of which only the whole was measured.

Inductor makes one kernel of a group of pointwise and row operators without a product between them;
it reads what comes from outside once and writes what is used outside.
"""

from collections.abc import Sequence
from math import prod

from benchmarks.neusight_trace import Node, Step, Timed, elementwise_op, forward_op, memory_op
from scheduler.ir.graph import Op

PRODUCTS = frozenset({"linear", "addmm", "matmul", "bmm"})


def fused_ops(step: Step) -> list[Timed]:
    """The operators of a compiled forward pass."""
    ops = {node.name: op for node in step.nodes if (op := forward_op(node, training=False))}
    producers = _producers(step.nodes, ops)
    groups = _groups(step.nodes, ops, producers)
    timed = [Timed(ops[n.name], n.count) for n in step.nodes if n.function in PRODUCTS]
    for members in groups:
        inside = {node.name for node in members}
        read = {
            name: size
            for node in members
            for name, size in producers[node.name].items()
            if name not in inside
        }
        used_outside = {
            name
            for node in step.nodes
            if node.name in producers and node.name not in inside
            for name in producers[node.name]
        }
        written = [prod(n.shape) for n in members if n.name in used_outside] or [
            prod(members[-1].shape)
        ]
        timed.append(Timed(_kernel(members, ops, [*read.values(), sum(written)]), members[0].count))
    return timed


def _kernel(members: Sequence[Node], ops: dict[str, Op], elements: Sequence[float]) -> Op:
    """One kernel for all members, of the class of its row operator if it has one."""
    name, flops = members[0].name, sum(ops[node.name].flops for node in members)
    for kind in ("softmax", "norm"):
        rows = [ops[node.name].dims for node in members if ops[node.name].kind == kind]
        if rows:
            return memory_op(name, kind, dict(rows[0]), flops, elements)
    return elementwise_op(name, prod(members[-1].shape), elements)


def _producers(nodes: Sequence[Node], ops: dict[str, Op]) -> dict[str, dict[str, int]]:
    """Per operator, the operators (or leaves) whose values it reads, through views, with sizes."""
    by_name = {node.name: node for node in nodes}

    def roots(name: str) -> str:
        node = by_name[name]
        while node.name not in ops and node.inputs and node.function not in ("size", "getattr"):
            node = by_name[node.inputs[0]]
        return node.name

    return {
        name: {
            roots(source): prod(by_name[source].shape)
            for source in by_name[name].inputs
            if prod(by_name[source].shape) > 1
        }
        for name in ops
    }


def _groups(
    nodes: Sequence[Node], ops: dict[str, Op], producers: dict[str, dict[str, int]]
) -> list[list[Node]]:
    """Operators that are no products, joined along edges with no product behind or before."""
    depth: dict[str, int] = {}
    group: dict[str, list[Node]] = {}
    for node in nodes:
        if node.name not in ops:
            continue
        sources = [name for name in producers[node.name] if name in ops]
        own = node.function in PRODUCTS
        depth[node.name] = max((depth[name] for name in sources), default=0) + own
        if own:
            continue
        group[node.name] = [node]
        for name in sources:
            same = name in group and depth[name] == depth[node.name]
            if same and group[name][0].count == node.count and group[name] is not group[node.name]:
                joined = group[name] + group[node.name]
                group.update({member.name: joined for member in joined})
    return list({id(members): members for members in group.values()}.values())
