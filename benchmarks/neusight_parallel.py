"""Training steps on four GPUs, of which only the whole was measured.

Accelerate's data, tensor (Megatron) and pipeline parallelism with one micro-batch; the model
computes its loss itself.
"""

from dataclasses import replace
from math import prod

from benchmarks.neusight_backward import backward_ops, logits, loss_ops
from benchmarks.neusight_compiled import PRODUCTS
from benchmarks.neusight_trace import BYTES, Node, Shape, Step, Timed, forward_ops, memory_op
from hardware.links import LinkFigures

WAYS = 4
BUCKET_BYTES = 25 * 2**20
"""Gradients that DistributedDataParallel sends together (its default)."""


def training_ops(step: Step) -> list[Timed]:
    """Forward, loss and backward of a step whose loss is computed by the model itself."""
    shifted = prod(logits(step).shape)
    shift = memory_op("loss.shift", "copy", {"size": shifted}, 0, [shifted, shifted])
    return [*forward_ops(step), Timed(shift, 2), *loss_ops(step, True), *backward_ops(step)]


def tensor_parallel(step: Step) -> Step:
    """One of four shares of every layer, as Megatron splits them: heads, hidden and words."""
    width = next(node.shape[-1] for node in step.nodes if node.function == "layer_norm")
    return replace(step, nodes=tuple(_share(node, width) for node in step.nodes))


def _share(node: Node, width: int) -> Node:
    if node.function in ("linear", "addmm"):
        wide = node.shape[-1] > width
        shapes = [
            _narrow(s) if (wide and i == 2) or (not wide and i == len(node.input_shapes) - 2) else s
            for i, s in enumerate(node.input_shapes)
        ]
        if node.function == "linear" and not wide:
            shapes[0] = _narrow(node.input_shapes[0])
        return replace(
            node, input_shapes=tuple(shapes), shape=_narrow(node.shape) if wide else node.shape
        )
    if len(node.shape) == 4 or node.function in PRODUCTS:
        return replace(
            node, input_shapes=tuple(map(_fewer, node.input_shapes)), shape=_fewer(node.shape)
        )
    if node.shape[-1] > width:
        return replace(
            node, input_shapes=tuple(map(_narrow, node.input_shapes)), shape=_narrow(node.shape)
        )
    return node


def _narrow(shape: Shape) -> Shape:
    return (*shape[:-1], max(shape[-1] // WAYS, 1))


def _fewer(shape: Shape) -> Shape:
    """A quarter of the heads, wherever they stand before the last axis."""
    for axis in range(len(shape) - 2, -1, -1) if len(shape) < 4 else (1, 2):
        if shape[axis] % WAYS == 0:
            return (*shape[:axis], shape[axis] // WAYS, *shape[axis + 1 :])
    return shape


def all_reduce_s(num_bytes: float, link: LinkFigures) -> float:
    """Seconds of a ring: every GPU sends 2 (n - 1) / n of the bytes."""
    return 2 * (WAYS - 1) / WAYS * num_bytes / link.bytes_per_s + 2 * (WAYS - 1) * link.latency_s


def communication_s(step: Step, backward_s: float, link: LinkFigures) -> float:
    """Seconds that four GPUs wait for each other in a training step, beside the compute."""
    hidden = max(prod(n.shape) for n in step.nodes if n.function == "layer_norm") * BYTES
    if step.option.startswith("dp"):
        gradients = parameters(step) * BYTES
        hidden_part = max(0.0, all_reduce_s(gradients, link) - backward_s)
        return hidden_part + all_reduce_s(BUCKET_BYTES, link)
    if step.option.startswith("tp"):
        return (4 * step.num_layers + 2) * all_reduce_s(hidden, link)
    return 2 * (WAYS - 1) * (hidden / link.bytes_per_s + link.latency_s)


def parameters(step: Step) -> int:
    """Weights of all layers and of the embedding (tied to the last layer)."""
    return sum(
        node.count * node.input_shapes[-1][-1] * node.shape[-1]
        if node.function == "linear"
        else node.count * prod(node.input_shapes[-1])
        for node in step.nodes
        if node.function in ("linear", "addmm")
    )
