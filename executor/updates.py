"""What a training step does beside the captured program: sums gradients and updates parameters."""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.optim.adam import adam as torch_adam
from torch.optim.sgd import sgd as torch_sgd

LEARNING_RATE = 1e-5
"""So small that hundreds of steps leave the numbers of ordinary size (and their speed)."""


def accumulate(gradients: list[Tensor], sums: list[Tensor]) -> tuple[Tensor, ...]:
    """Add a micro-batch's gradients to their sums, in place; returns the sums."""
    torch._foreach_add_(sums, gradients)
    return tuple(sums)


def adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: tuple[list[Tensor], list[Tensor], list[Tensor]],
    clears: bool,
) -> None:
    """Update parameters in place by torch's fused Adam.

    Args:
        parameters: to be updated.
        gradients: one for each; set to zero afterwards where they are sums.
        states: first moments, second moments, and numbers of steps so far.
        clears: whether the gradients are sums over micro-batches.
    """
    averages, squares, steps = (list(tensors) for tensors in states)
    torch_adam(
        list(parameters), list(gradients), averages, squares, [], steps, fused=True, amsgrad=False,
        beta1=0.9, beta2=0.999, lr=LEARNING_RATE, weight_decay=0.0, eps=1e-8, maximize=False,
    )  # fmt: skip
    if clears:
        torch._foreach_zero_(gradients)


def sgd(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: tuple[list[Tensor], ...],
    momentum: float,
    clears: bool,
) -> None:
    """Update parameters in place by torch's fused gradient descent; `states` are the momenta."""
    momenta: list[Tensor | None] = list(states[0]) if states else [None] * len(parameters)
    torch_sgd(
        list(parameters), list(gradients), momenta, fused=True, weight_decay=0.0,
        momentum=momentum, lr=LEARNING_RATE, dampening=0.0, nesterov=False, maximize=False,
    )  # fmt: skip
    if clears:
        torch._foreach_zero_(gradients)


UPDATES: dict[str, Callable[..., None]] = {"adam": adam, "sgd": sgd}


def updates_parameters(node: fx.Node) -> bool:
    """Whether a node of a training step is an update of parameters."""
    return node.target in UPDATES.values()
