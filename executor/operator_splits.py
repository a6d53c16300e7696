"""Splitting operators of a captured program as the scheduler says."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from executor.capture import to_graph
from executor.op_dims import RESHAPES
from executor.program import Program
from scheduler.tensor_parallel.operator_splits import Step, sizes, steps
from scheduler.tensor_parallel.split_rules import Cut, Splits, cut_of


def split_program(program: Program, splits: Splits) -> Program:
    """The program with operators split into parts, their weights cut.

    Raises:
        ValueError: an operator cannot be cut so.
    """
    graph = to_graph(program, "", 1)
    return _Splitting(program).run(
        [
            (step, cut_of(graph, graph.by_name[step.source], step.split))
            if step.role == "part" and step.split
            else (step, None)
            for step in steps(graph, splits)
        ]
    )


class _Splitting:
    """A copy of a program under way: nodes by name, weights and state with the parts."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.old = {node.name: node for node in program.graph.nodes}
        self.graph = fx.Graph()
        self.made: dict[str, fx.Node] = {}
        self.weights = dict(program.weights)
        self.state = dict(program.state)

    def run(self, todo: list[tuple[Step, Cut | None]]) -> Program:
        """Copy what is kept and make the parts."""
        for node in self.program.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._copy(node)
        for step, cut in todo:
            if step.role == "keep":
                self._keep(self.old[step.source])
            elif step.role == "part" and cut is not None:
                self._part(step, cut)
            elif step.role == "slice":
                self._slice(step)
            else:
                self._join(step)
        self._copy(self.program.graph.output_node())
        module = fx.GraphModule(self.program.graph_module, self.graph)
        return replace(self.program, graph_module=module, weights=self.weights, state=self.state)

    def _copy(self, node: fx.Node) -> None:
        copy = self.graph.node_copy(node, lambda n: self.made[n.name])
        copy.name = node.name
        self.made[node.name] = copy

    def _keep(self, node: fx.Node) -> None:
        self._copy(node)
        for user in node.users:
            if user.name not in self.made and getattr(user.target, "__name__", "") == "getitem":
                self._copy(user)

    def _call(self, name: str, target: Any, args: Any, kwargs: Any, like: fx.Node) -> None:
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta = {**like.meta, "val": _run(target, args, kwargs)}
        self.made[name] = node

    def _part(self, step: Step, cut: Cut) -> None:
        node = self.old[step.source]
        given = iter(step.inputs)
        taken: dict[fx.Node, fx.Node] = {}
        for source in node.all_input_nodes:
            if source.name not in self.program.weights:
                taken[source] = self.made[next(given)]
            elif cut.weights is None:
                taken[source] = self.made[source.name]
            else:
                taken[source] = self._weight(source, cut.weights, step)
        args = fx.node.map_arg(node.args, taken.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, taken.__getitem__)
        if getattr(node.target, "_opname", "") in RESHAPES:
            length = next(iter(taken.values())).meta["val"].shape[0]
            args = (args[0], [length, *args[1][1:]], *args[2:])
        self._call(step.name, node.target, args, kwargs, node)

    def _weight(self, source: fx.Node, dim: int, step: Step) -> fx.Node:
        """A part of a weight, as a placeholder of its own before all calls."""
        assert step.split is not None
        name = f"{source.name}_part{step.number}of{step.split.parts}_{step.source}"
        whole, fake = self.state[self.program.weights[source.name]], source.meta["val"]
        start, length = list(sizes(whole.shape[dim], step.split.parts))[step.number]
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.placeholder(name)
        node.meta = {**source.meta, "val": _narrow(fake, dim, start, length)}
        self.weights[node.name] = node.name
        self.state[node.name] = whole.detach().narrow(dim, start, length).clone()
        return node

    def _slice(self, step: Step) -> None:
        assert step.split is not None
        source = self.made[step.source]
        total = source.meta["val"].shape[step.split.dim]
        start, length = list(sizes(total, step.split.parts))[step.number]
        args = (source, step.split.dim, start, start + length)
        self._call(step.name, torch.ops.aten.slice.Tensor, args, {}, source)

    def _join(self, step: Step) -> None:
        assert step.split is not None
        pieces = [self.made[name] for name in step.inputs]
        like = self.old[step.source]
        self._call(step.name, torch.ops.aten.cat.default, (pieces, step.split.dim), {}, like)


def _narrow(fake: Tensor, dim: int, start: int, length: int) -> Tensor:
    with getattr(fake, "fake_mode", None) or torch.no_grad():
        return fake.narrow(dim, start, length)


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    """The result of a call on the fake tensors of its arguments."""
    values = fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
    tensors = [node.meta["val"] for node in _nodes((args, kwargs))]
    mode = next((t.fake_mode for t in tensors if hasattr(t, "fake_mode")), None)
    with mode or torch.no_grad():
        return target(*values[0], **values[1])


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found
