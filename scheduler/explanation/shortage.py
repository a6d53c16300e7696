"""What would have to change for a problem to have a plan."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import ceil

import numpy as np

from hardware.units import format_bytes
from scheduler.arrays import Ints
from scheduler.list_scheduling.linked import stranded
from scheduler.list_scheduling.tasks import tasks_of
from scheduler.problem import Problem, matches

CLOSE = 0.01
"""Share of the memory that is missing up to which the least of it is found."""
MOST_KINDS = 3
"""Kinds of devices whose memory is varied, the largest first."""


def nowhere(problem: Problem) -> str:
    """The first operator that no device may run, what forbids it, and the way out; else empty."""
    rows = np.flatnonzero(~np.isfinite(problem.seconds).any(axis=1))
    if not len(rows):
        return _unlinked(problem)
    rows = np.flatnonzero(problem.unit == problem.unit[rows[0]])
    devices, names = problem.costs.devices, [problem.graph.ops[i].name for i in rows]
    subject = f"{_who(problem, rows)}: no device may run it"
    able = np.isfinite(problem.costs.seconds[rows])
    if not able.all(axis=0).any():
        if len(rows) > 1 and able.any(axis=1).all():
            return f"{subject}: none can run all of them; do not colocate them, or add one that can"
        alone = names[int(np.argmin(able.any(axis=1)))]
        return f"{subject}: none can run '{alone}'; add one that can, with a time for it"
    can = _quoted(devices[j] for j in np.flatnonzero(able.all(axis=0)))
    rules = [f"pin '{n}' to '{problem.pinned[n]}'" for n in names if n in problem.pinned]
    ops = [problem.graph.ops[i] for i in rows]
    rules += [
        f"forbid '{target}' on {_quoted(forbidden)}"
        for target, forbidden in problem.forbidden.items()
        if any(matches(target, op.name, op.module) for op in ops)
    ]
    return f"{subject}: {can} could, but for the rules {'; '.join(rules)}; lift one of them"


def _unlinked(problem: Problem) -> str:
    """The first operator that links leave no device, and the way out; else empty."""
    d, devices = len(problem.costs.devices), problem.costs.devices
    missing = (problem.arrays.medium < 0) & ~np.eye(d, dtype=bool)
    i = stranded(tasks_of(problem)) if missing.any() else -1
    if i < 0:
        return ""
    able = _quoted(devices[j] for j in np.flatnonzero(np.isfinite(problem.seconds[i])))
    src, dst = np.argwhere(missing)[0].tolist()
    return (
        f"no link leads from or to operator '{problem.graph.ops[i].name}' on {able}, where it may "
        f"run, as rules keep others elsewhere; lift one, or add the links that are missing, as "
        f"between '{devices[src]}' and '{devices[dst]}'"
    )


def shortage(problem: Problem) -> str:
    """The binding constraint and the smallest change that lifts it; empty if none is found.

    Looks at each colocation group by itself, then at all parameters together.
    """
    if reason := nowhere(problem):
        return reason
    arrays, ops = problem.arrays, problem.graph.ops
    worst, text = 0.0, ""
    order = np.argsort(arrays.unit, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(arrays.unit[order])) + 1):
        able = np.isfinite(arrays.seconds[rows[0]])
        need = sum(problem.graph.weights(ops[i].name for i in rows).values())
        j = int(np.where(able, arrays.limit_bytes, -1.0).argmax())
        missing = need - float(arrays.limit_bytes[j])
        if missing > worst:
            worst = missing
            text = (
                f"{_who(problem, rows)} needs {format_bytes(need)}, and "
                f"'{problem.costs.devices[j]}', the largest "
                f"device that may run it, takes {format_bytes(arrays.limit_bytes[j])}: "
                f"{format_bytes(missing)} more there would do"
            )
    need = sum(problem.graph.weights().values())
    missing = need - float(arrays.limit_bytes.sum())
    if not text and missing > 0:
        text = (
            f"parameters need {format_bytes(need)}, all devices together take "
            f"{format_bytes(need - missing)}: at least {format_bytes(missing)} more are needed"
        )
    return text


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _who(problem: Problem, rows: Ints) -> str:
    name = problem.graph.ops[rows[0]].name
    return f"operator '{name}'" + (f" and {len(rows) - 1} colocated" if len(rows) > 1 else "")


def least_memory(problem: Problem, has_plan: Callable[[Problem], bool]) -> str:
    """The least more memory on one device with which there is a plan; empty where none is enough.

    By bisection, as far as `has_plan` finds plans.
    """
    limit_bytes = problem.arrays.limit_bytes.tolist()
    alike = {
        (column.tobytes(), limit_bytes[j]): j
        for j, column in reversed(list(enumerate(problem.seconds.T)))
    }
    kinds = sorted(alike.values(), key=lambda j: (-limit_bytes[j], j))[:MOST_KINDS]
    graph, m = problem.graph, problem.num_micro_batches + len(problem.costs.devices) + 3
    most = sum(graph.weights().values()) + sum(op.state_bytes for op in graph.ops)
    most += m * sum(tensor.num_bytes for tensor in graph.tensors.values())
    found: list[tuple[int, str]] = []
    for device in (problem.costs.devices[j] for j in kinds):
        low, high = 0, min([ceil(most / (1 - problem.memory_headroom)), *(n for n, _ in found)])
        if not has_plan(_roomier(problem, device, high)):
            continue
        while high - low > max(1, CLOSE * high):
            middle = (low + high) // 2
            if has_plan(_roomier(problem, device, middle)):
                high = middle
            else:
                low = middle
        found.append((high, device))
    if not found:
        return ""
    more, device = min(found)
    return f"memory binds: with {format_bytes(more)} more on '{device}' heuristics find a plan"


def _roomier(problem: Problem, device: str, num_bytes: int) -> Problem:
    devices = dict(problem.cluster.devices)
    known = devices[device]
    devices[device] = replace(known, memory_bytes=known.memory_bytes + num_bytes)
    return replace(problem, cluster=replace(problem.cluster, devices=devices))
