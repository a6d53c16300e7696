"""One call of an operator: its name, its arguments by their names in the schema, its outputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload


@dataclass(frozen=True)
class OpCall:
    """Arguments and outputs as fake tensors.

    Attributes:
        name: operator without overload; without a namespace where that is ATen's.
        args: by name in the operator's schema, in its order, defaults filled in.
        outputs: the output tensors.
    """

    name: str
    args: Mapping[str, Any]
    outputs: tuple[Tensor, ...]

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The input tensors in order; those of lists too."""
        return tuple(_tensors(list(self.args.values())))

    @property
    def input(self) -> Tensor:
        """The first input tensor."""
        return self.tensors[0]

    @property
    def output(self) -> Tensor:
        """The first output tensor."""
        return self.outputs[0]


def call_of(node: fx.Node) -> OpCall:
    """The call that a node of an exported graph makes."""
    given = [fx.node.map_arg(arg, _value) for arg in node.args]
    named = {name: fx.node.map_arg(arg, _value) for name, arg in node.kwargs.items()}
    args: dict[str, Any] = {f"arg{i}": value for i, value in enumerate(given)} | named
    if isinstance(node.target, OpOverload):
        parameters = node.target._schema.arguments
        args = {p.name: p.default_value for p in parameters}
        args |= {p.name: value for p, value in zip(parameters, given, strict=False)} | named
    return OpCall(short_name(node), args, tuple(_tensors(node.meta.get("val"))))


def short_name(node: fx.Node) -> str:
    """Name of a node's operator: 'linear', 'transformers.grouped_mm_fallback', 'add'."""
    if isinstance(node.target, OpOverload):
        namespace, _, name = node.target._schema.name.partition("::")
        return name if namespace == "aten" else f"{namespace}.{name}"
    return str(getattr(node.target, "__name__", node.target))


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
