"""Capture by torch.compile: the graphs between graph breaks, joined by the tensors they share.

Follows what only bytecode reading can (NumPy calls) around code that it cannot (prints, logging):
a graph break runs that code in Python, and the next graph goes on with the same tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from executor.program import Program, tensors_in
from executor.sources import Model
from executor.tracing import trace


@dataclass(frozen=True)
class Recorded:
    """One run of one graph: what it was given and gave, kept so that identities stay unique."""

    graph_module: fx.GraphModule
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def captured_by_dynamo(model: Model) -> Program:
    """Run the compiled module once on the example inputs and join the recorded graphs.

    Raises:
        ValueError: a tensor was computed between two graphs, where it was not recorded.
    """
    runs: list[Recorded] = []

    def backend(graph_module: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            outputs = graph_module(*inputs)
            runs.append(Recorded(graph_module, inputs, tuple(outputs)))
            return outputs

        return run

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model.module, backend=backend, dynamic=False)
    result = compiled(*model.inputs, **model.kwargs)
    breaks = list(torch._dynamo.utils.counters["graph_break"])
    torch._dynamo.reset()
    program = trace(model, _replay(model, runs, result), "dynamo")
    lines = tuple(f"graph break: {str(reason).split(chr(10))[0].strip()}" for reason in breaks)
    return replace(program, notes=(f"dynamo joined {len(runs)} graphs", *lines))


def _replay(model: Model, runs: list[Recorded], result: Any) -> Callable[..., Any]:
    """A function of the inputs that runs the recorded graphs on one another's tensors."""
    state = {
        id(t): name for name, t in [*model.module.named_parameters(), *model.module.named_buffers()]
    }
    given = [t for t in tree_leaves((model.inputs, model.kwargs)) if isinstance(t, Tensor)]

    def run(*inputs: Any, **kwargs: Any) -> Any:
        fresh = [t for t in tree_leaves((inputs, kwargs)) if isinstance(t, Tensor)]
        known = {id(old): new for old, new in zip(given, fresh, strict=True)}
        named = dict([*model.module.named_parameters(), *model.module.named_buffers()])
        known |= {key: named[name] for key, name in state.items()}

        def value(old: Any) -> Any:
            if not isinstance(old, Tensor):
                return old
            if id(old) not in known:
                raise ValueError("a tensor was computed in a graph break, outside every graph")
            return known[id(old)]

        for recorded in runs:
            outputs = recorded.graph_module(*(value(old) for old in recorded.inputs))
            known |= {id(a): b for a, b in zip(recorded.outputs, outputs, strict=True)}
        return [value(old) for old in tensors_in(result)]

    return run
