"""Capture: a torch module to our compute graph, by torch.export on meta tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor as TorchTensor
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from executor.op_rules import estimate
from executor.sources import Model, build_model, user_line
from scheduler.graph import Graph, Op, Tensor


def capture(source: str, batch: int, dtype: str = "float32") -> Graph:
    """Capture the model of a source without allocating its weights.

    Raises:
        ValueError: the source is unknown or cannot be captured; the user's line is named.
    """
    model = build_model(source, batch, dtype, "meta")
    return to_graph(export(model), model.name, batch)


def export(model: Model) -> ExportedProgram:
    """Export a module for its example inputs, functionalized where it works in place.

    Raises:
        ValueError: torch.export cannot follow the module; the user's line is named.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(model.module, model.inputs, strict=False)
        if any(_works_in_place(node) for node in program.graph.nodes):
            program = program.run_decompositions({})
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"model '{model.name}' cannot be captured{user_line(error)}: {reason}"
        ) from error
    return program


def _works_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def weight_names(program: ExportedProgram) -> dict[str, str]:
    """Name in the state (parameter, buffer or constant) by placeholder name."""
    kinds = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
    return {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and spec.target is not None
    }


def is_op(node: fx.Node) -> bool:
    """Whether a node is an operator of our graph; items of a tuple belong to what made it."""
    return node.op == "call_function" and not is_item(node)


def is_item(node: fx.Node) -> bool:
    """Whether a node takes one tensor out of an operator's several outputs."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def to_graph(program: ExportedProgram, name: str, batch: int) -> Graph:
    """Translate an exported program; operators keep the names of their nodes."""
    weights = weight_names(program)
    shared = _shared_storage(program, weights)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    inputs = tuple(_tensor(n) for n in placeholders if n.name not in weights and _is_tensor(n))
    ops = tuple(_op(node, weights, shared) for node in program.graph.nodes if is_op(node))
    made = {tensor.name for op in ops for tensor in op.outputs} | {t.name for t in inputs}
    result = next(n for n in program.graph.nodes if n.op == "output")
    outputs = tuple(leaf.name for leaf in tree_leaves(result.args) if isinstance(leaf, fx.Node))
    parameters = {shared[n]: p.numel() for n, p in program.named_parameters()}
    return Graph(
        name,
        ops,
        inputs,
        tuple(n for n in dict.fromkeys(outputs) if n in made),
        batch,
        sum(parameters.values()),
    )


def _shared_storage(program: ExportedProgram, weights: Mapping[str, str]) -> dict[str, str]:
    """The first name of each weight, so that tied weights count once."""
    state: dict[str, Any] = {**program.constants, **program.state_dict}
    first: dict[int, str] = {}
    return {name: first.setdefault(id(_base(state[name])), name) for name in weights.values()}


def _base(tensor: TorchTensor) -> TorchTensor:
    return tensor._base if tensor._base is not None else tensor


def _op(node: fx.Node, weights: Mapping[str, str], shared: Mapping[str, str]) -> Op:
    sources = [n for n in node.all_input_nodes if _is_tensor(n) or n.name in weights]
    used = [n for n in sources if n.name in weights]
    fed = [n for n in sources if n.name not in weights]
    out = node.meta.get("val")
    cost = estimate(node)
    outputs = tuple(_tensor(n) for n in _result_nodes(node))
    written = sum(_num_bytes(leaf) for leaf in tree_leaves(out) if isinstance(leaf, TorchTensor))
    read = sum(_num_bytes(n.meta["val"]) for n in fed)
    if cost.kind == "embedding":
        read = written + sum(
            _num_bytes(n.meta["val"]) for n in fed if not n.meta["val"].is_floating_point()
        )
    if cost.kind == "view":
        read = written = 0
    return Op(
        name=node.name,
        kind=cost.kind,
        flops=cost.flops,
        bytes_read=read,
        bytes_written=written,
        dtype=_compute_dtype(out, used),
        inputs=tuple(n.name for n in fed),
        outputs=outputs,
        weights={shared[weights[n.name]]: _num_bytes(n.meta["val"]) for n in used},
        target=str(node.target),
        module=_module(node),
        dims=cost.dims,
        costed=cost.costed,
    )


def _result_nodes(node: fx.Node) -> list[fx.Node]:
    if isinstance(node.meta.get("val"), TorchTensor):
        return [node]
    return [user for user in node.users if is_item(user) and _is_tensor(user)]


def _module(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), TorchTensor)


def _tensor(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    return Tensor(node.name, tuple(int(n) for n in value.shape), _dtype_name(value.dtype))


def _compute_dtype(out: Any, used: list[fx.Node]) -> str:
    """The dtype that the arithmetic is done in: that of the weights, else of the output."""
    candidates = [n.meta["val"].dtype for n in used]
    candidates += [leaf.dtype for leaf in tree_leaves(out) if isinstance(leaf, TorchTensor)]
    return _dtype_name(candidates[0]) if candidates else "float32"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _num_bytes(tensor: TorchTensor) -> int:
    return tensor.numel() * tensor.element_size()
