"""Cutting an exported program into stages that can be sent to a worker, weights inside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

import executor.zoo.ops  # noqa: F401, registers operators of ours that a stage may call
from executor.capture import is_item, is_op
from executor.program import Program


@dataclass(frozen=True)
class Ref:
    """Stands for the value of a node in the arguments of another."""

    name: str


@dataclass(frozen=True)
class Call:
    """One call of a stage: a function, or its dotted name in `torch.ops`, and its arguments."""

    name: str
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class StageProgram:
    """A stage that can be pickled (an fx graph of ATen operators cannot).

    Attributes:
        inputs, outputs: names of the tensors taken and given.
        state: weights, constants and submodules by attribute name; stages of a device share them.
        attributes: the attribute that each reference to the state reads.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    state: dict[str, Any]
    attributes: dict[str, str]

    def build(self, device: str, state: Mapping[str, Any] | None = None) -> fx.GraphModule:
        """Make a module on a torch device: `module(*inputs)` returns the tuple of outputs.

        Nodes keep their names. With a `state` that stages share, what one writes others read.
        """
        root = torch.nn.Module()
        held = self.state if state is None else state
        for attribute in dict.fromkeys(self.attributes.values()):
            value = held[attribute]
            is_tensor = isinstance(value, Tensor)
            setattr(root, attribute, torch.nn.Buffer(value) if is_tensor else value)
        graph = fx.Graph()
        made = {name: graph.placeholder(name) for name in self.inputs}
        made |= {name: graph.get_attr(attribute) for name, attribute in self.attributes.items()}
        for call in self.calls:
            args, kwargs = _resolve((call.args, call.kwargs), made)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device(device)}
            target = _operator(call.target) if isinstance(call.target, str) else call.target
            node = graph.create_node("call_function", target, args, kwargs, name=call.name)
            made[call.name] = node
        graph.output(tuple(made[name] for name in self.outputs))
        return fx.GraphModule(root, graph).to(device)


def cut(program: Program, stages: Sequence[Sequence[str]]) -> list[StageProgram]:
    """Cut a program into stages, given as operator names.

    A stage takes the tensors that others made, and gives what another stage or the caller reads.
    """
    graph = program.graph
    stage_of = {name: i for i, ops in enumerate(stages) for name in ops}
    made_in: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if is_op(node):
            made_in[node] = stage_of[node.name]
        elif is_item(node):
            made_in[node] = made_in[node.args[0]]
    returned = {*program.outputs, *program.gradients.values()}
    leaving = {node for node in graph.nodes if node.name in returned}
    leaving |= {n for n, i in made_in.items() if any(made_in.get(u, i) != i for u in n.users)}
    return [
        _stage(program, [n for n in graph.nodes if made_in.get(n) == i], leaving)
        for i in range(len(stages))
    ]


def _stage(program: Program, nodes: list[fx.Node], leaving: set[fx.Node]) -> StageProgram:
    inside = set(nodes)
    outside = dict.fromkeys(s for n in nodes for s in n.all_input_nodes if s not in inside)
    state: dict[str, Any] = {}
    attributes: dict[str, str] = {}
    for source in outside:
        if source.name in program.weights:
            name = program.weights[source.name]
            attributes[source.name] = _attribute(name)
            state[attributes[source.name]] = program.state[name].detach()
        elif source.op == "get_attr":
            attributes[source.name] = str(source.target)
            state[str(source.target)] = getattr(program.graph_module, str(source.target))
    return StageProgram(
        inputs=tuple(source.name for source in outside if source.name not in attributes),
        outputs=tuple(node.name for node in nodes if node in leaving),
        calls=tuple(_call(node) for node in nodes),
        state=state,
        attributes=attributes,
    )


def _attribute(name: str) -> str:
    """An attribute's name for a tensor's, different for different ones."""
    return "held_" + name.replace("_", "_u").replace(".", "_d")


def _call(node: fx.Node) -> Call:
    named = isinstance(node.target, OpOverload | HigherOrderOperator)
    target = _dotted(node.target) if named else node.target
    map_nodes: Callable[..., Any] = fx.node.map_arg
    args, kwargs = map_nodes((node.args, node.kwargs), lambda n: Ref(n.name))
    if draws(node):
        return Call(node.name, _drawn, (target, crc32(node.name.encode()), *args), dict(kwargs))
    return Call(node.name, target, tuple(args), dict(kwargs))


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers (dropout in training)."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _drawn(target: str, seed: int, *args: Any, **kwargs: Any) -> Any:
    """Call an operator that draws random numbers: the same wherever it runs, and in every run."""
    torch.manual_seed(seed)
    return _operator(target)(*args, **kwargs)


def _dotted(target: Any) -> str:
    return str(target) if isinstance(target, OpOverload) else f"higher_order.{target}"


@lru_cache(maxsize=1024)
def _operator(dotted: str) -> Callable[..., Any]:
    if dotted.startswith("transformers."):
        import transformers.integrations.moe  # noqa: F401, registers its operators
    return reduce(getattr, dotted.split("."), torch.ops)  # type: ignore[return-value]


def _resolve(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, Ref):
        return made[value.name]
    if isinstance(value, dict):
        return {key: _resolve(item, made) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_resolve(item, made) for item in value)
    return value
