"""What a plan's value consists of: seconds of work by device and medium."""

from bisect import bisect_left, bisect_right

from scheduler.evaluation.timeline import Span, loads, stage_timeline
from scheduler.plan import Plan
from scheduler.problem import Problem

SAME_TIME = 1e-9
"""Relative difference up to which one thing starts when another ends."""


def busy(problem: Problem, plan: Plan) -> dict[str, float]:
    """Seconds per micro-batch by device and medium; for latency those on the critical path only."""
    if problem.objective != "latency":
        return loads(problem, plan.stages)
    spans = stage_timeline(problem, plan.stages, plan.in_flight, plan.num_micro_batches)
    busy_s: dict[str, float] = {}
    for span in critical_path(spans):
        is_stage = span.kind == "stage"
        name = span.resource if is_stage else problem.medium(*span.resource.split("->"))
        busy_s[name] = busy_s.get(name, 0.0) + span.duration_s
    return busy_s


def critical_path(spans: list[Span]) -> list[Span]:
    """From the last span back to one for which nothing ends when it starts. O(n log n).

    Of several that end then, one on the same resource comes first.
    """
    by_end = sorted(spans, key=lambda span: span.end_s)
    ends_s = [span.end_s for span in by_end]
    path = by_end[-1:]
    while path and path[-1].start_s > 0:
        at = path[-1]
        slack_s = SAME_TIME * at.end_s
        first = bisect_left(ends_s, at.start_s - slack_s)
        behind = bisect_right(ends_s, at.start_s + slack_s)
        before = [span for span in by_end[first:behind] if span.start_s < at.start_s]
        if not before:
            break
        path.append(next((s for s in before if s.resource == at.resource), before[-1]))
    return path
