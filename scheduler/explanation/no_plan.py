"""The message where no algorithm finds a plan: what binds, and what would mend it."""

from hardware.errors import InfeasibleError
from scheduler.baselines.single_device import memory_fill
from scheduler.evaluation.evaluate import finish_plan
from scheduler.explanation.shortage import least_memory, shortage
from scheduler.large.portfolio import is_large
from scheduler.problem import Problem
from scheduler.throughput.contiguous import contiguous


def why_none(problem: Problem, refusals: dict[str, str], is_auto: bool) -> str:
    """What binds and what would mend it; refusals of one algorithm, or where that is not known."""
    subject = f"no plan for '{problem.graph.name}'"
    if problem.latency_bound_s is not None and "latency" in refusals:
        return f"{subject}: {refusals['latency'].removeprefix(f'{subject}: ')}"
    binding = shortage(problem)
    if not binding and is_auto and not is_large(problem):
        apart = sorted({why for why in refusals.values() if why.startswith("no link")})
        binding = "; or ".join(filter(None, [least_memory(problem, _has_plan), *apart[:1]]))
    alike: dict[str, list[str]] = {}
    for name, reason in refusals.items():
        alike.setdefault(reason, []).append(name)
    said = [binding] if binding else []
    if not (binding and is_auto):
        said += [f"{', '.join(names)}: {why}" for why, names in alike.items()]
    return f"{subject}: {'; '.join(said)}"


def _has_plan(problem: Problem) -> bool:
    """Whether a quick heuristic finds one."""
    for place in (memory_fill, contiguous):
        try:
            finish_plan(problem, place.__name__, place(problem), 0.0, 0.0)
        except InfeasibleError:
            continue
        return True
    return False
