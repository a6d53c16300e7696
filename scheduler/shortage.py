"""What would have to change for a problem to have a plan."""

import numpy as np

from hardware.units import format_bytes
from scheduler.problem import Problem


def shortage(problem: Problem) -> str:
    """The binding constraint and the smallest change that lifts it; empty if none is found.

    Looks at each colocation group by itself, then at all parameters together.
    """
    arrays, ops = problem.arrays, problem.graph.ops
    members: dict[int, list[int]] = {}
    for i, u in enumerate(arrays.unit.tolist()):
        members.setdefault(u, []).append(i)
    worst, text = 0.0, ""
    for rows in members.values():
        name = ops[rows[0]].name
        who = f"operator '{name}'" + (f" and {len(rows) - 1} colocated" if len(rows) > 1 else "")
        able = np.isfinite(arrays.seconds[rows]).all(axis=0)
        if not able.any():
            return f"{who}: no device may run it; allow one (pins, forbidden, supported dtypes)"
        need = sum(problem.graph.weights(ops[i].name for i in rows).values())
        j = int(np.where(able, arrays.limit_bytes, -1.0).argmax())
        missing = need - float(arrays.limit_bytes[j])
        if missing > worst:
            worst = missing
            text = (
                f"{who} needs {format_bytes(need)}, and '{problem.costs.devices[j]}', the largest "
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
