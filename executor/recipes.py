"""Recipes: one operator call as plain data, from which its tensors are made and it is run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from hardware.documents import nearest

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)}  # fmt: skip


@dataclass(frozen=True)
class Like:
    """A tensor to be made: `weight` tells parameters from activations; integers are below `high`."""

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


def runner(recipe: Recipe, device: str, footprint_bytes: float) -> Callable[[], object]:
    """A function that runs the call; activations stay warm, weights are as cold as in a model.

    Each run takes the next of several copies of the weights, which together hold up to
    `footprint_bytes`: what a whole model reads between two uses of the same weight.
    """
    function = operator(recipe.target)
    copies = int(min(MAX_COPIES, max(1, footprint_bytes // max(1, recipe.weight_bytes))))
    kept = {like: like.make(device) for like in recipe.likes if not like.weight}
    calls = []
    for _ in range(copies if recipe.weight_bytes else 1):
        made = kept | {like: like.make(device) for like in recipe.likes if like.weight}
        args = _filled(recipe.args, made, device)
        calls.append((args, {k: _filled(v, made, device) for k, v in recipe.kwargs}))
    turn = 0

    def run() -> object:
        nonlocal turn
        args, kwargs = calls[turn]
        turn = (turn + 1) % len(calls)
        return function(*args, **kwargs)

    return run


MAX_COPIES = 64


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
    if isinstance(value, Like):
        return made[value]
    if isinstance(value, tuple):
        return tuple(_filled(item, made, device) for item in value)
    return torch.device(device) if isinstance(value, torch.device) else value


def _leaves(value: Any) -> Iterator[Like]:
    if isinstance(value, Like):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
