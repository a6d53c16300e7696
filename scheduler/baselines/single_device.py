"""Everything on one device, and the greedy in-order fill of several.

Source: Hugging Face Accelerate, `infer_auto_device_map`,
https://huggingface.co/docs/accelerate/concept_guides/big_model_inference.
"""

import numpy as np

from hardware.errors import InfeasibleError
from hardware.units import format_bytes
from scheduler.problem import Placement, Problem


def single_device(problem: Problem, device: str) -> Placement:
    """Place every operator on one device."""
    return {op.name: device for op in problem.graph.ops}


def memory_fill(problem: Problem) -> Placement:
    """Fill devices with parameters in order, the fastest first; go on when one is full.

    What `infer_auto_device_map` of Hugging Face Accelerate does for `device_map`, without the room
    that it keeps on the first device for offloaded layers: what shares a parameter goes where its
    first user does, if all of it fits there. A colocation group goes where its first operator
    does; a device that may not run it is passed over.

    Raises:
        InfeasibleError: the parameters do not fit all devices together.
    """
    arrays, names = problem.arrays, problem.costs.devices
    fastest = np.argsort(arrays.seconds.sum(axis=0), kind="stable").tolist()
    units, first = np.unique(arrays.unit, return_index=True)
    able, weights = np.isfinite(arrays.seconds[first]), unit_weights(problem)
    users: dict[str, list[int]] = {}
    for u in units.tolist():
        for name in weights[u]:
            users.setdefault(name, []).append(u)
    free_bytes = arrays.limit_bytes.copy()
    where: dict[str, list[int]] = {name: [] for name in users}
    home: dict[int, int] = {}

    def new(group: list[int], j: int) -> dict[str, int]:
        return {
            name: weights[u][name] for u in group for name in weights[u] if j not in where[name]
        }

    def takes(group: list[int], j: int) -> bool:
        return bool(able[group, j].all()) and sum(new(group, j).values()) <= free_bytes[j]

    for u in units.tolist():
        if u in home:
            continue
        tied = dict.fromkeys(v for name in weights[u] for v in users[name] if v not in home)
        for group in ([u, *(v for v in tied if v != u)], [u]):
            holders = (j for name in weights[u] for j in where[name])
            at = next((j for j in [*holders, *fastest] if takes(group, j)), None)
            if at is not None:
                break
        else:
            raise InfeasibleError(_too_large(problem, problem.graph.ops[first[u]].name))
        while at in fastest[1:] and able[u, fastest[0]] and not takes(group, fastest[0]):
            del fastest[0]
        for name, size in new(group, at).items():
            where[name].append(at)
            free_bytes[at] -= size
        home |= dict.fromkeys(group, at)
    return {
        op.name: names[home[u]]
        for op, u in zip(problem.graph.ops, arrays.unit.tolist(), strict=True)
    }


def _too_large(problem: Problem, name: str) -> str:
    need, limit = sum(problem.graph.weights().values()), problem.arrays.limit_bytes.sum()
    return (
        f"parameters need {format_bytes(need)}, all devices together take {format_bytes(limit)}; "
        f"operator '{name}' is the first that fits nowhere"
    )


def unit_weights(problem: Problem) -> list[dict[str, int]]:
    """Bytes by name of the weights that each colocation class reads."""
    weights: list[dict[str, int]] = [{} for _ in range(problem.arrays.num_units)]
    for op, u in zip(problem.graph.ops, problem.arrays.unit.tolist(), strict=True):
        weights[u].update(op.weights)
    return weights
