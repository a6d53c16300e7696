"""ONNX operators with weights, and those by rows: products, convolutions, pools, norms, softmax.

Source: ONNX operator schemas, https://onnx.ai/onnx/operators (defaults of attributes).
"""

from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from executor.onnx.rule import Call, Rule, Rules

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
GLOBAL_AVG = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
GLOBAL_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def _by_axes(table: dict[int, Any], x: Tensor, op: str) -> Any:
    if x.ndim - 2 not in table:
        raise ValueError(f"{op} takes 1 to 3 spatial axes, got {x.ndim - 2}")
    return table[x.ndim - 2]


def _pads(call: Call, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """What is added before and after each spatial axis, explicit or by `auto_pad`."""
    n = x.ndim - 2
    mode = call.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID", ""):
        pads = [0] * 2 * n if mode == "VALID" else list(call.get("pads", [0] * 2 * n))
        return pads[:n], pads[n:]
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    before, after = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    pairs = [side for pair in zip(before, after, strict=True) for side in pair]
    reverse = [pairs[i + j] for i in range(len(pairs) - 2, -1, -2) for j in (0, 1)]
    return F.pad(x, reverse, value=value) if any(reverse) else x


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n = x.ndim - 2
    before, after = _pads(call, x, weight.shape[2:])
    if before != after:
        x, before = _padded(x, before, after), [0] * n
    result: Tensor = _by_axes(CONV, x, call.op)(
        x, weight, bias, call.get("strides", [1] * n), before,
        call.get("dilations", [1] * n), call.get("group", 1),
    )  # fmt: skip
    return result


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution; unequal pads are cut from the whole result."""
    n = x.ndim - 2
    run = _by_axes(CONV_TRANSPOSE, x, call.op)
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    extra = list(call.get("output_padding", [0] * n))
    kernel = weight.shape[2:]
    full = [
        (size - 1) * s + (k - 1) * d + 1 + e
        for size, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    mode = call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        wanted = list(wanted)[-n:]
        totals = [f - w for f, w in zip(full, wanted, strict=True)]
        halves = [t // 2 for t in totals]
        rest = [t - h for t, h in zip(totals, halves, strict=True)]
        before, after = (halves, rest) if mode == "SAME_UPPER" else (rest, halves)
    else:
        before, after = _pads(call, x, kernel)
    group = call.get("group", 1)
    if before == after and min(before) >= 0:
        result: Tensor = run(x, weight, bias, strides, before, extra, group, dilations)
        return result
    whole = run(x, weight, bias, strides, 0, extra, group, dilations)
    return _padded(whole, [-b for b in before], [-a for a in after])


def _max_pool(call: Call, x: Tensor) -> Any:
    n = x.ndim - 2
    kernel = call.attrs["kernel_shape"]
    before, after = _pads(call, x, kernel)
    if call.num_outputs > 1:
        raise ValueError("MaxPool with indices is not known; export without MaxUnpool")
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        x, before = _padded(x, before, after, -inf), [0] * n
    return _by_axes(MAX_POOL, x, call.op)(
        x, kernel, call.get("strides", [1] * n), before, call.get("dilations", [1] * n),
        bool(call.get("ceil_mode", 0)),
    )  # fmt: skip


def _avg_pool(call: Call, x: Tensor) -> Tensor:
    n = x.ndim - 2
    kernel, strides = call.attrs["kernel_shape"], call.get("strides", [1] * n)
    if any(d != 1 for d in call.get("dilations", [1] * n)):
        raise ValueError("AveragePool with dilations is not known; write it as a convolution")
    before, after = _pads(call, x, kernel)
    rounds_up, counts_pads = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    run = _by_axes(AVG_POOL, x, call.op)
    if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        result: Tensor = run(x, kernel, strides, before, rounds_up, counts_pads)
        return result
    mean: Tensor = run(_padded(x, before, after), kernel, strides, 0, rounds_up)
    if counts_pads:
        return mean
    ones = _padded(x.new_ones((1, 1, *x.shape[2:])), before, after)
    share: Tensor = run(ones, kernel, strides, 0, rounds_up)
    return mean / share


def _global_pool(table: dict[int, Any]) -> Rule:
    return Rule(lambda call, x: _by_axes(table, x, call.op)(x, [1] * (x.ndim - 2)))


def _batch_norm(call: Call, x: Tensor, *rest: Tensor) -> Tensor:
    scale, bias, mean, var = rest
    if call.get("training_mode", 0):
        raise ValueError("BatchNormalization in training mode; export in evaluation mode")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """The normalised rows; their means and inverse deviations where they are asked for."""
    axis = call.get("axis", -1) % x.ndim
    shape, eps = list(x.shape[axis:]), call.get("epsilon", 1e-5)
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        y = F.layer_norm(x, shape, scale, bias, eps)
    else:
        y = F.layer_norm(x, shape, eps=eps) * scale
        y = y if bias is None else y + bias
    if call.num_outputs == 1:
        return y
    var, mean = torch.var_mean(x, list(range(axis, x.ndim)), correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + eps))[: call.num_outputs]


def _rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    shape = list(x.shape[call.get("axis", -1) % x.ndim :])
    eps = call.get("epsilon", 1e-5)
    if list(scale.shape) == shape:
        return F.rms_norm(x, shape, scale, eps)
    return F.rms_norm(x, shape, eps=eps) * scale


def _group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias per channel; per group before operator set 21."""
    groups = call.attrs["num_groups"]
    if call.opset < 21:
        repeats = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


def _local_response(call: Call, x: Tensor) -> Tensor:
    return F.local_response_norm(
        x,
        call.attrs["size"],
        call.get("alpha", 1e-4),
        call.get("beta", 0.75),
        call.get("bias", 1.0),
    )


def _lp_normalization(call: Call, x: Tensor) -> Tensor:
    return F.normalize(x, p=float(call.get("p", 2)), dim=call.get("axis", -1))


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Alpha A B + beta C; a linear layer where the bias is one number per column."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    columns = b.shape[0] if call.get("transB", 0) else b.shape[1]
    if alpha == 1 and (c is None or (beta == 1 and tuple(c.shape) == (columns,))):
        return F.linear(a, b if call.get("transB", 0) else b.t(), c)
    product = torch.matmul(a, b.t() if call.get("transB", 0) else b)
    product = product if alpha == 1 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)


def _softmax(function: Callable[..., Tensor]) -> Rule:
    """Over one axis; before operator set 13 over all axes from one on."""

    def run(call: Call, x: Tensor) -> Tensor:
        if call.opset >= 13:
            return function(x, dim=call.get("axis", -1))
        axis = call.get("axis", 1) % x.ndim
        if axis == x.ndim - 1:
            return function(x, dim=-1)
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return Rule(run)


RULES: Rules = {
    "Conv": Rule(_conv),
    "ConvTranspose": Rule(_conv_transpose),
    "MaxPool": Rule(_max_pool),
    "AveragePool": Rule(_avg_pool),
    "GlobalAveragePool": _global_pool(GLOBAL_AVG),
    "GlobalMaxPool": _global_pool(GLOBAL_MAX),
    "BatchNormalization": Rule(_batch_norm),
    "LayerNormalization": Rule(_layer_norm),
    "RMSNormalization": Rule(_rms_norm),
    "GroupNormalization": Rule(_group_norm),
    "InstanceNormalization": Rule(_instance_norm),
    "LRN": Rule(_local_response),
    "LpNormalization": Rule(_lp_normalization),
    "Gemm": Rule(_gemm),
    "MatMul": Rule(lambda call, a, b: torch.matmul(a, b)),
    "Linear": Rule(lambda call, x, weight, bias: F.linear(x, weight.t(), bias)),
    "Einsum": Rule(lambda call, *inputs: torch.einsum(call.attrs["equation"], *inputs)),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
}
