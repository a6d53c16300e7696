"""ONNX operators that compute element by element.

Source: ONNX operator schemas, https://onnx.ai/onnx/operators (defaults of attributes).
"""

import operator
from collections.abc import Callable
from functools import reduce
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from executor.onnx.rule import Call, Rule, Rules


def _plain(function: Callable[..., Any]) -> Rule:
    return Rule(lambda call, *inputs: function(*inputs))


def _arithmetic(function: Callable[[Any, Any], Any]) -> Rule:
    return Rule(lambda call, a, b: function(a, b), scalars=True)


def _is_float(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)


def _div(call: Call, a: Any, b: Any) -> Tensor:
    """A quotient; of integers rounded to zero."""
    if _is_float(a) or _is_float(b):
        result: Tensor = a / b
        return result
    dividend = a if isinstance(a, Tensor) else torch.full_like(b, a)
    return torch.div(dividend, b, rounding_mode="trunc")


def _pow(call: Call, a: Any, b: Any) -> Tensor:
    result = torch.pow(a, b)
    return result.to(a.dtype) if isinstance(a, Tensor) else result


def _mod(call: Call, a: Any, b: Any) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def _extreme(function: Callable[..., Tensor], bound: str) -> Rule:
    """Max or Min of any number of inputs; one that is a number clamps."""

    def pair(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return function(a, b)
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return torch.clamp(tensor, **{bound: number})

    def run(call: Call, *inputs: Any) -> Any:
        return reduce(pair, sorted(inputs, key=lambda value: not isinstance(value, Tensor)))

    return Rule(run, scalars=True)


def _clip(call: Call, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = call.get("min") if low is None else low
    high = call.get("max") if high is None else high
    if low is None and high is None:
        return x
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return F.relu6(x) if (low, high) == (0, 6) else torch.clamp(x, low, high)
    x = x if low is None else torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """A slope per channel, or of any shape that spreads to the input's."""
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if x.ndim > 1 and slope.ndim == x.ndim - 1 and slope.numel() == slope.shape[0] == x.shape[1]:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, slope * x)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha = float(call.get("alpha", 1.67326319217681884765625))
    gamma = float(call.get("gamma", 1.0507010221))
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


def _swish(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


def _is_inf(call: Call, x: Tensor) -> Tensor:
    if call.get("detect_positive", 1) and call.get("detect_negative", 1):
        return torch.isinf(x)
    return x == (inf if call.get("detect_positive", 1) else -inf)


def _shrink(call: Call, x: Tensor) -> Tensor:
    bias, edge = call.get("bias", 0.0), call.get("lambd", 0.5)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))


TYPES = {
    2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 12: torch.uint32, 13: torch.uint64,
}  # fmt: skip
"""By the number of onnx.TensorProto.DataType; every floating-point one is the call's dtype."""
FLOATS = {1, 10, 11, 16, 17, 18, 19, 20}


def _cast(call: Call, x: Tensor) -> Tensor:
    to = call.attrs["to"]
    if to not in TYPES and to not in FLOATS:
        raise ValueError(f"there is no conversion to ONNX data type number {to}")
    return x.to(TYPES.get(to, call.dtype))


def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _along(x: Tensor, value: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point per position of an axis, or per block of it, made to spread."""
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if value.ndim != 1 or value.numel() == 1:
        return value
    shape = [1] * x.ndim
    shape[axis] = value.numel()
    return value.reshape(shape)


def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    dtype = zero.dtype if zero is not None else TYPES.get(call.get("output_dtype", 2), torch.uint8)
    if dtype.is_floating_point:
        raise ValueError("QuantizeLinear to a floating-point type is not known; use integers")
    scaled = torch.round(x / _along(x, scale, axis, block))
    if zero is not None:
        scaled = scaled + _along(x, zero, axis, block).to(scaled.dtype)
    limits = torch.iinfo(dtype)
    return torch.clamp(scaled, limits.min, limits.max).to(dtype)


def _dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    value = x.to(scale.dtype)
    if zero is not None:
        value = value - _along(x, zero, axis, block).to(scale.dtype)
    return value * _along(x, scale, axis, block)


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sqrt": torch.sqrt, "Exp": torch.exp,
    "Log": torch.log, "Erf": torch.erf, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
    "Atanh": torch.atanh, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": F.relu,
    "HardSwish": F.hardswish, "Mish": F.mish, "Softplus": F.softplus, "Softsign": F.softsign,
    "IsNaN": torch.isnan, "Not": torch.logical_not, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Where": torch.where,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip

RULES: Rules = {
    **{name: _plain(function) for name, function in _UNARY.items()},
    "Add": _arithmetic(operator.add),
    "Sub": _arithmetic(operator.sub),
    "Mul": _arithmetic(operator.mul),
    "Equal": _arithmetic(operator.eq),
    "Greater": _arithmetic(operator.gt),
    "GreaterOrEqual": _arithmetic(operator.ge),
    "Less": _arithmetic(operator.lt),
    "LessOrEqual": _arithmetic(operator.le),
    "Div": Rule(_div, scalars=True),
    "Pow": Rule(_pow, scalars=True),
    "Mod": Rule(_mod, scalars=True),
    "Max": _extreme(torch.maximum, "min"),
    "Min": _extreme(torch.minimum, "max"),
    "Sum": Rule(lambda call, *inputs: reduce(operator.add, inputs)),
    "Mean": Rule(lambda call, *inputs: reduce(operator.add, inputs) / len(inputs)),
    "Clip": Rule(_clip, scalars=True),
    "LeakyRelu": Rule(lambda call, x: F.leaky_relu(x, call.get("alpha", 0.01))),
    "ThresholdedRelu": Rule(lambda call, x: F.threshold(x, call.get("alpha", 1.0), 0.0)),
    "Elu": Rule(lambda call, x: F.elu(x, call.get("alpha", 1.0))),
    "Celu": Rule(lambda call, x: F.celu(x, call.get("alpha", 1.0))),
    "Selu": Rule(_selu),
    "Gelu": Rule(_gelu),
    "Swish": Rule(_swish),
    "PRelu": Rule(_prelu),
    "HardSigmoid": Rule(_hard_sigmoid),
    "Shrink": Rule(_shrink),
    "IsInf": Rule(_is_inf),
    "Cast": Rule(_cast),
    "CastLike": Rule(_cast_like),
    "QuantizeLinear": Rule(_quantize),
    "DequantizeLinear": Rule(_dequantize),
}
