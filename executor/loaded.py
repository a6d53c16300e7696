"""A model with weights, exported for a whole batch and for a micro-batch."""

from dataclasses import dataclass, replace

from executor.capture import to_graph
from executor.export import export
from executor.program import Program
from executor.sources import build_model
from executor.stages import Tensors

MIN_MICRO_BATCH_FLOPS = 1e9
"""Tens of milliseconds on a core, against about 0.2 ms to hand a tensor over."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with real weights, exported for a whole batch and for a micro-batch.

    Attributes:
        batches: two different batches of inputs, by input name.
        micro_batches: the same, cut along the first dimension: 2 * num_micro_batches of them.
    """

    whole: Program
    micro: Program
    batches: list[Tensors]
    micro_batches: list[Tensors]
    dtype: str


def load_model(
    source: str, batch: int, dtype: str, num_micro_batches: int, tokens: int | None = None
) -> LoadedModel:
    """Build a model with weights and export it.

    Raises:
        ValueError: as `build_model` and `export`.
    """
    model = build_model(source, batch, dtype, "cpu", tokens)
    whole = export(model)
    other = model.with_tensors(lambda x: x * 0.5 if x.is_floating_point() else x.flip(-1))
    names = whole.inputs
    batches = [dict(zip(names, m.tensors, strict=True)) for m in (model, other)]
    if num_micro_batches == 1:
        return LoadedModel(whole, whole, batches, batches, dtype)
    chunks = [
        {name: tensor.chunk(num_micro_batches)[k] for name, tensor in values.items()}
        for values in batches
        for k in range(num_micro_batches)
    ]
    part = model.with_tensors(lambda x: x.chunk(num_micro_batches)[0])
    return LoadedModel(whole, export(part, whole.captured_by), batches, chunks, dtype)


def most_micro_batches(source: str, batch: int, dtype: str, tokens: int | None = None) -> int:
    """The most micro-batches, up to four, that a batch can usefully be cut into.

    A batch can be cut where every input and output has it as first dimension, and should be while
    a part still has `MIN_MICRO_BATCH_FLOPS` of work.
    """
    program = export(build_model(source, batch, dtype, "meta", tokens))
    names = {*program.inputs, *program.outputs}
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in names]
    if any(len(shape) == 0 or shape[0] != batch for shape in shapes):
        return 1
    flops = to_graph(program, source, batch).totals()["flops"]
    return next(
        m for m in (4, 3, 2, 1) if m == 1 or (batch % m == 0 and flops / m >= MIN_MICRO_BATCH_FLOPS)
    )


def uncut(model: LoadedModel) -> LoadedModel:
    """The model with whole batches as its micro-batches."""
    return replace(model, micro=model.whole, micro_batches=model.batches)
