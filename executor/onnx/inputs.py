"""Inputs of an ONNX model: its free dimensions bound to sizes, and example values."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from executor.onnx.file import OnnxFile, dtype_of

TOKENS = 128
BATCH = re.compile(r"batch|^n$|^b$|^bs$|^unk|^none$|^\?$", re.IGNORECASE)
LENGTH = re.compile(r"seq|token|length|^t$|^l$|^s$", re.IGNORECASE)
PAST = re.compile(r"past|cache|total", re.IGNORECASE)

Shape = tuple[int, ...]


def reads_tokens(file: OnnxFile) -> bool:
    """Whether a free dimension is a length of text."""
    return any(_role(dim, i) == "tokens" for x in file.inputs for i, dim in enumerate(_dims(x)))


def bound_shapes(file: OnnxFile, batch: int, tokens: int) -> dict[str, Shape]:
    """The shape of each input with its free dimensions set: the batch, and the tokens of text.

    Raises:
        ValueError: the batch is fixed at another size, or another dimension is free.
    """
    shapes = {x.name: _bound(file, x, batch, tokens) for x in file.inputs}
    is_free = any(_role(dim, i) == "batch" for x in file.inputs for i, dim in enumerate(_dims(x)))
    fixed = next((shape[0] for shape in shapes.values() if shape), batch)
    if not is_free and fixed != batch:
        raise ValueError(
            f"its batch is fixed at {fixed}, got model.batch {batch}; set model.batch to {fixed}, "
            "or export it with a dynamic batch axis"
        )
    return shapes


def _dims(given: Any) -> list[int | str]:
    """Sizes where they are fixed, names (perhaps empty) where they are free."""
    if not given.type.HasField("tensor_type"):
        raise ValueError(f"input '{given.name}' is not a tensor; export a model that reads tensors")
    dims = given.type.tensor_type.shape.dim
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param for d in dims
    ]


def _role(dim: int | str, position: int) -> str:
    if isinstance(dim, int):
        return "fixed"
    if BATCH.search(dim) and not LENGTH.search(dim):
        return "batch"
    if LENGTH.search(dim) and not PAST.search(dim):
        return "tokens"
    return "batch" if position == 0 else "free"


def _bound(file: OnnxFile, given: Any, batch: int, tokens: int) -> Shape:
    sizes = []
    for position, dim in enumerate(_dims(given)):
        role = _role(dim, position)
        if role == "free":
            name = dim or f"dim {position}"
            raise ValueError(
                f"input '{given.name}' leaves dimension '{name}' (axis {position}) open; only the "
                "batch and a length of text are bound here; fix it in the file: python -m "
                f"onnxruntime.tools.make_dynamic_shape_fixed --input_name {given.name} "
                f"--input_shape ... {file.path.name} fixed.onnx, or with "
                "onnx.tools.update_model_dims"
            )
        sizes.append({"batch": batch, "tokens": tokens}.get(role, dim))
    return tuple(int(size) for size in sizes)


def example_inputs(file: OnnxFile, shapes: Mapping[str, Shape]) -> tuple[Tensor, ...]:
    """One batch of inputs: normal numbers, ids below what is looked up by them, masks of ones."""
    limits = _table_sizes(file)
    return tuple(_example(x, shapes[x.name], limits) for x in file.inputs)


def _example(given: Any, shape: Shape, limits: Mapping[str, int]) -> Tensor:
    dtype = dtype_of(given.type.tensor_type.elem_type)
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    if dtype == torch.bool or "mask" in given.name:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(limits.get(given.name, 2), shape, dtype=dtype)


def _table_sizes(file: OnnxFile) -> dict[str, int]:
    """By input, how many rows the smallest table has that it looks up, directly or converted."""
    names = {x.name: x.name for x in file.inputs}
    sizes: dict[str, int] = {}
    for node in file.nodes:
        if node.op_type in ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity"):
            if node.input[0] in names:
                names[node.output[0]] = names[node.input[0]]
        elif node.op_type == "Gather" and node.input[1] in names:
            table = file.initializers.get(node.input[0])
            if table is not None:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                name = names[node.input[1]]
                sizes[name] = min(int(table.dims[axis]), sizes.get(name, 2**31))
    return sizes
