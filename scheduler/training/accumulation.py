"""Gradients of several micro-batches add up before the optimizer reads them."""

from dataclasses import replace
from math import prod

from scheduler.ir.graph import Graph, Op

ADDS = "apportion.accumulate"


def accumulate_name(update: str) -> str:
    """The name of the operator that adds up the gradients which an optimizer reads."""
    return f"accumulate_{update}"


def accumulated_name(gradient: str) -> str:
    """The name of the sum of a gradient over micro-batches."""
    return f"accumulated_{gradient}"


def accumulating(graph: Graph) -> Graph:
    """The training graph of one of several micro-batches: every update reads a running sum.

    Each optimizer's gradients get an operator `accumulate_<optimizer>`, as soon as the last of
    them is made: it reads gradient and sum and writes the sum, as torch's AccumulateGrad does in
    place, and stays with the optimizer. Every micro-batch counts, the first one too (it starts from
    zeros). A graph that adds up already is returned as it is.
    """
    if any(op.target == ADDS for op in graph.ops):
        return graph
    last = {t.name: i for i, op in enumerate(graph.ops) for t in op.outputs}
    added: dict[int, list[Op]] = {}
    renamed: dict[str, Op] = {}
    for op in graph.ops:
        if op.phase == "optimizer" and all(name in last for name in op.inputs):
            total = _sum(graph, op)
            added.setdefault(max(last[name] for name in op.inputs), []).append(total)
            renamed[op.name] = replace(op, inputs=tuple(out.name for out in total.outputs))
    ops: list[Op] = []
    for i, op in enumerate(graph.ops):
        ops += [renamed.get(op.name, op), *added.get(i, ())]
    return replace(graph, ops=tuple(ops))


def _sum(graph: Graph, update: Op) -> Op:
    gradients = [graph.tensors[name] for name in update.inputs]
    num_bytes = sum(gradient.num_bytes for gradient in gradients)
    size = sum(prod(gradient.shape) for gradient in gradients)
    return Op(
        name=accumulate_name(update.name),
        kind="elementwise",
        flops=float(size),
        bytes_read=2.0 * num_bytes,
        bytes_written=float(num_bytes),
        dtype=gradients[0].dtype,
        inputs=update.inputs,
        outputs=tuple(replace(g, name=accumulated_name(g.name)) for g in gradients),
        weights=update.weights,
        weight_share=0.0,
        target=ADDS,
        module=update.module,
        dims={"size": size, "operands": 2},
        phase="backward",
    )
