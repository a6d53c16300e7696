"""Models of ONNX files: each node runs as torch functions, so what torch captures we capture."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from executor.onnx.file import OnnxFile, array_of, as_tensor, dtype_of, read_onnx
from executor.onnx.inputs import TOKENS, bound_shapes, example_inputs, reads_tokens
from executor.onnx.steps import run_step
from executor.onnx.trace import Trace, trace

Built = tuple[nn.Module, tuple[Tensor, ...]]


class OnnxModule(nn.Module):
    """The steps of a traced ONNX file; its floating-point weights are parameters.

    Attributes:
        build_notes: how it was built, where that was not the plain way.
    """

    def __init__(self, traced: Trace, state: Mapping[str, Tensor], notes: tuple[str, ...]):
        super().__init__()
        self.steps = traced.steps
        self.input_names = [given.name for given in traced.file.inputs]
        self.output_names = [given.name for given in traced.file.proto.graph.output]
        self.build_notes = notes
        self.held: dict[str, str] = {}
        for name, value in state.items():
            self.held[name] = held = self._free_name(name)
            if isinstance(value, nn.Parameter):
                self.register_parameter(held, value)
            else:
                self.register_buffer(held, value)

    def _free_name(self, name: str) -> str:
        """A name that torch takes: letters, digits and underscores, used once."""
        plain = re.sub(r"\W", "_", name) or "weight"
        plain = f"w_{plain}" if plain[0].isdigit() or hasattr(self, plain) else plain
        while hasattr(self, plain):
            plain += "_"
        return plain

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the steps in order; outputs in the order of the file."""
        tensors = {name: getattr(self, held) for name, held in self.held.items()}
        tensors |= dict(zip(self.input_names, inputs, strict=True))
        floats = (x.dtype for x in tensors.values() if x.is_floating_point())
        dtype = next(floats, torch.float32)
        for step in self.steps:
            tensors |= run_step(step, tensors, dtype)
        return tuple(tensors[name] for name in self.output_names)


def onnx_model(path: Path) -> tuple[str, Callable[..., Built]]:
    """The name and the factory of an ONNX file; it takes tokens where a length of text is free.

    Raises:
        ValueError: the package onnx is missing, or the file is not an ONNX model.
    """
    file = read_onnx(path)

    def build_tokens(batch: int, tokens: int = TOKENS) -> Built:
        return _built(file, batch, tokens)

    def build(batch: int) -> Built:
        return _built(file, batch, TOKENS)

    return path.stem, build_tokens if reads_tokens(file) else build


def _built(file: OnnxFile, batch: int, tokens: int) -> Built:
    shapes = bound_shapes(file, batch, tokens)
    traced = trace(file, shapes)
    absent = [name for name in traced.weights if name in file.missing]
    notes = (
        (f"{len(absent)} weights have random values: their file is not beside {file.path.name}",)
        if absent
        else ()
    )
    module = OnnxModule(traced, _state(traced), notes)
    return module, example_inputs(file, shapes)


def _state(traced: Trace) -> dict[str, Tensor]:
    """What the steps read beside the inputs, on the default device.

    Running means and variances are no parameters; neither is what is not floating-point.
    """
    read = {x.name for step in traced.steps for x in step.inputs if hasattr(x, "name")}
    read |= {given.name for given in traced.file.proto.graph.output}
    norms = [step for step in traced.steps if step.call.op == "BatchNormalization"]
    running = {x.name for step in norms for x in step.inputs[3:5]}
    state: dict[str, Tensor] = {}
    for name, stored in traced.weights.items():
        if name in read:
            value = _weight(traced.file, name, stored)
            is_parameter = value.is_floating_point() and name not in running
            state[name] = nn.Parameter(value, requires_grad=True) if is_parameter else value
    device = torch.get_default_device()
    for name, array in traced.buffers.items():
        state[name] = as_tensor(array).to(device)
    return state


def _weight(file: OnnxFile, name: str, stored: Any) -> Tensor:
    """A stored tensor on the default device; its values are read only where they are kept."""
    shape, dtype = tuple(stored.dims), dtype_of(stored.data_type)
    if torch.get_default_device().type == "meta":
        return torch.empty(shape, dtype=dtype)
    if name not in file.missing:
        return as_tensor(array_of(file, stored)).to(torch.get_default_device())
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    fan_in = max(torch.Size(shape[1:]).numel(), 1)
    return torch.randn(shape, dtype=dtype) / math.sqrt(fan_in)
