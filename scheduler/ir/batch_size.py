"""A graph at another batch size: work and activations in proportion, parameters as they are."""

from dataclasses import replace

from scheduler.ir.graph import Graph, Op, Tensor

BATCH_DIM = {"norm": "rows", "softmax": "rows", "reduce": "rows", "embedding": "rows"} | {
    "pool": "size", "elementwise": "size", "copy": "size", "view": "leading"
}  # fmt: skip
"""The size that grows with the batch, by operator class, where it is not called `batch`."""


def with_samples(graph: Graph, samples: int) -> Graph:
    """Scale a graph to another batch size: FLOPs and activation bytes in proportion.

    Parameters stay, and so do operators that no input of the graph reaches (positions, masks).
    Exact where every other operator's work is linear in the batch, which holds for inference of
    the usual networks. Tensor shapes scale in their first dimension.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if samples == graph.samples:
        return graph
    if graph.mode != "inference":
        raise ValueError(
            f"graph '{graph.name}' is a {graph.mode} graph of batch {graph.samples}, "
            f"which cannot be scaled to {samples}; capture it with that batch"
        )
    factor = samples / graph.samples

    def scaled(tensor: Tensor) -> Tensor:
        if not tensor.shape or tensor.shape[0] % graph.samples:
            return tensor
        first = tensor.shape[0] // graph.samples * samples
        return Tensor(tensor.name, (first, *tensor.shape[1:]), tensor.dtype)

    reached = {tensor.name for tensor in graph.inputs}
    ops = []
    for op in graph.ops:
        if not reached.isdisjoint(op.inputs):
            reached.update(tensor.name for tensor in op.outputs)
            outputs = tuple(scaled(tensor) for tensor in op.outputs)
            op = replace(scaled_op(op, factor), outputs=outputs)
        ops.append(op)
    inputs = tuple(scaled(tensor) for tensor in graph.inputs)
    return replace(graph, ops=tuple(ops), inputs=inputs, samples=samples)


def scaled_op(op: Op, factor: float) -> Op:
    """An operator over another batch; its outputs stay as they are."""
    return replace(
        op,
        flops=op.flops * factor,
        bytes_read=op.bytes_read * factor,
        bytes_written=op.bytes_written * factor,
        dims=_scaled_dims(op, factor),
        weight_share=_scaled_share(op.weight_share, factor),
    )


def _scaled_dims(op: Op, factor: float) -> dict[str, int]:
    name = BATCH_DIM.get(op.kind, "m" if op.dims.get("batch") == 1 and "m" in op.dims else "batch")
    return {k: round(v * factor) if k == name else v for k, v in op.dims.items()}


def _scaled_share(share: float, factor: float) -> float:
    return share if share == 1 else min(1.0, share * factor)
