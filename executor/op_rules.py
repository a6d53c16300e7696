"""The class and the FLOPs of every ATen operator that we know; one small rule each.

A rule takes the operator's arguments and its output as fake tensors. An operator without a rule
is class `other` with 0 FLOPs, costed by the bytes that it moves, and listed as uncosted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

Rule = Callable[[tuple[Any, ...], Any], float]


@dataclass(frozen=True)
class OpRule:
    """Operator class and FLOPs of one run."""

    kind: str
    flops: Rule


def _size(value: Any) -> float:
    tensors = value if isinstance(value, tuple | list) else [value]
    return float(sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor)))


def _matmul(args: tuple[Any, ...], out: Any) -> float:
    """2 m n k per matrix product: every output element is a sum over the first's last axis."""
    return float(2 * _size(out) * args[0].shape[-1])


def _addmm(args: tuple[Any, ...], out: Any) -> float:
    return float(2 * _size(out) * args[1].shape[-1])


def _conv(args: tuple[Any, ...], out: Any) -> float:
    """2 * outputs * (input channels / groups) * kernel size; weight is (out, in / groups, ...)."""
    return float(2 * _size(out) * prod(args[1].shape[1:]))


def _attention(args: tuple[Any, ...], out: Any) -> float:
    """Q K^T and P V: 2 b h l s (d + d_v); a causal mask is not deducted."""
    query, key, value = args[:3]
    *batch, length, depth = query.shape
    return float(2 * prod(batch) * length * key.shape[-2] * (depth + value.shape[-1]))


def _per_output(count: float) -> Rule:
    return lambda args, out: count * _size(out)


def _per_input(count: float) -> Rule:
    return lambda args, out: count * _size(args[0])


def _pool(args: tuple[Any, ...], out: Any) -> float:
    kernel = args[1] if isinstance(args[1], tuple | list) else (args[1], args[1])
    return _size(out[0] if isinstance(out, tuple | list) else out) * prod(kernel)


_none: Rule = lambda args, out: 0.0  # noqa: E731

_GROUPS: list[tuple[str, Rule, str]] = [
    ("matmul", _matmul, "linear matmul mm bmm"),
    ("matmul", _addmm, "addmm baddbmm"),
    ("conv", _conv, "conv1d conv2d conv3d convolution"),
    ("attention", _attention, "scaled_dot_product_attention"),
    (
        "elementwise",
        _per_output(1),
        "add sub mul div neg abs relu relu6 leaky_relu clamp maximum minimum hardtanh pow sqrt "
        "rsqrt reciprocal square where eq ne lt le gt ge logical_and "
        "logical_or logical_not bitwise_and bitwise_or bitwise_not masked_fill add_ mul_ relu_ "
        "rsub tril triu cumsum lerp addcmul",
    ),
    (
        "elementwise",
        _per_output(8),
        "gelu silu sigmoid tanh exp log erf hardswish hardsigmoid mish elu softplus sin cos log1p",
    ),
    ("softmax", _per_output(5), "softmax log_softmax"),
    ("norm", _per_output(2), "batch_norm"),
    ("norm", _per_input(8), "layer_norm group_norm rms_norm native_layer_norm instance_norm"),
    ("pool", _pool, "max_pool2d avg_pool2d max_pool1d avg_pool1d max_pool2d_with_indices"),
    ("pool", _per_input(1), "adaptive_avg_pool2d adaptive_max_pool2d adaptive_avg_pool1d"),
    ("embedding", _none, "embedding index_select gather index"),
    ("reduce", _per_input(1), "mean sum amax amin max min prod var std argmax argmin any all norm"),
    (
        "copy",
        _none,
        "cat stack clone copy_ pad constant_pad_nd repeat arange zeros ones full zeros_like "
        "ones_like full_like new_zeros new_ones roll upsample_nearest2d repeat_interleave "
        "scalar_tensor _to_copy empty rand randn index_put scatter flip",
    ),
    (
        "view",
        _none,
        "view permute transpose unsqueeze squeeze expand slice select chunk split split_with_sizes "
        "unbind alias detach t unflatten dropout dropout_ feature_dropout expand_as view_as "
        "getitem lift_fresh_copy detach_ _assert_tensor_metadata narrow movedim swapaxes "
        "_unsafe_view sym_size _assert_scalar diagonal as_strided unfold",
    ),
]

RULES = {name: OpRule(kind, flops) for kind, flops, names in _GROUPS for name in names.split()}
VIEW_IF_UNCHANGED = {"reshape", "flatten", "contiguous", "to", "type_as"}
"""Views when the input is contiguous and keeps its dtype; copies otherwise."""


def rule_for(name: str, args: tuple[Any, ...], out: Any) -> OpRule | None:
    """The rule of an ATen operator (name without overload), or None where there is none."""
    if name in VIEW_IF_UNCHANGED:
        source = args[0]
        unchanged = source.is_contiguous() and source.dtype == out.dtype
        return RULES["view" if unchanged else "clone"]
    return RULES.get(name)
