"""Steps of which only the whole was measured: compiled, on four GPUs, and the Switch transformer.

Compiled: Inductor makes one kernel of a group of pointwise and row operators without a product
between them, which reads what comes from outside once and writes what is used outside. Four GPUs:
Accelerate's data, tensor (Megatron) and pipeline parallelism with one micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from neusight_backward import backward_ops, logits, loss_ops
from neusight_trace import (
    BYTES,
    Node,
    Shape,
    Step,
    Timed,
    elementwise_op,
    forward_op,
    forward_ops,
    matmul_op,
    memory_op,
)

from hardware.cluster import Link
from scheduler.graph import Op

PRODUCTS = frozenset({"linear", "addmm", "matmul", "bmm"})
WAYS = 4
BUCKET_BYTES = 25 * 2**20
"""Gradients that DistributedDataParallel sends together (its default)."""


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
        kinds = {ops[node.name].kind for node in members}
        main = next((k for k in ("softmax", "norm") if k in kinds), "elementwise")
        shape = max(
            (ops[n.name].dims for n in members if ops[n.name].kind == main),
            key=lambda dims: prod(dims.values()),
            default={"size": written[0]},
        )
        flops = sum(ops[node.name].flops for node in members)
        elements = [*read.values(), sum(written)]
        op = memory_op(members[0].name, main, dict(shape), flops, elements)
        timed.append(Timed(op, members[0].count))
    return timed


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


def all_reduce_s(num_bytes: float, link: Link) -> float:
    """Seconds of a ring: every GPU sends 2 (n - 1) / n of the bytes."""
    return 2 * (WAYS - 1) / WAYS * num_bytes / link.bytes_per_s + 2 * (WAYS - 1) * link.latency_s


def communication_s(step: Step, backward_s: float, link: Link) -> float:
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


@dataclass(frozen=True)
class Switch:
    """An encoder and decoder with a mixture of experts in every other layer.

    Source: NeuSight's switchxl4.json; T5 and Switch transformers as in Hugging Face transformers.
    """

    width: int = 1024
    inner: int = 16384
    heads: int = 32
    depth: int = 128
    layers: int = 24
    experts: int = 4
    capacity: int = 64
    words: int = 32128


def switch_ops(batch: int, sequence: int, model: Switch) -> list[Timed]:
    """The operators of one forward pass; every expert computes as many tokens as it can hold."""
    tokens = batch * sequence
    full = batch * model.capacity
    attention = _attention(batch, sequence, model)
    dense = _feed_forward("ff", tokens, model)
    expert = _feed_forward("expert", full, model)
    sparse = model.layers // 2
    timed = [Timed(op, 3 * model.layers) for op in attention]
    timed += [Timed(op, 2 * (model.layers - sparse)) for op in dense]
    timed += [Timed(op, 2 * sparse * model.experts) for op in expert]
    router = {"batch": 1, "m": tokens, "n": model.experts, "k": model.width}
    timed.append(Timed(matmul_op("router", router), 2 * sparse))
    norms = [*_rms_norm("norm", tokens * model.width), _residual(tokens * model.width)]
    timed += [Timed(op, 5 * model.layers) for op in norms]
    last = {"batch": 1, "m": tokens, "n": model.words, "k": model.width}
    return [*timed, Timed(matmul_op("lm_head", last), 1)]


def _attention(batch: int, sequence: int, model: Switch) -> list[Op]:
    tokens, inner = batch * sequence, model.heads * model.depth
    scores = batch * model.heads * sequence * sequence
    pairs = {"batch": batch * model.heads, "m": sequence, "n": sequence, "k": model.depth}
    rows = {"rows": scores // sequence, "columns": sequence}
    moved = tokens * inner
    outward = {"batch": 1, "m": tokens, "n": inner, "k": model.width}
    return [
        *[matmul_op(f"attention.{name}", outward) for name in "qkv"],
        matmul_op("attention.o", outward | {"n": model.width, "k": inner}),
        matmul_op("attention.scores", pairs),
        matmul_op("attention.values", pairs | {"n": model.depth, "k": sequence}),
        elementwise_op("attention.bias", scores, [scores, scores // batch, scores]),
        memory_op("attention.softmax", "softmax", rows, 5 * scores, [scores, scores]),
        memory_op("attention.merge", "copy", {"size": moved}, 0, [moved, moved]),
    ]


def _feed_forward(name: str, tokens: int, model: Switch) -> list[Op]:
    into = {"batch": 1, "m": tokens, "n": model.inner, "k": model.width}
    size = tokens * model.inner
    return [
        matmul_op(f"{name}.in", into),
        elementwise_op(f"{name}.relu", size, [size, size]),
        matmul_op(f"{name}.out", into | {"n": model.width, "k": model.inner}),
    ]


def _rms_norm(name: str, size: int) -> list[Op]:
    return [
        elementwise_op(f"{name}.square", size, [size, size]),
        memory_op(
            f"{name}.mean", "reduce", {"rows": size // 1024, "columns": 1024}, size, [size, 1]
        ),
        elementwise_op(f"{name}.scale", size, [size, size]),
        elementwise_op(f"{name}.weight", size, [size, size]),
    ]


def _residual(size: int) -> Op:
    return elementwise_op("residual", size, [size, size, size])
