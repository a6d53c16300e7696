"""Round robin: operators go to the devices in turn, whatever that costs; a base line."""

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.baselines.single_device import unit_weights
from scheduler.problem import Placement, Problem


def round_robin(problem: Problem) -> Placement:
    """Deal colocation classes, in order, to the devices in turn that may hold and run them.

    Raises:
        InfeasibleError: one fits no device.
    """
    arrays, devices = problem.arrays, problem.costs.devices
    free_bytes = arrays.limit_bytes.copy()
    held: list[set[str]] = [set() for _ in devices]
    weights = unit_weights(problem)
    home: dict[int, int] = {}
    turn = 0
    for op, u, able in zip(
        problem.graph.ops, arrays.unit.tolist(), np.isfinite(arrays.seconds), strict=True
    ):
        if u in home:
            continue
        for step in range(len(devices)):
            j = (turn + step) % len(devices)
            num_bytes = sum(size for name, size in weights[u].items() if name not in held[j])
            if able[j] and num_bytes <= free_bytes[j]:
                break
        else:
            raise InfeasibleError(f"operator '{op.name}' fits no device when its turn comes")
        home[u], turn = j, j + 1
        free_bytes[j] -= num_bytes
        held[j] |= set(weights[u])
    return {
        op.name: devices[home[u]]
        for op, u in zip(problem.graph.ops, arrays.unit.tolist(), strict=True)
    }
