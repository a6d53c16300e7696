"""How outputs of a plan's run compare with those of the unsplit model."""

import math

import torch

from executor.program import Program
from executor.stages import Tensors

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Largest difference from the unsplit output, relative to its largest magnitude, by dtype."""

LEAST_SHARE = 0.01
"""Of the largest gradient: smaller ones are compared with this much of it."""


def difference_of(
    outputs: dict[int, Tensors], reference: dict[int, Tensors], num_micro_batches: int
) -> float:
    """Largest difference, relative to the reference's largest magnitude; NaN never agrees."""
    worst = 0.0
    for batch, tensors in reference.items():
        mine = range(batch * num_micro_batches, (batch + 1) * num_micro_batches)
        for expected, *parts in zip(
            tensors.values(), *(outputs[k].values() for k in mine), strict=True
        ):
            got = torch.cat(parts) if num_micro_batches > 1 else parts[0]
            scale = float(expected.abs().max()) or 1.0
            distance = float((got.float() - expected.float()).abs().max())
            worst = max(worst, float("inf") if math.isnan(distance) else distance / scale)
    return worst


def step_difference(
    outputs: dict[int, Tensors], reference: dict[int, Tensors], program: Program, m: int
) -> float:
    """Largest difference of losses and of sums of gradients from the unsplit steps'.

    Relative to the tensor's largest magnitude, but not to less than `LEAST_SHARE` of the largest
    gradient: some gradients are zero but for rounding (those of the biases of attention's keys).
    """
    worst = 0.0
    for k, tensors in reference.items():
        sums = set(program.gradients.values()) if k % m == m - 1 else set[str]()
        largest = max((float(tensors[name].abs().max()) for name in sums), default=0.0)
        for name in {*program.outputs, *sums}:
            expected, got = tensors[name].float(), outputs[k][name].float()
            scale = max(float(expected.abs().max()), LEAST_SHARE * largest) or 1.0
            distance = float((got - expected).abs().max())
            worst = max(worst, float("inf") if math.isnan(distance) else distance / scale)
    return worst
