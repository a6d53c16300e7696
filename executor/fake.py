"""Fake tensors: a model that has shapes, dtypes and devices, and no data."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, empty_strided, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from executor.program import Program
from executor.sources import Model, moved_weights


def on_fake_cpu(model: Model) -> Model:
    """The model with fake tensors of the CPU for its weights, in place, and for its inputs.

    So operators choose the implementations, and get the names, that they have with real weights.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        with mode:
            return empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    moved_weights(model.module, fake)
    return model.with_tensors(fake)


def with_real_weights(way: Callable[[Model], Program]) -> Callable[[Model], Program]:
    """A way that computes while it looks, made to do so on fake tensors; weights come back after.

    Raises:
        ValueError: (from what is returned) a constant was made while its value could not be kept.
    """

    def capture(model: Model) -> Program:
        named = [*model.module.named_parameters(), *model.module.named_buffers()]
        real = dict(named)
        if (not real and not model.tensors) or _is_fake(model):
            return way(model)
        kept = _weights(model.module)
        try:
            program = way(on_fake_cpu(model))
        finally:
            for part, (parameters, buffers) in kept.items():
                part._parameters.update(parameters)
                part._buffers.update(buffers)
        state = {**program.state, **{k: v for k, v in real.items() if k in program.state}}
        lost = [name for name, value in state.items() if isinstance(value, FakeTensor)]
        if lost:
            raise ValueError(f"constants without a value: {', '.join(lost)}")
        return replace(program, state=state)

    return capture


def _is_fake(model: Model) -> bool:
    tensors = [*model.module.parameters(), *model.module.buffers(), *model.tensors]
    return any(isinstance(tensor, FakeTensor) for tensor in tensors)


def _weights(
    module: nn.Module,
) -> dict[nn.Module, tuple[dict[str, nn.Parameter | None], dict[str, Tensor | None]]]:
    return {part: (dict(part._parameters), dict(part._buffers)) for part in module.modules()}
