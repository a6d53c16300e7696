"""Lower bounds that need no trust in an algorithm."""

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.latency_timeline import heads
from scheduler.problem import Problem
from scheduler.tasks import tasks_of

MOST_CUTS = 200
"""Cutting planes of the load bound, which holds however few there are."""
CUT_TOLERANCE = 1e-7
"""Relative distance from the best load bound at which cutting stops."""

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


def load_bound(problem: Problem, replicas: bool = False) -> float:
    """Largest device load of a micro-batch when operators may be cut in pieces and sent for free.

    min z  s.t.  sum_d x[o,d] = 1,  sum_o seconds[o,d] x[o,d] <= z,  x >= 0 (a linear programme).
    By its dual, max over y >= 0 with sum_d y[d] = 1 of f(y) = sum_o min_d y[d] seconds[o,d]: every
    y gives a bound, and devices with the same times share one y. Each f(y) is one cutting plane
    (Kelley, "The cutting-plane method for solving convex programs", J. SIAM 8(4), 1960,
    doi:10.1137/0108053). O(operators x kinds of devices) a cut. An optimizer, which runs once per
    batch, counts with its share.
    """
    seconds = problem.seconds_per_micro_batch
    if not seconds.size:
        return 0.0
    first: dict[bytes, list[int]] = {}
    for d, column in enumerate(seconds.T):
        first.setdefault(column.tobytes(), []).append(d)
    columns = seconds[:, [group[0] for group in first.values()]]
    alike = np.array([len(group) for group in first.values()])
    possible = np.isfinite(columns)
    finite = np.where(possible, columns, 0.0)
    longest = float(seconds.min(axis=1).max())
    weights = np.full(len(alike), 1 / seconds.shape[1])
    best, cuts = 0.0, list[np.ndarray]()
    for _ in range(MOST_CUTS):
        cheapest = np.where(possible, finite * weights, np.inf).argmin(axis=1)
        chosen = finite[np.arange(len(columns)), cheapest]
        loads = np.bincount(cheapest, chosen, len(alike))
        best = max(best, float(loads @ weights))
        cuts.append(loads)
        weights, ceiling = _highest(np.array(cuts), alike)
        if ceiling <= best * (1 + CUT_TOLERANCE):
            break
    return max(0.0 if replicas else longest, best * (1 - 1e-12))


def _highest(cuts: np.ndarray, alike: np.ndarray) -> tuple[np.ndarray, float]:
    """The y under which the lowest of the cuts is highest, and that height."""
    from scipy.optimize import linprog

    scale = cuts.max() or 1.0
    k = len(alike)
    solved = linprog(
        np.append(np.zeros(k), -1.0),
        A_ub=np.column_stack([-cuts / scale, np.ones(len(cuts))]),
        b_ub=np.zeros(len(cuts)),
        A_eq=np.append(alike, 0.0)[None, :],
        b_eq=[1.0],
        bounds=[(0, None)] * k + [(None, None)],
        method="highs",
    )
    if not solved.success:
        return 1 / (k * alike), 0.0
    y = np.maximum(solved.x[:k], 0.0)
    return y / (alike @ y), float(solved.x[k]) * scale
