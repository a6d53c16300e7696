"""Along which dimensions an operator's output can be cut, and what each part then takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hardware.documents import STRICT
from scheduler.ir.graph import Graph, Op, Tensor


@dataclass(frozen=True)
class Split:
    """An operator's output cut along a dimension, counted from 0, into parts of equal size.

    Where the size is no multiple of `parts` the first parts are one longer.
    """

    __pydantic_config__ = STRICT

    dim: int
    parts: int

    def __post_init__(self) -> None:
        """Refuse less than two parts."""
        if self.dim < 0 or self.parts < 2:
            raise ValueError(
                f"a split needs a dim from 0 and at least 2 parts, got {self.dim}, {self.parts}"
            )


Splits = Mapping[str, Split]


@dataclass(frozen=True)
class Cut:
    """What one part of an operator takes: the dimension cut of each input, and of its weights.

    None: taken whole.
    """

    inputs: tuple[int | None, ...]
    weights: int | None = None


Rule = Callable[[Op, tuple[Tensor, ...], int], Cut | None]


def _linear(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """Columns by the weight's first axis, leading sizes by the input's."""
    if len(tensors) != 1 or not op.weights:
        return None
    is_column = dim == len(op.outputs[0].shape) - 1
    return Cut((None,), 0) if is_column else Cut((dim,))


def _addmm(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """As a linear layer, its weight's columns last."""
    if len(tensors) != 1 or len(op.weights) != 2:
        return None
    return Cut((None,), -1) if dim == 1 else Cut((0,))


def _conv(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """Output channels where they all read all inputs, and the batch."""
    if len(tensors) != 1 or dim > 1 or len(tensors[0].shape) != len(op.outputs[0].shape):
        return None
    if dim == 0:
        return Cut((0,))
    return Cut((None,), 0) if op.weights and op.dims.get("groups") == 1 else None


def _alike(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """Inputs of the output's shape are cut as it is; those that broadcast along `dim` are not."""
    shape = op.outputs[0].shape
    dims: list[int | None] = []
    for tensor in tensors:
        behind = dim - (len(shape) - len(tensor.shape))
        size = tensor.shape[behind] if behind >= 0 else 1
        if size not in (1, shape[dim]):
            return None
        dims.append(behind if size > 1 else None)
    return Cut(tuple(dims)) if any(d is not None for d in dims) else None


def _elementwise(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    return None if op.weights else _alike(op, tensors, dim)


def _attention(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """Heads, those of keys and values with them, and the batch."""
    if dim not in (0, len(op.outputs[0].shape) - 3) or op.weights:
        return None
    if dim > 0 and op.dims.get("heads") != op.dims.get("kv_heads"):
        return None
    return _alike(op, tensors, dim)


def _batch_norm(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    return Cut((dim,), 0 if dim else None) if len(tensors) == 1 and dim < 2 else None


def _batch_only(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    one = len(tensors) == 1 and len(tensors[0].shape) > 1
    return Cut((0,)) if one and dim == 0 else None


def _rows(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """A look-up by its indices; the table is taken whole."""
    inner = len(tensors) == 1 and dim < len(tensors[0].shape)
    return Cut((dim,)) if inner and op.weights else None


def _view(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """The first axis, where the view keeps it."""
    return Cut((0,)) if len(tensors) == 1 and dim == 0 and "leading" in op.dims else None


def _planes(op: Op, tensors: tuple[Tensor, ...], dim: int) -> Cut | None:
    """Pooling: batch and channels."""
    same = len(tensors) == 1 and len(tensors[0].shape) == len(op.outputs[0].shape) == 4
    return Cut((dim,)) if same and dim < 2 else None


RULES: Mapping[str, Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "layer_norm": _batch_only,
    "rms_norm": _batch_only,
    "embedding": _rows,
    "contiguous": _alike,
    "clone": _alike,
    "max_pool2d": _planes,
    "avg_pool2d": _planes,
    "adaptive_avg_pool2d": _planes,
}
"""How operators are cut, by the name of their target."""

CLASS_RULES: Mapping[str, Rule] = {"elementwise": _elementwise, "view": _view, "copy": _view}
"""And those without a rule of their own, by their class."""

AXES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "matmul": (("m",), ("n",)),
    "conv": (("batch",), ("out_channels",)),
    "attention": (("batch",), ("heads", "kv_heads")),
    "norm": (("rows",), ("rows",)),
    "pool": (("size",), ("size",)),
    "elementwise": (("size",), ("size",)),
    "copy": (("size", "leading"), ("size",)),
    "embedding": (("rows",), ("rows",)),
    "view": (("leading",), ()),
}
"""Sizes that shrink with a cut, by class: of the leading dimensions, and of the others."""


def cut_of(graph: Graph, op: Op, split: Split) -> Cut | None:
    """How an operator is cut; None where it cannot be."""
    if len(op.outputs) != 1 or op.phase != "forward":
        return None
    shape = op.outputs[0].shape
    if split.dim >= len(shape) or shape[split.dim] < split.parts:
        return None
    name = op.target.removeprefix("aten.").partition(".")[0]
    rule = RULES.get(name) or CLASS_RULES.get(op.kind)
    tensors = tuple(graph.tensors[name] for name in op.inputs)
    if rule is None or not tensors:
        return None
    cut = rule(op, tensors, split.dim)
    if cut is None or any(
        d is not None and t.shape[d] < split.parts for d, t in zip(cut.inputs, tensors, strict=True)
    ):
        return None
    return cut
