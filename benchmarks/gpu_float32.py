"""What is known of float32 operators on GPUs before any measurement, and the runs to learn from.

The weights say how far a class lies from its roofline, in logarithms; e.g. `power_bound` -1: where
the board feeds half of the rate, products take twice as long.
"""

from collections.abc import Sequence

import numpy as np
from neusight_backward import backward_ops, loss_ops
from neusight_trace import Step, Timed, forward_ops

from hardware.profile import DeviceProfile
from scheduler.pooled import Prior, Run

RAMP = {"ramp": (0.2, 0.2)}
PRIORS = {
    "matmul": Prior(
        (0.07, 0.07),
        {
            "issue_bound": (0.19, 0.07),
            "power_bound": (-1.0, 0.25),
            "batched": (0.1, 0.2),
            "idle_units": (0.4, 0.3),
            "short_depth": (0.5, 0.5),
            "narrow": (0.5, 0.5),
            "balance": (0.5, 0.5),
        },
    ),
    "elementwise": Prior((0.2, 0.2), RAMP | {"broadcast": (0.3, 0.2)}),
    "softmax": Prior((0.2, 0.2), RAMP | {"long_rows": (0.2, 0.2)}),
    "norm": Prior((0.2, 0.2), RAMP),
    "copy": Prior((0.2, 0.2), RAMP),
    "embedding": Prior((0.2, 0.2), RAMP),
    "reduce": Prior((0.2, 0.2), RAMP),
}


def step_ops(step: Step) -> list[Timed]:
    """The operators of a traced step: forward, and in training what is behind it."""
    behind = [*loss_ops(step, False), *backward_ops(step)] if step.training else []
    return [*forward_ops(step), *behind]


def run_of(step: Step, profile: DeviceProfile) -> Run:
    """The run to learn from that a traced step is."""
    timed = step_ops(step)
    return Run(
        profile,
        tuple(t.op for t in timed),
        np.array([t.count for t in timed], float),
        np.array([t.seconds for t in timed]),
        step.seconds,
    )


def runs_of(steps: Sequence[Step], profiles: dict[str, DeviceProfile]) -> list[Run]:
    """The traced, uncompiled single-GPU steps."""
    return [run_of(s, profiles[s.device]) for s in steps if s.nodes and not s.option]
