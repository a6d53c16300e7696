"""Capture below the dispatcher: the module runs once on fake tensors, every ATen call is noted.

Follows any Python code that does not look at data, also code that torch.export refuses (tensors
kept on attributes). Composite operators come as their parts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from executor.program import Program, tensors_in
from executor.sources import Model


def captured_by_tracing(model: Model) -> Program:
    """Capture a model by `make_fx` with in-place work rewritten."""

    def run(*inputs: Any, **kwargs: Any) -> Any:
        return model.module(*inputs, **kwargs)

    return trace(model, run, "decompositions (make_fx)")


def trace(model: Model, run: Callable[..., Any], captured_by: str) -> Program:
    """Trace `run(*inputs, **kwargs)`, which calls the model's module or parts of it."""
    named = {
        **dict(model.module.named_parameters(remove_duplicate=True)),
        **dict(model.module.named_buffers(remove_duplicate=True)),
    }
    leaves, spec = tree_flatten((model.inputs, model.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    wrapped = _Call(model.module, run)

    def flat(weights: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        state = {f"module.{n}": t for n, t in zip(named, weights, strict=True)}
        out = functional_call(wrapped, state, args, kwargs)
        return tensors_in(out)

    with module_paths(model.module), _NoNumPy():
        graph_module = make_fx(
            functionalize(flat, remove="mutations"), tracing_mode="fake", pre_dispatch=False
        )(list(named.values()), [leaves[i] for i in places])
    graph_module.graph.eliminate_dead_code()
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    weights = {node.name: name for node, name in zip(placeholders, named, strict=False)}
    state: dict[str, Any] = dict(named)
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr" and isinstance(
            value := getattr(graph_module, str(node.target), None), Tensor
        ):
            node.meta.setdefault("val", value)
            weights[node.name] = str(node.target)
            state[str(node.target)] = value
    parameters = frozenset(name for name, _ in model.module.named_parameters())
    leaves_out = tree_leaves(graph_module.graph.output_node().args)
    returned = tuple(node.name for node in leaves_out if isinstance(node, fx.Node))
    return Program(graph_module, weights, state, parameters, returned, captured_by)


class _Call(nn.Module):
    """Lets `functional_call` put traced weights into a module while a function runs it."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        return self.run(*args, **kwargs)


class _NoNumPy(TorchFunctionMode):
    """Refuses to let a tensor leave torch: what NumPy gave back would be taken as a constant."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("numpy", "__array__", "tolist"):
            raise ValueError(f"tensor.{func.__name__}() leaves torch, where it cannot be traced")
        return func(*args, **(kwargs or {}))


@contextmanager
def module_paths(module: nn.Module) -> Iterator[None]:
    """Note on every traced node the path of the module that is running."""
    stack: list[tuple[str, str]] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(running: nn.Module, *_: Any) -> None:
            stack.append((path, type(running).__qualname__))
            fx.traceback.current_meta["nn_module_stack"] = {str(i): s for i, s in enumerate(stack)}

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        fx.traceback.current_meta["nn_module_stack"] = {str(i): s for i, s in enumerate(stack)}

    handles = []
    for path, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(enter(path)))
        handles.append(child.register_forward_hook(leave, always_call=True))
    try:
        with fx.traceback.preserve_node_meta():
            yield
    finally:
        fx.traceback.current_meta.pop("nn_module_stack", None)
        for handle in handles:
            handle.remove()
