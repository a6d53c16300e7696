"""Splitting one operator into parts that several devices can run (tensor parallelism).

A split cuts the operator's output along one dimension: the columns of a linear layer, the heads of
an attention, the channels of a convolution, or the batch.

      x ── linear ── y              x ─┬─ linear_part0 ─┬─ linear ── y
                                       └─ linear_part1 ─┘  (join)

Neighbours that are split alike hand their parts on without a join. The join bears the operator's
name, so that pins, readers and outputs of the graph stay as they are.

Source: Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model
parallelism", arXiv:1909.08053, section 3; Jia, Zaharia, Aiken, "Beyond data and model parallelism
for deep neural networks", MLSys 2019, section 4 (an operator's output cut along its dimensions).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.tensor_parallel.split_rules import AXES, Cut, Split, Splits, cut_of


@dataclass(frozen=True)
class Step:
    """One operator of a split graph.

    Attributes:
        role: an unsplit operator, a part of a split one, a slice of a tensor, a join of parts.
        source: the operator that it was, or the tensor that is sliced or joined.
        inputs: the tensors that it reads.
        number, split: which part, of what.
    """

    role: Literal["keep", "part", "slice", "join"]
    name: str
    source: str
    inputs: tuple[str, ...]
    number: int = 0
    split: Split | None = None


def steps(graph: Graph, splits: Splits) -> list[Step]:
    """The operators of the split graph, in an order in which they can run. O(operators x parts).

    Raises:
        ValueError: the graph has no such operator, or it cannot be cut so.
    """
    cuts = {name: _checked(graph, name, split) for name, split in splits.items()}
    whole = _read_whole(graph, splits, cuts)
    made: dict[str, Step] = {}

    def emit(step: Step) -> str:
        return made.setdefault(step.name, step).name

    def piece(tensor: str, split: Split, number: int) -> str:
        producer = graph.producer.get(tensor, "")
        if splits.get(producer) == split:
            return f"{producer}_part{number}"
        name = f"{tensor}_slice{split.dim}_{number}of{split.parts}"
        return emit(Step("slice", name, tensor, (tensor,), number, split))

    def all_of(tensor: str, number: int) -> str:
        producer = graph.producer.get(tensor, "")
        split = splits.get(producer)
        if split is None:
            return tensor
        pieces = tuple(f"{producer}_part{i}" for i in range(split.parts))
        return emit(Step("join", f"{producer}_join{number}", tensor, pieces, number, split))

    for op in graph.ops:
        split = splits.get(op.name)
        if split is None:
            emit(Step("keep", op.name, op.name, op.inputs))
            continue
        parts = []
        for i in range(split.parts):
            inputs = tuple(
                all_of(tensor, i) if dim is None else piece(tensor, Split(dim, split.parts), i)
                for tensor, dim in zip(op.inputs, cuts[op.name].inputs, strict=True)
            )
            parts.append(emit(Step("part", f"{op.name}_part{i}", op.name, inputs, i, split)))
        tensor = op.outputs[0].name
        if tensor in whole:
            emit(Step("join", op.name, tensor, tuple(parts), 0, split))
    return list(made.values())


def _checked(graph: Graph, name: str, split: Split) -> Cut:
    if name not in graph.by_name:
        raise ValueError(f"split '{name}': the graph has no such operator")
    cut = cut_of(graph, graph.by_name[name], split)
    if cut is None:
        op = graph.by_name[name]
        raise ValueError(
            f"split '{name}': {op.target or op.kind} cannot be cut along dimension {split.dim} "
            f"into {split.parts} parts"
        )
    return cut


def _read_whole(graph: Graph, splits: Splits, cuts: Mapping[str, Cut]) -> set[str]:
    """Tensors of split operators that must be joined under their own name."""
    whole = set(graph.outputs)
    for op in graph.ops:
        split = splits.get(op.name)
        for i, tensor in enumerate(op.inputs):
            dim = cuts[op.name].inputs[i] if split else None
            source = splits.get(graph.producer.get(tensor, ""))
            if source is None:
                continue
            is_sliced = split is not None and dim is not None
            if split is None or (is_sliced and source != Split(dim or 0, split.parts)):
                whole.add(tensor)
    return whole


def split_graph(graph: Graph, splits: Splits) -> Graph:
    """The graph with operators split; FLOPs and parameters are preserved.

    Raises:
        ValueError: as `steps`.
    """
    tensors = dict(graph.tensors)
    ops: list[Op] = []
    for step in steps(graph, splits):
        op = _op(graph, step, tensors)
        tensors |= {tensor.name: tensor for tensor in op.outputs}
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def _op(graph: Graph, step: Step, tensors: Mapping[str, Tensor]) -> Op:
    if step.role == "keep":
        return graph.by_name[step.source]
    assert step.split is not None
    if step.role == "part":
        return _part(graph, step, tensors)
    source = tensors.get(step.source) or graph.tensors[step.source]
    owner = graph.by_name.get(graph.producer.get(step.source, ""))
    module = owner.module if owner else ""
    if step.role == "slice":
        out = _cut_tensor(source, step.name, step.split.dim, step.number, step.split.parts)
        return Op(
            step.name, "view", 0, 0, 0, out.dtype, step.inputs, (out,),
            target="aten.slice.Tensor", module=module,
            dims={"leading": out.shape[0]} if step.split.dim else {},
        )  # fmt: skip
    out = replace(source, name=step.name)
    size = out.num_bytes
    num = size // max(1, Tensor("", (), out.dtype).num_bytes)
    return Op(
        step.name, "copy", 0, size, size, out.dtype, step.inputs, (out,),
        target="aten.cat.default", module=module, dims={"size": num},
    )  # fmt: skip


def sizes(total: int, parts: int) -> Iterator[tuple[int, int]]:
    """Start and length of each part."""
    start = 0
    for i in range(parts):
        length = total // parts + (i < total % parts)
        yield start, length
        start += length


def _cut_tensor(tensor: Tensor, name: str, dim: int, number: int, parts: int) -> Tensor:
    _, length = list(sizes(tensor.shape[dim], parts))[number]
    shape = (*tensor.shape[:dim], length, *tensor.shape[dim + 1 :])
    return Tensor(name, shape, tensor.dtype)


def _part(graph: Graph, step: Step, tensors: Mapping[str, Tensor]) -> Op:
    op, split = graph.by_name[step.source], step.split
    assert split is not None
    cut = cut_of(graph, op, split)
    assert cut is not None
    out = _cut_tensor(op.outputs[0], step.name, split.dim, step.number, split.parts)
    share = out.num_bytes / max(op.outputs[0].num_bytes, 1)
    weights = dict(op.weights)
    if cut.weights is not None:
        label = f"[part {step.number} of {split.parts}]"
        weights = {f"{name}{label}": round(size * share) for name, size in weights.items()}
    rank = len(out.shape)
    leading = split.dim < rank - 1 if op.kind == "matmul" else split.dim == 0
    names = AXES[op.kind][0 if leading else 1]
    return replace(
        op,
        name=step.name,
        flops=op.flops * share,
        bytes_read=0 if op.kind == "view" else sum(tensors[n].num_bytes for n in step.inputs),
        bytes_written=0 if op.kind == "view" else out.num_bytes,
        inputs=step.inputs,
        outputs=(out,),
        weights=weights,
        weight_share=op.weight_share * (share if op.kind == "embedding" else 1),
        dims={k: round(v * share) if k in names else v for k, v in op.dims.items()},
    )
