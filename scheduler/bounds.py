"""Lower bounds that need no trust in an algorithm."""

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.problem import Problem

LARGEST_LINEAR_PROGRAM = 200_000
"""Variables (operators x devices) above which the cheaper load bound is used."""


def lower_bound(problem: Problem) -> float:
    """A value of the objective that no plan can be below.

    Raises:
        InfeasibleError: an operator can run on no device.
    """
    impossible = np.flatnonzero(~np.isfinite(problem.seconds).any(axis=1))
    if len(impossible):
        raise InfeasibleError(f"operator '{problem.graph.ops[impossible[0]].name}' can run nowhere")
    load_s = load_bound(problem) * problem.num_micro_batches
    if problem.objective == "latency":
        return max(load_s, critical_path(problem))
    if problem.objective == "throughput":
        return load_s
    return usd_per_1k(problem, load_s)


def usd_per_1k(problem: Problem, period_s: float) -> float:
    """USD per 1,000 inferences when one batch leaves every `period_s` seconds."""
    rate = problem.usd_per_hour or 0.0
    return rate / 3600 * period_s / problem.batch * 1000


def critical_path(problem: Problem) -> float:
    """Seconds of the longest path when every operator runs on its fastest device, for free sent."""
    fastest = problem.seconds.min(axis=1)
    finish: dict[str, float] = {}
    for i, op in enumerate(problem.graph.ops):
        start = max((finish[t] for t in op.inputs if t in finish), default=0.0)
        finish |= {tensor.name: start + fastest[i] for tensor in op.outputs}
    return max(finish.values(), default=0.0)


def load_bound(problem: Problem) -> float:
    """Largest device load of a micro-batch when operators may be cut in pieces and sent for free.

    min z  s.t.  sum_d x[o,d] = 1,  sum_o seconds[o,d] x[o,d] <= z,  x >= 0 (a linear programme).
    An optimizer, which runs once per batch, counts with its share.
    """
    seconds = problem.seconds
    if problem.trains_in_parts:
        once = np.array([op.phase == "optimizer" for op in problem.graph.ops])
        seconds = np.where(once[:, None], seconds / problem.num_micro_batches, seconds)
    if seconds.shape[1] == 1:
        return float(seconds.sum())
    fastest = seconds.min(axis=1)
    simple = float(max(fastest.max(), fastest.sum() / seconds.shape[1]))
    if seconds.size > LARGEST_LINEAR_PROGRAM:
        return simple
    return max(simple, _fractional_load(seconds))


def _fractional_load(seconds: np.ndarray) -> float:
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    num_ops, num_devices = seconds.shape
    op, device = np.nonzero(np.isfinite(seconds))
    column = np.arange(len(op))
    z = len(op)
    assigned = coo_array((np.ones(len(op)), (op, column)), shape=(num_ops, z + 1))
    scale = seconds[op, device].max() or 1.0
    load = coo_array(
        (
            np.append(seconds[op, device] / scale, -np.ones(num_devices)),
            (np.append(device, range(num_devices)), np.append(column, [z] * num_devices)),
        ),
        shape=(num_devices, z + 1),
    )
    solved = linprog(
        np.append(np.zeros(z), 1.0),
        A_ub=load.tocsr(),
        b_ub=np.zeros(num_devices),
        A_eq=assigned.tocsr(),
        b_eq=np.ones(num_ops),
        bounds=(0, None),
        method="highs",
    )
    # The solver's tolerance is 1e-7 of the scaled programme: stay on the safe side of it.
    return float(solved.fun) * scale * (1 - 1e-6) if solved.success else 0.0
