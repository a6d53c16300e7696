"""Plans from the sets of the column generation: devices are filled one after the other."""

import numpy as np

from scheduler.arrays import Ints
from scheduler.throughput.device_sets import least_loads, members
from scheduler.throughput.set_bound import SetBound


def dive(sets: SetBound, value: float, bound: float, rng: np.random.Generator) -> Ints:
    """(num_ops,) devices: each takes the heaviest set, of what is left, below a target load.

    The weights are those of the bound with random noise; the target lies at random between bound
    and value. What is left at the end goes to the last device.
    """
    arrays = sets.arrays
    target = bound + (value - bound) * rng.uniform(0.0, 1.0) * 0.999
    noise = rng.uniform(0.0, 0.3)
    weights = sets.weights * rng.uniform(1 - noise, 1 + noise, arrays.num_ops)
    weights += rng.uniform(0.0, 0.2) * np.abs(sets.weights).mean()
    weight = sets.integer(np.maximum(weights, 0.0))
    device = np.full(arrays.num_ops, -1)
    turns = [(kind, d) for kind, group in enumerate(sets.groups) for d in group]
    for kind, d in turns:
        seconds = np.where(device < 0, sets.seconds[kind], np.inf)
        steps = sets.steps[kind]
        most_s = target + sets.room_s[kind]
        costs = steps.costs(seconds, weight, most_s)
        load = least_loads(steps, costs, sets.layers, sets.zero)
        levels = np.flatnonzero(load <= most_s)
        if len(levels):
            inside = members(steps, costs, int(levels[-1]), sets.layers)
            device[inside] = d
    for u in np.flatnonzero(device < 0):
        able = np.flatnonzero(np.isfinite(arrays.seconds[u]))
        device[u] = able[0] if len(able) else 0
    return device
