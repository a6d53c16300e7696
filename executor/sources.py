"""From a model source of a scenario to a torch module with example inputs."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from executor.zoo import TAKES_TOKENS, ZOO, check_positions
from hardware.documents import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEED = 0
FORMS = "zoo:NAME, python:MODULE:FACTORY, hf:FILE, onnx:FILE or graph:FILE"


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode and one batch of inputs, both on the same torch device.

    Attributes:
        inputs, kwargs: what the module is called with; tensors, or lists and dictionaries of them.
        notes: how it was built, where that was not the plain way.
    """

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """The input tensors in the order in which they are given."""
        leaves = tree_leaves((self.inputs, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Model":
        """The model with every input tensor changed."""
        inputs, kwargs = tree_map_only(Tensor, change, (self.inputs, dict(self.kwargs)))
        return replace(self, inputs=inputs, kwargs=kwargs)


def build_model(
    source: str, batch: int, dtype: str, device: str, tokens: int | None = None
) -> Model:
    """Build the model of a source on a torch device ('meta', 'cpu').

    A factory takes the batch size (and `tokens`, where it reads tokens) and returns
    (module, inputs): a tuple of positional or a dictionary of keyword inputs. Weights and inputs
    come from a fixed seed.

    Raises:
        ValueError: an unknown source, batch or dtype, or a factory that fails (its line is named).
    """
    name, factory = find_factory(source)
    sizes = (batch, *_token_argument(source, factory, tokens))
    return replace(build_from(source, factory, sizes, dtype, device), name=name)


def build_from(
    source: str, factory: Callable[..., Any], sizes: tuple[int, ...], dtype: str, device: str
) -> Model:
    """Call a factory with the batch size and further sizes, and cast what it gives to a dtype.

    Raises:
        ValueError: as `build_model`.
    """
    if sizes[0] < 1:
        raise ValueError(f"model.batch must be at least 1, got {sizes[0]}")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype: unknown dtype '{dtype}'{nearest(dtype, list(DTYPES))}")
    (module, inputs), notes = _built(source, factory, sizes, device)
    kind = DTYPES[dtype]
    positional, named = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    model = Model(source, module.to(kind).eval(), positional, named, notes)
    return model.with_tensors(lambda x: x.to(kind) if x.is_floating_point() else x)


def _token_argument(
    source: str, factory: Callable[..., Any], tokens: int | None
) -> tuple[int, ...]:
    if tokens is None:
        return ()
    if tokens < 1:
        raise ValueError(f"model.tokens must be at least 1, got {tokens}")
    scheme, _, name = source.partition(":")
    named_tokens = scheme != "zoo" and "tokens" in inspect.signature(factory).parameters
    if not named_tokens and name not in TAKES_TOKENS:
        raise ValueError(f"{source}: its factory takes no tokens; leave model.tokens out")
    check_positions(source, tokens)
    return (tokens,)


def _built(
    source: str, factory: Callable[..., Any], arguments: tuple[int, ...], device: str
) -> tuple[tuple[nn.Module, Any], tuple[str, ...]]:
    """Call a factory under a device; one that needs real numbers is built on the CPU and moved."""
    try:
        module, inputs = _called(source, factory, arguments, device)
        return (module, inputs), tuple(getattr(module, "build_notes", ()))
    except Exception as error:
        if device != "meta" or isinstance(error, _WrongResultError):
            raise _factory_error(source, error) from error
        first = error
    try:
        module, inputs = _called(source, factory, arguments, "cpu")
    except Exception as error:
        raise _factory_error(source, error) from error
    reason = str(first).strip().split("\n")[0]
    to_meta: Callable[[Tensor], Tensor] = lambda x: x.to("meta")  # noqa: E731
    moved = (moved_weights(module, to_meta), tree_map_only(Tensor, to_meta, inputs))
    return moved, (f"built on the CPU, then moved to meta: {reason}{user_line(first)}",)


class _WrongResultError(ValueError):
    pass


def _factory_error(source: str, error: Exception) -> ValueError:
    if isinstance(error, _WrongResultError):
        return ValueError(str(error))
    if isinstance(error, ValueError) and not user_line(error):
        return ValueError(f"{source}: {error}")
    return ValueError(f"{source}: the factory failed{user_line(error)}: {error}")


def _called(
    source: str, factory: Callable[..., Any], arguments: tuple[int, ...], device: str
) -> tuple[nn.Module, Any]:
    torch.manual_seed(SEED)
    with torch.device(device):
        made = factory(*arguments)
    is_pair = isinstance(made, tuple) and len(made) == 2
    if is_pair and isinstance(made[0], nn.Module) and isinstance(made[1], tuple | dict):
        return made[0], made[1]
    kinds = [type(part).__name__ for part in (made if isinstance(made, tuple) else [made])]
    raise _WrongResultError(
        f"{source}: the factory must return (torch.nn.Module, tuple of tensors) or "
        f"(torch.nn.Module, dictionary of tensors), got ({', '.join(kinds)})"
    )


def moved_weights(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Replace every parameter and buffer of a module in place; tied ones stay tied."""
    new: dict[int, Any] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                if (changed := change(value)) is value:
                    continue
                if id(value) not in new:
                    new[id(value)] = nn.Parameter(changed, value.requires_grad)
                part._parameters[name] = new[id(value)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = new.setdefault(id(buffer), change(buffer))
    return module


def find_factory(source: str) -> tuple[str, Callable[..., Any]]:
    """The display name and the factory of a model source.

    Raises:
        ValueError: there is no such zoo model, module, factory or file.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "zoo":
        if rest not in ZOO:
            raise ValueError(f"unknown model '{source}'{nearest(rest, list(ZOO))}")
        return rest, ZOO[rest]
    if scheme == "hf" and rest:
        from executor.hugging_face import hugging_face

        return hugging_face(Path(rest))
    if scheme == "onnx" and rest:
        from executor.onnx.model import onnx_model

        return onnx_model(Path(rest))
    if scheme == "graph" and rest:
        raise ValueError(
            f"'{source}' is a graph without a torch module: it can be planned and simulated, not "
            "executed"
        )
    module_name, _, factory_name = rest.rpartition(":")
    if scheme != "python" or not module_name or not factory_name:
        raise ValueError(f"model source '{source}' is not {FORMS}")
    module = _imported(source, module_name)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value)]
        hint = nearest(factory_name, names)
        raise ValueError(f"{source}: module '{module_name}' has no '{factory_name}'{hint}")
    return factory_name, factory


def _imported(source: str, name: str) -> ModuleType:
    """Import a module by its dotted name, the working directory included, or by its file."""
    try:
        if not name.endswith(".py"):
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.insert(0, here)
            return importlib.import_module(name)
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name}: no such file")
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise ValueError(
            f"{source}: module '{name}' cannot be imported{user_line(error)}: {error}"
        ) from error


def user_line(error: BaseException) -> str:
    """' at FILE:LINE: CODE' for the innermost frame of an error that is in user code, or ''."""
    installed = (str(Path(torch.__file__).parent), str(Path(__file__).parent), sys.prefix, "<")
    library = str(Path(traceback.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_ours = frame.filename.startswith(installed) and "zoo" not in Path(frame.filename).parts
        if not is_ours and not frame.filename.startswith(library):
            return f" at {frame.filename}:{frame.lineno}: {frame.line}"
    return ""
