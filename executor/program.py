"""A captured program: ATen calls on named tensors, however they were captured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

WEIGHTS = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


@dataclass(frozen=True)
class Program:
    """A graph whose placeholders are weights and inputs, all tensors fake or on meta.

    Attributes:
        weights: name in the state (parameter, buffer or constant) by placeholder name.
        state: those tensors by name; tied weights are one tensor.
        parameters: names in the state that are parameters.
        returned: names of the nodes that the module returns; states written back are not among
            them.
        captured_by: the way that caught it.
        notes: what a reader should know of how it was caught: ways that failed, graph breaks.
        gradients: of a training step, the tensor that a parameter's update reads, by parameter.
    """

    graph_module: fx.GraphModule
    weights: Mapping[str, str]
    state: Mapping[str, Any]
    parameters: frozenset[str]
    returned: tuple[str, ...]
    captured_by: str
    notes: tuple[str, ...] = ()
    gradients: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The graph of calls."""
        return self.graph_module.graph

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors that the caller gives, in order."""
        return [
            node.name
            for node in self.graph.nodes
            if node.op == "placeholder" and node.name not in self.weights and holds_tensor(node)
        ]

    @property
    def outputs(self) -> list[str]:
        """Names of the tensors that operators return to the caller, in order, each once."""
        made = {node.name for node in self.graph.nodes if node.op == "call_function"}
        return [name for name in dict.fromkeys(self.returned) if name in made]

    @property
    def kept(self) -> tuple[str, ...]:
        """The tensors by which runs are compared: outputs, and in training sums of gradients."""
        return tuple(dict.fromkeys((*self.outputs, *self.gradients.values())))


def holds_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an output in order: in tuples, dictionaries, data classes, any attributes."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, list | tuple):
        value = list(getattr(value, "__dict__", {}).values())
    return [tensor for item in value for tensor in tensors_in(item)]


def from_exported(program: ExportedProgram, captured_by: str) -> Program:
    """The program that torch.export caught."""
    weights = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in WEIGHTS and spec.target is not None
    }
    return Program(
        program.graph_module,
        weights,
        {**program.constants, **program.state_dict},
        frozenset(name for name, _ in program.named_parameters()),
        tuple(name for name in program.graph_signature.user_outputs if isinstance(name, str)),
        captured_by,
    )
