"""The sizes that an operator's time depends on, by class of operator.

| class | sizes |
|---|---|
| matmul | batch, m, n, k; a linear layer has batch 1 and m = all leading sizes; a grouped product has one group per batch and its mean rows as m |
| conv | batch, in_channels, out_channels, out_pixels, in_pixels, kernel, groups, stride; pixels, kernel and stride are products over the spatial axes |
| attention | batch, heads, kv_heads, queries, keys, depth, value_depth, causal |
| norm, softmax, reduce | rows, columns; a row is normalised, or reduced to one value |
| pool | size (outputs), kernel (inputs per output) |
| embedding | rows (looked up), columns (elements of each) |
| elementwise | size (outputs), operands (input tensors of that size) |
| copy | size (outputs), leading as of a view |
| view | leading: size of the first axis, where the view keeps it |
"""  # noqa: E501

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from executor.einsum import einsum_dims
from executor.op_call import OpCall

Dims = Mapping[str, int]
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
RESHAPES = {"view", "reshape", "_unsafe_view", "expand"}
ALONG_AXIS = {"topk", "sort", "argsort", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"}


def matmul_dims(call: OpCall) -> Dims:
    """Sizes of batch products (m, k) @ (k, n)."""
    if call.name == "einsum":
        return einsum_dims(call.args["equation"], [t.shape for t in call.tensors])
    with_bias_first = call.name.startswith(("addm", "baddbmm", "addbmm"))
    left, right = call.tensors[1:3] if with_bias_first else call.tensors[:2]
    if "grouped_mm" in call.name:
        return _grouped(left, right, call.tensors[2])
    if call.name in RECURRENT:
        return _recurrent(call)
    k, n = left.shape[-1], right.shape[-1] if right.ndim > 1 else 1
    if call.name == "linear":
        n = right.shape[0] if right.ndim > 1 else 1
    if right.ndim <= 2:
        return {"batch": 1, "m": left.numel() // max(k, 1), "n": n, "k": k}
    batch = prod(np.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
    return {"batch": batch, "m": left.shape[-2] if left.ndim > 1 else 1, "n": n, "k": k}


def _recurrent(call: OpCall) -> Dims:
    """Every weight matrix of every layer and direction, once a step of the sequence."""
    matrices = [t for t in call.args["params"] if t.ndim == 2]
    n = matrices[0].shape[0]
    k = sum(t.numel() for t in matrices) // n
    return {"batch": 1, "m": call.input.numel() // call.input.shape[-1], "n": n, "k": k}


def _grouped(left: Tensor, right: Tensor, ends: Tensor) -> Dims:
    """(rows, k) @ (groups, k, n), each row by the matrix of its group.

    Or (m, rows) @ (rows, n) to (groups, m, n), each group of rows on its own.
    """
    n = right.shape[-1]
    if right.ndim == 2:
        groups = ends.shape[0]
        return {"batch": groups, "m": left.shape[0], "n": n, "k": -(-right.shape[0] // groups)}
    groups, k = right.shape[0], left.shape[-1]
    rows = left.numel() // max(k, 1)
    return {"batch": groups, "m": -(-rows // groups), "n": n, "k": k}


def conv_dims(call: OpCall) -> Dims:
    """Sizes of a convolution; of a backward one, those of its forward."""
    source, weight = call.args["input"], call.args["weight"]
    result = call.args.get("grad_output", call.output)
    spatial = weight.ndim - 2
    stride = call.args["stride"]
    strides = stride if isinstance(stride, Sequence) else [stride]
    return {
        "batch": prod(source.shape[: -1 - spatial]),
        "in_channels": source.shape[-1 - spatial],
        "out_channels": result.shape[-1 - spatial],
        "out_pixels": prod(result.shape[-spatial:]),
        "in_pixels": prod(source.shape[-spatial:]),
        "kernel": prod(weight.shape[2:]),
        "groups": call.args["groups"],
        "stride": prod(strides) ** (spatial if len(strides) == 1 else 1),
    }


def attention_dims(call: OpCall) -> Dims:
    """Sizes of softmax(Q K^T) V; tensors are (batch..., heads, length, depth)."""
    query, key, value = (call.args[name] for name in ("query", "key", "value"))
    past = call.args["past_key"].shape[-2] if "past_key" in call.args else 0
    return {
        "batch": prod(query.shape[:-3]),
        "heads": query.shape[-3] if query.ndim > 2 else 1,
        "kv_heads": key.shape[-3] if key.ndim > 2 else 1,
        "queries": query.shape[-2],
        "keys": past + key.shape[-2],
        "depth": query.shape[-1],
        "value_depth": value.shape[-1],
        "causal": int(bool(call.args.get("is_causal", "past_key" in call.args))),
    }


def norm_dims(call: OpCall) -> Dims:
    """Rows that share one mean and one variance; of batch norm, the planes with one scale."""
    source = call.args.get("input", call.input)
    shape, size = source.shape, source.numel()
    if "normalized_shape" in call.args:
        columns = prod(call.args["normalized_shape"])
    elif "num_groups" in call.args or "group" in call.args:
        groups = call.args.get("num_groups", call.args.get("group"))
        columns = size // max(shape[0] * groups, 1)
    else:
        columns = prod(shape[2:])
    return _rows(size, columns)


def axis_dims(call: OpCall) -> Dims:
    """Rows along the axis of a softmax, a sort or a scan."""
    source = call.input
    dim = call.args.get("dim", -1)
    return _rows(source.numel(), source.shape[dim] if source.ndim else 1)


def reduce_dims(call: OpCall) -> Dims:
    """A row of inputs for each output; of a sort or a scan, the rows along its axis."""
    if call.name in ALONG_AXIS:
        return axis_dims(call)
    size, rows = call.input.numel(), call.output.numel()
    return {"rows": rows, "columns": size // max(rows, 1)}


def _rows(size: int, columns: int) -> Dims:
    return {"rows": size // max(columns, 1), "columns": columns}


def pool_dims(call: OpCall) -> Dims:
    """Outputs, and the inputs that each is made of."""
    result = call.args.get("grad_output", call.output)
    if "kernel_size" not in call.args:
        source = call.args.get("self", call.input)
        return {"size": result.numel(), "kernel": -(-source.numel() // max(result.numel(), 1))}
    kernel = call.args["kernel_size"]
    spatial = int(call.name.partition("pool")[2][0])
    return {
        "size": result.numel(),
        "kernel": prod(kernel) if len(_list(kernel)) == spatial else _list(kernel)[0] ** spatial,
    }


def _list(value: Any) -> Sequence[int]:
    return value if isinstance(value, Sequence) else [value]


def embedding_dims(call: OpCall) -> Dims:
    """Rows that indices choose, and their length."""
    table, *indices = call.tensors
    if "embedding" in call.name:
        return {"rows": indices[0].numel(), "columns": table.shape[-1]}
    size = call.output.numel()
    if call.name.startswith(("gather", "take_along_dim")):
        return {"rows": size, "columns": 1}
    rows = prod(np.broadcast_shapes(*(index.shape for index in indices)))
    return {"rows": rows, "columns": size // max(rows, 1)}


def elementwise_dims(call: OpCall) -> Dims:
    """Outputs, and the input tensors that have as many elements."""
    size = call.output.numel()
    return {"size": size, "operands": sum(t.numel() == size for t in call.tensors)}


def copy_dims(call: OpCall) -> Dims:
    """Elements written; of a reshape that copies, also the first axis where it is kept."""
    kept = view_dims(call) if call.name in ("reshape", "flatten") else {}
    return {"size": sum(t.numel() for t in call.outputs), **kept}


def view_dims(call: OpCall) -> Dims:
    """The first axis, where a view leaves it as it is; no other size, as views take no time."""
    shapes = [t.shape for t in (*call.tensors[:1], *call.outputs)]
    if len(shapes) < 2 or not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        return {}
    return {"leading": shapes[0][0]} if _keeps_first_axis(call) else {}


def _keeps_first_axis(call: OpCall) -> bool:
    rank = call.input.ndim + (call.name == "unsqueeze")
    if call.name in RESHAPES:
        return call.name != "expand" or call.output.ndim == rank
    if call.name == "permute":
        return bool(call.args["dims"][0] % rank == 0)
    axes = [call.args[key] for key in ("dim", "dim0", "dim1", "start_dim") if key in call.args]
    return bool(axes) and all(isinstance(axis, int) and axis % rank for axis in axes)


DIMS: Mapping[str, Callable[[OpCall], Dims]] = {
    "matmul": matmul_dims,
    "conv": conv_dims,
    "attention": attention_dims,
    "norm": norm_dims,
    "softmax": axis_dims,
    "reduce": reduce_dims,
    "pool": pool_dims,
    "embedding": embedding_dims,
    "elementwise": elementwise_dims,
    "copy": copy_dims,
    "view": view_dims,
}
