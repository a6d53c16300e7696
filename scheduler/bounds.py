"""Lower bounds that need no trust in an algorithm."""

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.latency_timeline import heads
from scheduler.load_bound import load_bound
from scheduler.problem import Problem
from scheduler.tasks import tasks_of

MOST_PATH_STEPS = 20_000_000
"""Edges x devices^2 up to which the critical path counts transfers, about a second."""


def lower_bound(problem: Problem, replicas: bool = False) -> float:
    """A value of the objective that no plan can be below; `replicas`: not even with replicas.

    Raises:
        InfeasibleError: an operator can run on no device.
    """
    impossible = np.flatnonzero(~np.isfinite(problem.seconds).any(axis=1))
    if len(impossible):
        raise InfeasibleError(f"operator '{problem.graph.ops[impossible[0]].name}' can run nowhere")
    load_s = load_bound(problem, replicas) * problem.num_micro_batches
    if problem.objective == "latency" or problem.graph.is_sequential:
        load_s = max(load_s, critical_path(problem))
    return usd_per_1k(problem, load_s) if problem.objective == "cost" else load_s


def usd_per_1k(problem: Problem, period_s: float) -> float:
    """USD per 1,000 inferences when one batch leaves every `period_s` seconds."""
    rate = problem.usd_per_hour or 0.0
    return rate / 3600 * period_s / problem.batch * 1000


def critical_path(problem: Problem) -> float:
    """Seconds of the longest path, on the devices that suit it best, its transfers included.

    Each operator of a path may run anywhere: `latency_timeline.heads`; transfers are free where
    that would take long to compute. Nothing else on devices and media is counted.
    """
    arrays = problem.arrays
    if len(arrays.reader) * arrays.num_devices**2 <= MOST_PATH_STEPS:
        return float(heads(tasks_of(problem)).min(axis=1).max(initial=0.0))
    fastest = problem.seconds.min(axis=1)
    finish: dict[str, float] = {}
    for i, op in enumerate(problem.graph.ops):
        start = max((finish[t] for t in op.inputs if t in finish), default=0.0)
        finish |= {tensor.name: start + fastest[i] for tensor in op.outputs}
    return max(finish.values(), default=0.0)
