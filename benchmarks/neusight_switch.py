"""The Switch transformer's steps, of which only the whole was measured: built from its config."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.neusight_trace import BYTES, Timed, elementwise_op, matmul_op, memory_op
from scheduler.ir.graph import Op


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
    """The operators of one forward pass.

    The measured input is all ones: every token is alike and goes to one expert, which takes as many
    of each sequence as it can hold; the other experts stay idle.
    """
    tokens = batch * sequence
    full = batch * min(model.capacity, sequence)
    attention = _attention(batch, sequence, model)
    dense = _feed_forward("ff", tokens, model)
    expert = _feed_forward("expert", full, model)
    sparse = model.layers // 2
    timed = [Timed(op, 3 * model.layers) for op in attention]
    timed += [Timed(op, 2 * (model.layers - sparse)) for op in dense]
    timed += [Timed(op, 2 * sparse) for op in expert]
    router = {"batch": 1, "m": tokens, "n": model.experts, "k": model.width}
    timed.append(Timed(matmul_op("router", router), 2 * sparse))
    norms = [*_rms_norm("norm", tokens * model.width), _residual(tokens * model.width)]
    timed += [Timed(op, 5 * model.layers) for op in norms]
    last = {"batch": 1, "m": tokens, "n": model.words, "k": model.width}
    return [*timed, Timed(matmul_op("lm_head", last), 1)]


def behind_ops(forward: Sequence[Timed]) -> list[Timed]:
    """What is behind a forward pass without a trace: two products each, three tensors for two."""
    timed = []
    for part in forward:
        op, dims = part.op, part.op.dims
        if op.kind != "matmul":
            moved = (op.bytes_read + op.bytes_written) / BYTES
            back = memory_op(
                f"{op.name}.backward", op.kind, dict(dims), op.flops, [moved, moved / 2]
            )
            timed.append(Timed(back, part.count))
            continue
        for m, n, k in ((dims["m"], dims["k"], dims["n"]), (dims["k"], dims["n"], dims["m"])):
            product = {"batch": dims["batch"], "m": m, "n": n, "k": k}
            timed.append(Timed(matmul_op(f"{op.name}.backward", product), part.count))
    return timed


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
