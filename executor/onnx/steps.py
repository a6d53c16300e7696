"""Steps of a traced ONNX file, and how one of them runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from executor.onnx.ops import RULES
from executor.onnx.rule import Call


class Ref(NamedTuple):
    """The name of a tensor that is computed, given, or held as a weight."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operator that runs.

    Attributes:
        inputs: references to tensors; arrays and numbers that are known; None where left out.
    """

    name: str
    call: Call
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]


def run_step(step: Step, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute one step from tensors by name; floating-point numbers are of one dtype."""
    call = replace(step.call, dtype=dtype)
    inputs = [tensors[x.name] if isinstance(x, Ref) else x for x in step.inputs]
    made = RULES[step.call.op].run(call, *inputs)
    results = (made,) if isinstance(made, Tensor) else tuple(made)
    return {name: x for name, x in zip(step.outputs, results, strict=False) if name}
