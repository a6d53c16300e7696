"""Lower bounds that need no trust in an algorithm."""

from hardware.errors import InfeasibleError
from scheduler.bounds.load_bound import load_bound
from scheduler.bounds.media_bound import media_bound
from scheduler.bounds.path_bound import path_bound
from scheduler.explanation.shortage import nowhere
from scheduler.problem import Problem


def lower_bound(problem: Problem, replicas: bool = False) -> float:
    """A value of the objective that no plan can be below; `replicas`: not even with replicas.

    Raises:
        InfeasibleError: an operator can run on no device.
    """
    return named_bound(problem, replicas)[0]


def named_bound(problem: Problem, replicas: bool = False) -> tuple[float, str]:
    """The lower bound and what it comes from: `loads` of devices and media, or the longest `path`.

    Raises:
        InfeasibleError: an operator can run on no device.
    """
    if reason := nowhere(problem):
        raise InfeasibleError(reason)
    bounds = [(load_bound(problem, replicas) * problem.num_micro_batches, "loads")]
    if problem.objective == "latency" or problem.graph.is_sequential:
        bounds.append((path_bound(problem), "path"))
    else:
        bounds.append((media_bound(problem) * problem.num_micro_batches, "loads"))
    seconds, by = max(bounds)
    return usd_per_1k(problem, seconds) if problem.objective == "cost" else seconds, by


def usd_per_1k(problem: Problem, period_s: float) -> float:
    """USD per 1,000 inferences when one batch leaves every `period_s` seconds."""
    rate = problem.usd_per_hour or 0.0
    return rate / 3600 * period_s / problem.batch * 1000
