"""ONNX operators that move, select or make elements.

Source: ONNX operator schemas, https://onnx.ai/onnx/operators (defaults of attributes).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from executor.onnx.rule import Call, Rule, Rules, axes_of


def _reshape(call: Call, x: Tensor, shape: Any = None) -> Tensor:
    target = [int(n) for n in (call.attrs["shape"] if shape is None else shape)]
    if not call.get("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return x.reshape(target)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1 and x.ndim > 1:
        return torch.flatten(x, 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _squeeze(call: Call, x: Tensor, axes: Any = None) -> Tensor:
    chosen = axes_of(call, axes)
    return torch.squeeze(x) if chosen is None else torch.squeeze(x, tuple(chosen))


def _unsqueeze(call: Call, x: Tensor, axes: Any = None) -> Tensor:
    chosen = axes_of(call, axes) or []
    for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def _expand(call: Call, x: Tensor, shape: Any) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(int(n) for n in shape)))


def _tile(call: Call, x: Tensor, repeats: Any) -> Tensor:
    return x.repeat([int(n) for n in repeats])


def _split(call: Call, x: Tensor, sizes: Any = None) -> Sequence[Tensor]:
    axis = call.get("axis", 0)
    sizes = call.get("split") if sizes is None else sizes
    if sizes is not None:
        return torch.split_with_sizes(x, [int(n) for n in sizes], axis)
    parts = call.get("num_outputs", call.num_outputs)
    size = -(-x.shape[axis] // parts)
    last = x.shape[axis] - size * (parts - 1)
    return torch.split_with_sizes(x, [size] * (parts - 1) + [last], axis)


def _slice(call: Call, x: Tensor, *given: Any) -> Tensor:
    """Slices by axis; a negative step flips first."""
    starts, ends, axes, steps = (*given, None, None, None, None)[:4]
    starts, ends = (call.attrs["starts"], call.attrs["ends"]) if starts is None else (starts, ends)
    axes = call.get("axes", range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.shape[int(axis)]
        chosen = range(n)[slice(int(start), int(end), int(step))]
        if step < 0:
            x = x.flip(int(axis))
            chosen = range(n - 1 - chosen.start, n - 1 - chosen.stop, -chosen.step)
        index = [slice(None)] * x.ndim
        index[int(axis)] = slice(chosen.start, chosen.stop, chosen.step)
        if chosen != range(n):
            x = x[tuple(index)]
    return x


def _pad(call: Call, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    """Constants around, or elements chosen by index where edges repeat, mirror or wrap."""
    pads = call.attrs["pads"] if pads is None else pads
    fill = float(call.get("value", 0.0) if value is None else value.item())
    chosen = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    half = len(pads) // 2
    sides = {a: (int(pads[i]), int(pads[i + half])) for i, a in enumerate(chosen)}
    mode = call.get("mode", "constant")
    if mode == "constant":
        flat = [side for a in reversed(range(x.ndim)) for side in sides.get(a, (0, 0))]
        return F.pad(x, flat, value=fill if x.is_floating_point() else int(fill))
    for axis, (before, after) in sides.items():
        if before or after:
            order = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] + min(after, 0)]
            wide: Any = (max(before, 0), max(after, 0))
            x = x.index_select(axis, _tensor(x, np.pad(order, wide, mode=mode)))
    return x


def _tensor(x: Tensor, values: Any) -> Tensor:
    return torch.tensor(values.tolist(), dtype=torch.int64, device=x.device)


def _gather(call: Call, data: Tensor, indices: Any) -> Tensor:
    """One position is a view; rows of a table are an embedding; else an index."""
    axis = call.get("axis", 0) % data.ndim
    if not isinstance(indices, Tensor):
        return data.select(axis, int(indices))
    if axis == 0 and data.ndim == 2 and isinstance(data, torch.nn.Parameter):
        return F.embedding(indices, data)
    index: list[Any] = [slice(None)] * axis
    return data[(*index, indices.long())]


def _gather_elements(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % data.ndim
    return torch.gather(data, axis, torch.remainder(indices, data.shape[axis]))


def _gather_nd(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    outer = call.get("batch_dims", 0)
    rows: list[Tensor] = []
    for axis in range(outer):
        shape = [1] * (indices.ndim - 1)
        shape[axis] = -1
        rows.append(torch.arange(data.shape[axis], device=data.device).reshape(shape))
    return data[(*rows, *indices.long().unbind(-1))]


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(call: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = call.get("axis", 0) % data.ndim
    index = torch.remainder(indices, data.shape[axis])
    how = call.get("reduction", "none")
    if how == "none":
        return torch.scatter(data, axis, index, updates)
    return torch.scatter_reduce(data, axis, index, updates, REDUCTIONS[how])


def _scatter_nd(call: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how = call.get("reduction", "none")
    where = indices.long().unbind(-1)
    if how in ("mul", "max", "min"):
        depth = len(where)
        steps = torch.arange(data[(0,) * depth].numel() or 1, device=data.device)
        rows = torch.zeros_like(where[0])
        for axis, index in enumerate(where):
            rows = rows * data.shape[axis] + torch.remainder(index, data.shape[axis])
        place = (rows.reshape(-1, 1) * len(steps) + steps).reshape(-1)
        flat = data.reshape(-1).scatter_reduce(0, place, updates.reshape(-1), REDUCTIONS[how])
        return flat.reshape(data.shape)
    return torch.index_put(data, where, updates, accumulate=how == "add")


def _one_hot(call: Call, indices: Tensor, depth: Any, values: Tensor) -> Tensor:
    count = int(depth.item())
    axis = call.get("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    shape = [1] * (indices.ndim + 1)
    shape[axis] = count
    steps = torch.arange(count, device=indices.device).reshape(shape)
    chosen = torch.remainder(indices.long(), count).unsqueeze(axis) == steps
    valid = ((indices >= -count) & (indices < count)).unsqueeze(axis)
    return torch.where(chosen & valid, values[1], values[0])


def _trilu(call: Call, x: Tensor, k: Any = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    size = call.attrs["blocksize"]
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    b, c, h, w = x.shape
    parts = x.reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(b, c // size**2, h * size, w * size)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    size = call.attrs["blocksize"]
    b, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if call.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    parts = x.reshape(b, c, h // size, size, w // size, size).permute(order)
    return parts.reshape(b, c * size**2, h // size, w // size)


def _dropout(call: Call, x: Tensor, ratio: Any = None, training: Any = None) -> Any:
    if training is not None and training.item():
        raise ValueError("Dropout in training mode; export in evaluation mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.num_outputs > 1 else x


def _constant_of_shape(call: Call, shape: Any) -> Tensor:
    value = call.get("value", np.zeros(1, np.float32))
    is_float = np.issubdtype(value.dtype, np.floating)
    dtype = call.dtype if is_float else torch.from_numpy(value.reshape(1)).dtype
    return torch.full([int(n) for n in shape], value.item(), dtype=dtype)


RULES: Rules = {
    "Identity": Rule(lambda call, x: x),
    "Concat": Rule(lambda call, *inputs: torch.cat(inputs, call.attrs["axis"])),
    "Reshape": Rule(_reshape, static=(1,)),
    "Flatten": Rule(_flatten),
    "Squeeze": Rule(_squeeze, static=(1,)),
    "Unsqueeze": Rule(_unsqueeze, static=(1,)),
    "Transpose": Rule(_transpose),
    "Expand": Rule(_expand, static=(1,)),
    "Tile": Rule(_tile, static=(1,)),
    "Split": Rule(_split, static=(1,)),
    "Slice": Rule(_slice, static=(1, 2, 3, 4)),
    "Pad": Rule(_pad, static=(1, 2, 3)),
    "Gather": Rule(_gather, scalars=True),
    "GatherElements": Rule(_gather_elements),
    "GatherND": Rule(_gather_nd),
    "ScatterElements": Rule(_scatter_elements),
    "Scatter": Rule(_scatter_elements),
    "ScatterND": Rule(_scatter_nd),
    "OneHot": Rule(_one_hot, static=(1,)),
    "Trilu": Rule(_trilu, static=(1,)),
    "DepthToSpace": Rule(_depth_to_space),
    "SpaceToDepth": Rule(_space_to_depth),
    "Dropout": Rule(_dropout, static=(1, 2)),
    "ConstantOfShape": Rule(_constant_of_shape, static=(0,)),
}
