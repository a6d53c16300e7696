"""The graph of a batch from the graphs of two others, where every size is affine in the batch."""

from dataclasses import replace

from scheduler.ir.graph import Graph, Op, Tensor


def affine(one: Graph, other: Graph, samples: int) -> Graph:
    """The graph of `samples`, each size on the line through its values in two captures.

    size(b) = size(b1) + (size(b2) - size(b1)) (b - b1) / (b2 - b1), exact for networks whose
    layers treat the samples of a batch alike: all work is then a part per sample and a part per
    run (weights, their gradients and updates). O(operators).

    Raises:
        ValueError: the captures differ in more than sizes, or a size would be no whole number.
    """
    share = (samples - one.samples) / (other.samples - one.samples)
    if [_fixed(op) for op in one.ops] != [_fixed(op) for op in other.ops]:
        raise ValueError(
            f"graph '{one.name}': its captures with batch {one.samples} and {other.samples} have "
            f"other operators; capture it with batch {samples}"
        )
    ops = tuple(_op(a, b, share) for a, b in zip(one.ops, other.ops, strict=True))
    inputs = tuple(_tensor(a, b, share) for a, b in zip(one.inputs, other.inputs, strict=True))
    return replace(one, ops=ops, inputs=inputs, samples=samples)


def _fixed(op: Op) -> tuple[object, ...]:
    made = tuple((out.name, out.dtype, len(out.shape)) for out in op.outputs)
    return op.name, op.target, op.inputs, made, tuple(op.dims), op.weights


def _op(a: Op, b: Op, share: float) -> Op:
    if a == b:
        return a
    return replace(
        a,
        flops=_between(a.flops, b.flops, share),
        bytes_read=_between(a.bytes_read, b.bytes_read, share),
        bytes_written=_between(a.bytes_written, b.bytes_written, share),
        outputs=tuple(_tensor(p, q, share) for p, q in zip(a.outputs, b.outputs, strict=True)),
        dims={key: _whole(a.dims[key], b.dims[key], share, a.name) for key in a.dims},
        state_bytes=_between(a.state_bytes, b.state_bytes, share),
        weight_share=min(1.0, _between(a.weight_share, b.weight_share, share)),
    )


def _tensor(a: Tensor, b: Tensor, share: float) -> Tensor:
    shape = (_whole(p, q, share, a.name) for p, q in zip(a.shape, b.shape, strict=True))
    return Tensor(a.name, tuple(shape), a.dtype)


def _between(a: float, b: float, share: float) -> float:
    return max(0.0, a + (b - a) * share)


def _whole(a: int, b: int, share: float, name: str) -> int:
    size = _between(a, b, share)
    if abs(size - round(size)) > 1e-6 or (size < 0.5 < min(a, b)):
        raise ValueError(f"'{name}': a size of {size:g} is no whole number")
    return round(size)
