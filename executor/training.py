"""Capture of a training step: forward, backward and optimizer as one graph, without weights.

Forward and backward are traced together by AOTAutograd on fake tensors. The optimizer is one
operator for each module that has parameters: torch's fused optimizers read every parameter,
gradient and state once and write parameter and state once, whatever their arithmetic.
"""

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._export.utils import _compiling_state_context
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch.utils._pytree import tree_leaves

from executor.capture import to_graph
from executor.export import quiet, refusal
from executor.fake import on_fake_cpu
from executor.losses import loss, with_labels, without_layer_drop
from executor.program import Program, tensors_in
from executor.sources import Model
from executor.tracing import module_paths
from scheduler.ir.graph import DTYPE_BYTES, Graph, Op

aten = torch.ops.aten
OPTIMIZERS = ("adam", "sgd")
BY = "joint forward and backward (AOTAutograd)"


@dataclass(frozen=True)
class Optimizer:
    """Adam, or stochastic gradient descent with or without momentum; states as torch keeps them.

    `num_states` tensors of the size of a parameter are kept with it. FLOPs per parameter: Adam 14
    (first moment 3, second 4, bias corrections 2, step 5), SGD 2, with momentum 4.
    Source: Kingma and Ba, "Adam", ICLR 2015, algorithm 1.
    """

    name: str = "adam"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse unknown names and a momentum that is none."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"model.optimizer must be adam or sgd, got '{self.name}'")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"model.momentum must be from 0 and below 1, got {self.momentum}")

    @property
    def num_states(self) -> int:
        """State tensors per parameter."""
        return 2 if self.name == "adam" else int(self.momentum > 0)

    @property
    def flops_per_parameter(self) -> int:
        """Floating-point operations to update one parameter."""
        return 14 if self.name == "adam" else 2 + 2 * int(self.momentum > 0)


def capture_training(model: Model, batch: int, optimizer: Optimizer) -> Graph:
    """Capture one training step of a model on meta.

    Raises:
        ValueError: the model cannot be traced, returns nothing to learn from, or has no parameters.
    """
    program = joint(with_labels(model))
    graph = to_graph(program, model.name, batch)
    backward = {
        node.name
        for node in program.graph.nodes
        if node.meta.get("partitioner_tag") == "is_backward"
    }
    ops = tuple(
        replace(op, phase="backward" if op.name in backward else "forward") for op in graph.ops
    )
    return replace(graph, ops=(*ops, *_updates(graph, program, optimizer)), mode="training")


def joint(model: Model) -> Program:
    """Capture the loss of a model and its gradients; weights become fake in the module, too.

    Raises:
        ValueError: the model cannot be traced, returns nothing to learn from, or has no parameters.
    """
    try:
        with quiet(), _compiling_state_context(), ExitStack() as stack:
            return _joint(on_fake_cpu(model), stack)
    except Exception as error:
        raise refusal(model, {BY: error}) from error


def _joint(model: Model, stack: ExitStack) -> Program:
    module = without_layer_drop(model.module.train())
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("it has no parameters to train")
    descended: list[str] = []

    def only_loss(_: nn.Module, inputs: Any, outputs: Any) -> Tensor:
        value, words = loss(tensors_in(outputs))
        descended.append(f"loss: {words}")
        return value

    hook = module.register_forward_hook(only_loss)
    try:
        with module_paths(module):
            joint = aot_export_joint_with_descriptors(
                stack, module, model.inputs, dict(model.kwargs)
            )
    finally:
        hook.remove()
    graph_module: Any = joint.graph_module
    weights: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        name = getattr(node.meta.get("desc"), "target", None)
        if node.op == "placeholder" and name is not None:
            weights[node.name] = name
    output = graph_module.graph.output_node()
    state = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    own: dict[int, str] = {}
    tied = {name: own.setdefault(id(tensor), name) for name, tensor in state.items()}
    weights = {node: tied[name] for node, name in weights.items()}
    gradients: dict[str, fx.Node] = {}
    returned: list[str] = []
    for node, desc in zip(tree_leaves(output.args), output.meta["desc"], strict=True):
        owner = getattr(getattr(desc, "grad_of", None), "target", None)
        if isinstance(node, fx.Node) and owner is not None:
            other = gradients.get(tied[owner])
            gradients[tied[owner]] = node if other is None else _added(other, node)
        elif isinstance(node, fx.Node) and type(desc).__name__ == "PlainAOTOutput":
            returned.append(node.name)
    if not gradients:
        raise ValueError("no parameter has a gradient: an operator has no backward")
    parameters = frozenset(name for name, _ in module.named_parameters())
    notes = (*model.notes, *descended[:1])
    read = {name: node.name for name, node in gradients.items()}
    return Program(graph_module, weights, state, parameters, tuple(returned), BY, notes, read)


def _added(one: fx.Node, other: fx.Node) -> fx.Node:
    """The sum of the gradients that two uses of a tied parameter give."""
    later = next(node for node in reversed(one.graph.nodes) if node in (one, other))
    with one.graph.inserting_after(later):
        total = one.graph.call_function(aten.add.Tensor, (one, other))
    total.meta = {**later.meta}
    return total


def updated_modules(program: Program) -> dict[str, list[str]]:
    """The parameters with a gradient by the module that owns them."""
    owned: dict[str, list[str]] = defaultdict(list)
    for name in program.gradients:
        owned[name.rpartition(".")[0]].append(name)
    return owned


def update_name(module: str) -> str:
    """The name of the operator that updates the parameters of a module."""
    return f"optimizer_{module.replace('.', '_')}" if module else "optimizer"


def _updates(graph: Graph, program: Program, optimizer: Optimizer) -> list[Op]:
    """One optimizer operator for each module that owns parameters with a gradient."""
    known = graph.weights()
    updates = []
    for module, names in updated_modules(program).items():
        sizes = {name: program.state[name].numel() for name in names}
        dtype = str(program.state[names[0]].dtype).removeprefix("torch.")
        num_bytes = sum(sizes.values()) * DTYPE_BYTES[dtype]
        weights = {n: known.get(n, sizes[n] * DTYPE_BYTES[dtype]) for n in names}
        updates.append(
            Op(
                name=update_name(module),
                kind="elementwise",
                flops=float(sum(sizes.values()) * optimizer.flops_per_parameter),
                bytes_read=num_bytes * (1 + optimizer.num_states),
                bytes_written=num_bytes * (1 + optimizer.num_states),
                dtype=dtype,
                inputs=tuple(dict.fromkeys(program.gradients[name] for name in names)),
                outputs=(),
                weights=weights,
                target=f"apportion.{optimizer.name}",
                module=module,
                dims={"size": sum(sizes.values()), "operands": 2 + optimizer.num_states},
                phase="optimizer",
                state_bytes=num_bytes * optimizer.num_states,
            )
        )
    return updates
