"""Cutting an exported program into one GraphModule per stage, weights inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from executor.capture import is_item, is_op, weight_names


@dataclass(frozen=True)
class StageModule:
    """A stage that runs: `module(*[tensors[name] for name in inputs])` returns `outputs` in order.

    `ops` names the operators in the order of the module's call nodes (items of tuples left out).
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[str, ...] = field(default=())


def cut(
    program: ExportedProgram, stages: Sequence[tuple[str, Sequence[str]]], torch_devices: Mapping[str, str]
) -> list[StageModule]:
    """Cut a program into stages, given as (device, operator names), on the devices' torch names.

    A stage takes the tensors that others made, and gives what another stage or the caller reads.
    """
    graph = program.graph
    stage_of = {name: i for i, (_, ops) in enumerate(stages) for name in ops}
    made_in: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if is_op(node):
            made_in[node] = stage_of[node.name]
        elif is_item(node):
            made_in[node] = made_in[node.args[0]]
    leaving = {leaf for leaf in tree_leaves(graph.output_node().args) if isinstance(leaf, fx.Node)}
    for node, stage in made_in.items():
        if any(made_in.get(user, stage) != stage for user in node.users):
            leaving.add(node)
    return [
        _stage(program, [n for n in graph.nodes if made_in.get(n) == i], leaving, torch_devices[device])
        for i, (device, _) in enumerate(stages)
    ]


def _stage(
    program: ExportedProgram, nodes: list[fx.Node], leaving: set[fx.Node], device: str
) -> StageModule:
    weights = weight_names(program)
    state: dict[str, Any] = {**program.constants, **program.state_dict}
    root = torch.nn.Module()
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    inside = set(nodes)
    sources = [s for node in nodes for s in node.all_input_nodes if s not in inside]
    inputs = [s for s in dict.fromkeys(sources) if s.op != "get_attr" and s.name not in weights]
    for source in inputs:
        copied[source] = graph.placeholder(source.name)
    for source in dict.fromkeys(sources):
        if source.name in weights:
            attribute = weights[source.name].replace(".", "_")
            setattr(root, attribute, torch.nn.Buffer(state[weights[source.name]].detach()))
            copied[source] = graph.get_attr(attribute)
        elif source.op == "get_attr":
            setattr(root, str(source.target), getattr(program.graph_module, str(source.target)))
            copied[source] = graph.get_attr(str(source.target))
    for node in nodes:
        copied[node] = graph.node_copy(node, lambda n: copied[n])
        if "device" in node.kwargs:
            copied[node].update_kwarg("device", torch.device(device))
    outputs = [node for node in nodes if node in leaving]
    graph.output(tuple(copied[node] for node in outputs))
    module = fx.GraphModule(root, graph)
    names = tuple(node.name for node in nodes if not is_item(node))
    return StageModule(
        module, tuple(n.name for n in inputs), tuple(n.name for n in outputs), names
    )


def output_names(program: ExportedProgram) -> list[str]:
    """Names of the tensors that the program returns, in order."""
    leaves = tree_leaves(program.graph.output_node().args)
    return [leaf.name for leaf in leaves if isinstance(leaf, fx.Node)]


def input_names(program: ExportedProgram) -> list[str]:
    """Names of the tensors that the program takes from the caller, in order."""
    return list(program.graph_signature.user_inputs)
