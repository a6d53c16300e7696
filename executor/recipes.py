"""Recipes: one operator call as plain data, from which its tensors are made and it is run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx

from executor.capture import to_graph
from executor.program import Program
from hardware.documents import nearest
from scheduler.ir.graph import Op

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)}  # fmt: skip


@dataclass(frozen=True)
class Like:
    """A tensor to be made: a `weight` or an activation; integers are below `high`."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    weight: bool = False
    high: int = 1

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the tensor spans."""
        spans = zip(self.shape, self.stride, strict=True)
        last = sum((size - 1) * step for size, step in spans if size)
        return (last + 1) * torch.empty(0, dtype=DTYPES[self.dtype]).element_size()

    def make(self, device: str) -> Tensor:
        """Make it: normal numbers, integers below `high`, or all true."""
        dtype = DTYPES[self.dtype]
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        flat: Tensor
        if dtype == torch.bool:
            flat = torch.ones(last + 1, dtype=dtype, device=device)
        elif dtype.is_floating_point or dtype.is_complex:
            flat = torch.randn(last + 1, device=device).to(dtype)
        else:
            flat = torch.randint(self.high, (last + 1,), dtype=dtype, device=device)
        return flat.as_strided(self.shape, self.stride)


def dense(*shape: int, dtype: str = "float32", weight: bool = False, high: int = 1) -> Like:
    """A contiguous tensor."""
    stride = torch.empty(shape, device="meta").stride()
    return Like(tuple(shape), tuple(stride), dtype, weight, high)


@dataclass(frozen=True)
class Recipe:
    """A call of the operator `target` (dotted, in torch.ops) with `Like`s in place of tensors."""

    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def likes(self) -> list[Like]:
        """The tensors that it takes, in order."""
        return list(_leaves((self.args, tuple(value for _, value in self.kwargs))))

    @property
    def weight_bytes(self) -> int:
        """Bytes of its parameters."""
        return sum(like.num_bytes for like in self.likes if like.weight)


def recipe_of(node: fx.Node, weights: Mapping[str, Any]) -> Recipe:
    """The call that a node of a captured program makes; `weights` holds the parameters' nodes."""

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return _like(value, node, weights)
        if isinstance(value, tuple | list):
            return tuple(plain(item) for item in value)
        return value

    kwargs = tuple((key, plain(value)) for key, value in node.kwargs.items())
    return Recipe(str(node.target), tuple(plain(value) for value in node.args), kwargs)


def _like(source: fx.Node, reader: fx.Node, weights: Mapping[str, Any]) -> Any:
    value = source.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    high = 1
    first = reader.args[0]
    if "embedding" in str(reader.target) and isinstance(first, fx.Node) and first is not source:
        high = int(first.meta["val"].shape[0])
    dtype = str(value.dtype).removeprefix("torch.")
    shape, stride = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
    return Like(shape, stride, dtype, source.name in weights, high)


Call = Callable[[], object]


class Arena:
    """Memory that weights are taken from in turn, so that they are as cold as in a model.

    A weight comes back into the caches' reach only after all others of `num_bytes`: what a whole
    model reads between two uses of the same weight.
    """

    def __init__(self, num_bytes: float, device: str) -> None:
        self.num_bytes, self.device = int(num_bytes), device
        self.flat: dict[str, Tensor] = {}
        self.cursor: dict[str, int] = {}

    def take(self, like: Like) -> Tensor:
        """The next piece of memory, in the shape of `like`."""
        item = torch.empty(0, dtype=DTYPES[like.dtype]).element_size()
        num = -(-like.num_bytes // LINE_BYTES) * LINE_BYTES // item
        size = max(num, self.num_bytes // item)
        if like.dtype not in self.flat or self.flat[like.dtype].numel() < num:
            self.flat[like.dtype] = dense(size, dtype=like.dtype).make(self.device)
        start = self.cursor.get(like.dtype, 0)
        if start + num > self.flat[like.dtype].numel():
            start = 0
        self.cursor[like.dtype] = start + num
        return self.flat[like.dtype].as_strided(like.shape, like.stride, start)


LINE_BYTES = 64
MAX_COPIES = 32


def calls(recipe: Recipe, arena: Arena) -> list[Call]:
    """Ready calls of one recipe: one set of activations, the weights each time others."""
    function, device = operator(recipe.target), arena.device
    kept = {like: like.make(device) for like in recipe.likes if not like.weight}
    weights = [like for like in recipe.likes if like.weight]
    copies = min(MAX_COPIES, max(1, arena.num_bytes // max(1, recipe.weight_bytes)))
    ready: list[Call] = []
    for _ in range(copies if weights else 1):
        made = kept | {like: arena.take(like) for like in weights}
        args = _filled(recipe.args, made, device)
        kwargs = {key: _filled(value, made, device) for key, value in recipe.kwargs}
        ready.append(partial(function, *args, **kwargs))
    return ready


def describe(recipes: Sequence[Recipe]) -> list[Op]:
    """The operators that recipes run, as capture would see them in a model."""
    graph, weights, state = fx.Graph(), {}, {}
    for i, recipe in enumerate(recipes):
        metas = [torch.empty_strided(x.shape, x.stride, dtype=DTYPES[x.dtype], device="meta")
                 for x in recipe.likes]  # fmt: skip
        nodes = [graph.placeholder(f"x{i}_{j}") for j in range(len(metas))]
        for node, meta, like in zip(nodes, metas, recipe.likes, strict=True):
            node.meta["val"] = meta
            if like.weight:
                weights[node.name], state[node.name] = node.name, meta
        function = operator(recipe.target)
        turn, values = iter(nodes), iter(metas)
        args = _mapped(recipe.args, lambda _, turn=turn: next(turn))  # type: ignore[misc]
        node = graph.call_function(function, args, dict(recipe.kwargs), name=f"op{i}")
        given = _mapped(recipe.args, lambda _, values=values: next(values))  # type: ignore[misc]
        node.meta["val"] = function(*given, **dict(recipe.kwargs))
    graph.output(())
    module = fx.GraphModule(torch.nn.Module(), graph)
    program = Program(module, weights, state, frozenset(weights), (), "recipes")
    return list(to_graph(program, "recipes", 1).ops)


def operator(dotted: str) -> Callable[..., Any]:
    """The operator of a dotted name such as 'aten.linear.default'.

    Raises:
        ValueError: torch has none of this name.
    """
    try:
        return reduce(getattr, dotted.split("."), torch.ops)  # type: ignore[return-value]
    except AttributeError:
        namespace = getattr(torch.ops, dotted.split(".")[0])
        raise ValueError(f"unknown operator '{dotted}'{nearest(dotted, dir(namespace))}") from None


def _filled(value: Any, made: Mapping[Like, Tensor], device: str) -> Any:
    if isinstance(value, torch.device):
        return torch.device(device)
    if isinstance(value, tuple):
        return tuple(_filled(item, made, device) for item in value)
    return made[value] if isinstance(value, Like) else value


def _mapped(value: Any, change: Callable[[Like], Any]) -> Any:
    if isinstance(value, Like):
        return change(value)
    return tuple(_mapped(item, change) for item in value) if isinstance(value, tuple) else value


def _leaves(value: Any) -> Iterator[Like]:
    if isinstance(value, Like):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
