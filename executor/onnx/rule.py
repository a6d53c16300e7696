"""What a rule of an ONNX operator is given, and what it may ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Call:
    """One node of an ONNX graph, beside its inputs.

    Attributes:
        op: the operator's name.
        attrs: its attributes; texts as str, tensors as numpy arrays.
        opset: version of the operator set.
        num_outputs: that are listed, also where some are left out.
        dtype: that floating-point numbers are computed in.
    """

    op: str
    attrs: Mapping[str, Any]
    opset: int
    num_outputs: int
    dtype: torch.dtype

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attrs.get(name, default)


class Rule(NamedTuple):
    """How an operator is computed.

    Attributes:
        run: from the call and its inputs (None where one is left out) to a tensor or several.
        static: positions of inputs that must be known while building; given as numpy arrays.
        scalars: whether inputs without axes that are known come as Python numbers.
    """

    run: Callable[..., Any]
    static: tuple[int, ...] = ()
    scalars: bool = False


Rules = dict[str, Rule]


def axes_of(call: Call, given: Any, position_attr: str = "axes") -> list[int] | None:
    """Axes from an input (newer operator sets) or an attribute (older ones)."""
    axes = given if given is not None else call.get(position_attr)
    return None if axes is None else [int(axis) for axis in axes]
