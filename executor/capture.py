"""Capture: a torch module to our compute graph, on meta tensors."""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor as TorchTensor
from torch import fx
from torch.utils._pytree import tree_leaves

from executor.export import export
from executor.op_rules import estimate
from executor.program import Program
from executor.sources import build_model
from scheduler.ir.graph import Graph, Op, Tensor


def capture(source: str, batch: int, dtype: str = "float32", tokens: int | None = None) -> Graph:
    """Capture the model of a source without allocating its weights.

    Raises:
        ValueError: the source is unknown or cannot be captured; the user's line is named.
    """
    model = build_model(source, batch, dtype, "meta", tokens)
    return to_graph(export(model), model.name, batch)


def is_op(node: fx.Node) -> bool:
    """Whether a node is an operator of our graph; items of a tuple belong to what made it."""
    return node.op == "call_function" and not is_item(node)


def is_item(node: fx.Node) -> bool:
    """Whether a node takes one tensor out of an operator's several outputs."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def to_graph(program: Program, name: str, batch: int) -> Graph:
    """Translate a captured program; operators keep the names of their nodes."""
    shared = _shared_storage(program)
    weights = {
        node: Weight(shared[name], _num_bytes(program.state[name]))
        for node, name in program.weights.items()
        if isinstance(program.state[name], TorchTensor)
    }
    ops = []
    for node in filter(is_op, program.graph.nodes):
        ops.append(op := _op(node, weights))
        if op.kind == "view" and len(op.weights) == 1 and not _fed(node, weights):
            weights |= {t.name: Weight(*next(iter(op.weights.items()))) for t in op.outputs}
    given = set(program.inputs)
    inputs = tuple(_tensor(node) for node in program.graph.nodes if node.name in given)
    return Graph(
        name,
        tuple(ops),
        inputs,
        tuple(program.outputs),
        batch,
        num_params(program),
        program.captured_by,
        program.notes,
    )


def num_params(program: Program) -> int:
    """Parameters of a program, tied ones counted once."""
    shared = _shared_storage(program)
    sizes = {shared[n]: program.state[n].numel() for n in shared if n in program.parameters}
    return sum(sizes.values())


def _shared_storage(program: Program) -> dict[str, str]:
    """The first name of each weight, so that tied weights count once."""
    first: dict[int, str] = {}
    names = dict.fromkeys([*program.weights.values(), *program.parameters])
    return {name: first.setdefault(id(_base(program.state[name])), name) for name in names}


def _base(tensor: TorchTensor) -> TorchTensor:
    return tensor._base if tensor._base is not None else tensor


class Weight(NamedTuple):
    """A parameter, buffer or constant that a node holds, or holds a view of."""

    name: str
    num_bytes: int


def _fed(node: fx.Node, weights: Mapping[str, Weight]) -> list[fx.Node]:
    """The tensors that a node reads and that are no weights, nor views of weights."""
    return [n for n in node.all_input_nodes if _is_tensor(n) and n.name not in weights]


def _op(node: fx.Node, weights: Mapping[str, Weight]) -> Op:
    """Translate one call; `weights` names the weight by the node that holds it or a view of it."""
    used = [n for n in node.all_input_nodes if n.name in weights]
    fed = _fed(node, weights)
    read_views = {n.name for n in used if n.op == "call_function"}
    out = node.meta.get("val")
    cost = estimate(node)
    outputs = tuple(_tensor(n) for n in _result_nodes(node))
    read = sum(_num_bytes(n.meta["val"]) * cost.read_share(n.name) for n in fed)
    params_read = sum(_num_bytes(n.meta["val"]) * cost.read_share(n.name) for n in used)
    held = {weights[n.name].name: weights[n.name].num_bytes for n in used}
    written = sum(_num_bytes(leaf) for leaf in tree_leaves(out) if isinstance(leaf, TorchTensor))
    if cost.kind == "view":
        read = written = params_read = 0
    return Op(
        name=node.name,
        kind=cost.kind,
        flops=cost.flops,
        bytes_read=read,
        bytes_written=written,
        dtype=_compute_dtype(out, used),
        inputs=tuple(n.name for n in node.all_input_nodes if n in fed or n.name in read_views),
        outputs=outputs,
        weights=held,
        target=str(node.target),
        module=_module(node),
        dims=cost.dims,
        costed=cost.costed,
        weight_share=min(1.0, params_read / max(sum(held.values()), 1)) if held else 1.0,
    )


def _result_nodes(node: fx.Node) -> list[fx.Node]:
    if isinstance(node.meta.get("val"), TorchTensor):
        return [node]
    return [user for user in node.users if is_item(user) and _is_tensor(user)]


def _module(node: fx.Node) -> str:
    meta = node.meta
    stack = list((meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack") or {}).values())
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
    """Bytes in memory; an expanded axis, of stride 0, holds one element."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(n if stride or not n else 1 for n, stride in sizes) * tensor.element_size()
