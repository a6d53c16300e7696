"""ONNX operators that reduce along axes, rank, or add up.

Source: ONNX operator schemas, https://onnx.ai/onnx/operators (defaults of attributes).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from executor.onnx.rule import Call, Rule, Rules, axes_of

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduced(function: Reduce) -> Rule:
    """Axes from an input or an attribute; all of them where none are named."""

    def run(call: Call, x: Tensor, axes: Any = None) -> Tensor:
        chosen = axes_of(call, axes)
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        return function(x, chosen, bool(call.get("keepdims", 1)))

    return Rule(run, static=(1,))


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    return torch.mean(x.float(), axes, keepdim=keep).to(x.dtype)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _arg(function: Callable[..., Tensor]) -> Rule:
    def run(call: Call, x: Tensor) -> Tensor:
        axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            return function(x, axis, keepdim=keep)
        from_end = function(x.flip(axis), axis, keepdim=keep)
        return torch.rsub(from_end, x.shape[axis] - 1)

    return Rule(run)


def _top_k(call: Call, x: Tensor, k: Any = None) -> Any:
    count = int(call.attrs["k"] if k is None else k.item())
    is_sorted, is_largest = bool(call.get("sorted", 1)), bool(call.get("largest", 1))
    return torch.topk(x, count, call.get("axis", -1), is_largest, is_sorted)


def _cum_sum(call: Call, x: Tensor, axis: Any) -> Tensor:
    along = int(axis.item())
    is_reverse = bool(call.get("reverse", 0))
    total = torch.cumsum(x.flip(along) if is_reverse else x, along, dtype=x.dtype)
    total = total.flip(along) if is_reverse else total
    return total - x if call.get("exclusive", 0) else total


RULES: Rules = {
    "ReduceMean": _reduced(_mean),
    "ReduceSum": _reduced(_sum),
    "ReduceMax": _reduced(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: torch.amin(x, axes, keep)),
    "ReduceProd": _reduced(_prod),
    "ReduceL1": _reduced(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: torch.log(_sum(x, axes, keep))),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "TopK": Rule(_top_k, static=(1,)),
    "CumSum": Rule(_cum_sum, static=(1,)),
}
