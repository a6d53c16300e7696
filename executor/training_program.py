"""A training step that runs: the captured program with its sums of gradients and updates."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from executor import updates
from executor.loaded import LoadedModel
from executor.losses import with_labels
from executor.program import Program
from executor.sources import Model, build_model
from executor.stages import Tensors
from executor.training import Optimizer, joint, update_name, updated_modules
from scheduler.training.accumulation import accumulate_name, accumulated_name


def load_training(
    source: str,
    batch: int,
    dtype: str,
    num_micro_batches: int,
    optimizer: Optimizer,
    tokens: int | None = None,
) -> LoadedModel:
    """Build a model with weights and capture its training step, whole and for a micro-batch.

    Raises:
        ValueError: as `build_model` and `joint`.
    """
    m = num_micro_batches
    model = with_labels(build_model(source, batch, dtype, "cpu", tokens))
    other = model.with_tensors(lambda x: x * 0.5 if x.is_floating_point() else x.flip(-1))
    module = model.module
    weights: dict[str, Tensor] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    whole = stepping(model, weights, optimizer, 1)
    names = whole.inputs
    batches = [dict(zip(names, one.tensors, strict=True)) for one in (model, other)]
    if m == 1:
        return LoadedModel(whole, whole, batches, batches, dtype)
    chunks: list[Tensors] = [
        {name: tensor.chunk(m)[k] for name, tensor in values.items()}
        for values in batches
        for k in range(m)
    ]
    part = with_labels(build_model(source, batch // m, dtype, "meta", tokens))
    return LoadedModel(whole, stepping(part, weights, optimizer, m), batches, chunks, dtype)


def stepping(
    model: Model, weights: Mapping[str, Tensor], optimizer: Optimizer, num_micro_batches: int
) -> Program:
    """The program of a training step with its updates, on the given parameters and buffers.

    Operators have the names of those of `capture_training` and `accumulating`. Each micro-batch's
    loss counts 1 / num_micro_batches, so that sums of gradients are those of the batch's mean loss.
    Running statistics of normalisation are computed and not kept.

    Raises:
        ValueError: as `joint`; or a constant of the model was made while its value was not known.
    """
    program = joint(model)
    for node in program.graph.nodes:
        if node.op == "get_attr" and isinstance(
            getattr(program.graph_module, str(node.target), None), FakeTensor
        ):
            raise ValueError(
                f"model '{model.name}' makes a constant ({node.name}) in its forward pass; "
                "register it as a buffer to execute its training step"
            )
    step = _Step({name: weights[name] for name in program.state}, dict(program.weights))
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name.startswith("tangents"):
            like = node.meta["val"]
            share = torch.full(like.shape, 1 / num_micro_batches, dtype=like.dtype)
            step.hold(node, node.name, share)
    gradients = dict(program.gradients)
    for module_name, names in updated_modules(program).items():
        if num_micro_batches > 1:
            gradients |= _sums(program.graph, step, module_name, names, program.gradients)
        clears = num_micro_batches > 1
        _update(program.graph, step, module_name, names, gradients, optimizer, clears)
    program.graph_module.recompile()
    return replace(program, weights=step.weights, state=step.state, gradients=gradients)


@dataclass(frozen=True)
class _Step:
    """The tensors that a step keeps, by name, and their names by placeholder."""

    state: dict[str, Any]
    weights: dict[str, str]

    def hold(self, node: fx.Node, name: str, value: Tensor) -> None:
        """Make a placeholder read a tensor that is kept."""
        self.weights[node.name], self.state[name] = name, value

    def kept(self, graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
        """A new placeholder for a new tensor that is kept."""
        with graph.inserting_before(next(iter(graph.nodes))):
            node = graph.placeholder(name.replace(".", "_"))
        node.meta["val"] = value.to("meta")
        self.hold(node, name, value)
        return node

    def parameters(self, graph: fx.Graph, names: list[str]) -> list[fx.Node]:
        """The placeholders of parameters."""
        by_name = {n.name: n for n in graph.nodes if n.op == "placeholder"}
        held = {self.weights[node]: by_name[node] for node in self.weights}
        return [held[name] for name in names]


def _sums(
    graph: fx.Graph, step: _Step, module: str, names: list[str], gradients: Mapping[str, str]
) -> dict[str, str]:
    """Add gradients to their sums as soon as the last is made; the sums' names by parameter."""
    nodes = list(graph.nodes)
    place = {node.name: k for k, node in enumerate(nodes)}
    made = dict.fromkeys(gradients[name] for name in names)
    read = [nodes[place[gradient]] for gradient in made]
    owners = {gradients[name]: name for name in names}
    sums = [
        step.kept(graph, f"sum.{owners[g]}", torch.zeros_like(step.state[owners[g]])) for g in made
    ]
    after = nodes[max(place[gradient] for gradient in made)]
    with graph.inserting_after(after):
        total = _call(graph, accumulate_name(update_name(module)), updates.accumulate, read, sums)
    total.meta["val"] = tuple(node.meta["val"] for node in read)
    for k, node in reversed(list(enumerate(read))):
        with graph.inserting_after(total):
            item = _call(graph, accumulated_name(node.name), operator.getitem, total, k)
        item.meta["val"] = node.meta["val"]
    return {name: accumulated_name(gradients[name]) for name in names}


def _update(
    graph: fx.Graph,
    step: _Step,
    module: str,
    names: list[str],
    gradients: Mapping[str, str],
    optimizer: Optimizer,
    clears: bool,
) -> None:
    """Update a module's parameters at the end of the step."""
    by_name = {node.name: node for node in graph.nodes}
    read = [by_name[gradients[name]] for name in names]
    parameters = step.parameters(graph, names)
    states = [
        [step.kept(graph, f"state{k}.{name}", torch.zeros_like(step.state[name])) for name in names]
        for k in range(optimizer.num_states)
    ]
    extra: tuple[float, ...] = ()
    if optimizer.name == "adam":
        states.append([step.kept(graph, f"steps.{name}", torch.zeros(())) for name in names])
    else:
        extra = (optimizer.momentum,)
    with graph.inserting_before(graph.output_node()):
        arguments = (parameters, read, tuple(states), *extra, clears)
        node = _call(graph, update_name(module), updates.UPDATES[optimizer.name], *arguments)
    node.meta["val"] = None


def _call(graph: fx.Graph, name: str, target: Callable[..., Any], *args: Any) -> fx.Node:
    return graph.create_node("call_function", target, args, {}, name=name)
