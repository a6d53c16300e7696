"""Everything on one device, and the greedy in-order fill of several."""

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
    that it keeps on the first device for offloaded layers: a shared parameter stays with its first
    user. A colocation group goes where its first operator
    does; a device that may not run it is passed over.

    Raises:
        InfeasibleError: the parameters do not fit all devices together.
    """
    arrays, devices = problem.arrays, problem.costs.devices
    fastest = np.argsort(arrays.seconds.sum(axis=0), kind="stable").tolist()
    free_bytes = arrays.limit_bytes.copy()
    weights = unit_weights(problem)
    held: dict[str, int] = {}
    home: dict[int, int] = {}
    for op, u, able in zip(
        problem.graph.ops, arrays.unit.tolist(), np.isfinite(arrays.seconds), strict=True
    ):
        if u in home:
            continue
        new = {name: size for name, size in weights[u].items() if name not in held}
        with_weight = [held[name] for name in weights[u] if name in held and able[held[name]]]
        num_bytes = sum(new.values())
        while len(fastest) > 1 and able[fastest[0]] and free_bytes[fastest[0]] < num_bytes:
            del fastest[0]
        room = [j for j in fastest if able[j] and free_bytes[j] >= num_bytes]
        if not with_weight and not room:
            need, limit = sum(problem.graph.weights().values()), arrays.limit_bytes.sum()
            raise InfeasibleError(
                f"parameters need {format_bytes(need)}, all devices together take "
                f"{format_bytes(limit)}; operator '{op.name}' is the first that fits nowhere"
            )
        home[u] = (with_weight or room)[0]
        free_bytes[home[u]] -= num_bytes
        held |= dict.fromkeys(new, home[u])
    return {
        op.name: devices[home[u]]
        for op, u in zip(problem.graph.ops, arrays.unit.tolist(), strict=True)
    }


def unit_weights(problem: Problem) -> list[dict[str, int]]:
    """Bytes by name of the weights that each colocation class reads."""
    weights: list[dict[str, int]] = [{} for _ in range(problem.arrays.num_units)]
    for op, u in zip(problem.graph.ops, problem.arrays.unit.tolist(), strict=True):
        weights[u].update(op.weights)
    return weights
