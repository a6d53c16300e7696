"""From a model source of a scenario to a torch module with example inputs."""

import importlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from executor.zoo import ZOO, Factory
from hardware.documents import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEED = 0


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode and one batch of inputs, both on the same torch device."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]


def build_model(source: str, batch: int, dtype: str, device: str) -> Model:
    """Build the model of `zoo:NAME` or `python:MODULE:FACTORY` on a torch device ('meta', 'cpu').

    A factory takes the batch size and returns (module, example inputs). Weights and inputs come
    from a fixed seed.

    Raises:
        ValueError: an unknown source, batch or dtype, or a factory that fails (its line is named).
    """
    if batch < 1:
        raise ValueError(f"model.batch must be at least 1, got {batch}")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype: unknown dtype '{dtype}'{nearest(dtype, list(DTYPES))}")
    name, factory = find_factory(source)
    torch.manual_seed(SEED)
    try:
        with torch.device(device):
            made = factory(batch)
    except Exception as error:
        raise ValueError(f"{source}: the factory failed{user_line(error)}: {error}") from error
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not (is_pair and isinstance(made[0], nn.Module) and isinstance(made[1], tuple)):
        kinds = [type(part).__name__ for part in (made if isinstance(made, tuple) else [made])]
        raise ValueError(
            f"{source}: the factory must return (torch.nn.Module, tuple of tensors), "
            f"got ({', '.join(kinds)})"
        )
    module, inputs = made
    kind = DTYPES[dtype]
    cast = tuple(x.to(kind) if x.is_floating_point() else x for x in inputs)
    return Model(name, module.to(kind).eval(), cast)


def find_factory(source: str) -> tuple[str, Factory]:
    """The display name and the factory of a model source.

    Raises:
        ValueError: there is no such zoo model, module or factory.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "zoo":
        if rest not in ZOO:
            raise ValueError(f"unknown model '{source}'{nearest(rest, list(ZOO))}")
        return rest, ZOO[rest]
    module_name, _, factory_name = rest.partition(":")
    if scheme != "python" or not module_name or not factory_name:
        raise ValueError(f"model source '{source}' is not zoo:NAME or python:MODULE:FACTORY")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"{source}: module '{module_name}' cannot be imported{user_line(error)}: {error}"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value)]
        hint = nearest(factory_name, names)
        raise ValueError(f"{source}: module '{module_name}' has no '{factory_name}'{hint}")
    return factory_name, factory


def user_line(error: BaseException) -> str:
    """' at FILE:LINE: CODE' for the innermost frame of an error that is in user code, or ''."""
    installed = (str(Path(torch.__file__).parent), str(Path(__file__).parent), sys.prefix, "<")
    library = str(Path(traceback.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_ours = frame.filename.startswith(installed) and "zoo" not in Path(frame.filename).parts
        if not is_ours and not frame.filename.startswith(library):
            return f" at {frame.filename}:{frame.lineno}: {frame.line}"
    return ""
