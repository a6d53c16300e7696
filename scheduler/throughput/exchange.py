"""The best split of two devices' operators between the two, all others staying where they are.

The dynamic programme of `device_sets` runs over these operators with the load of the first device,
cut in levels, in place of the weight: its values are then the least loads of the second. Serialised
transfers only.

Source: very large neighbourhoods searched by dynamic programming: Ahuja, Ergun, Orlin, Punnen, "A
survey of very large-scale neighborhood search techniques", Discrete Applied Mathematics 123, 2002,
doi:10.1016/S0166-218X(01)00338-9.
"""

import time

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.throughput.device_sets import (
    Costs,
    Toll,
    layers_of,
    least_loads,
    members,
    transitions,
)
from scheduler.throughput.orders import hyperedges, narrow

LEVELS, MOST_ENTRIES = 8000, 4_000_000
WANDER = 3
"""Random splits within the present load before the fullest device is tried again."""


def exchange(
    arrays: Arrays,
    device: Ints,
    pair: tuple[int, int],
    order: Ints,
    rng: np.random.Generator | None = None,
) -> Ints:
    """Devices after the split of a pair's operators with the least larger load.

    `order` (num_ops,): in which few tensors are open. With `rng` any split within the present
    largest load of all devices is taken, at random. Rounding the first load to levels may miss
    the best split narrowly; loads that the caller computes are exact.
    """
    a, b = pair
    mine = np.isin(device, pair)
    loads = arrays.loads(device)[: arrays.num_devices]
    value = float(loads.max() if rng else loads[list(pair)].max())
    if not mine.any() or not 0 < value < np.inf:
        return device
    pins, tolls = [], []
    for t, ends in enumerate(hyperedges(arrays)[0]):
        here = [u for u in ends if mine[u]]
        if here:
            pins.append(here)
            paid = float(arrays.ends_s[t, b]), float(arrays.ends_s[t, a])
            tolls.append(Toll(*paid, abroad=len(here) < len(ends)))
    steps = transitions(pins, tolls, order[mine[order]])
    levels = max(min(LEVELS, MOST_ENTRIES // steps.num_states), 100)
    level_s = value / (levels - 2)
    first = steps.pays + np.where(steps.takes == 1, arrays.seconds[steps.op, a], 0.0)
    second = steps.others_pay + np.where(steps.takes == 1, 0.0, arrays.seconds[steps.op, b])
    second[~np.isfinite(first)] = np.inf
    gain = np.rint(np.minimum(first / level_s, levels)).astype(np.int64)
    costs, layers = Costs.of(second, gain, value), layers_of(steps.num_states, levels)
    least = least_loads(steps, costs, layers, 0)
    larger = np.maximum(least[:-1], np.arange(levels - 1) * level_s)
    level = _chosen(larger, value, rng)
    if level is None:
        return device
    inside = members(steps, costs, level, layers)
    new = device.copy()
    new[steps.order] = np.where(inside[steps.order], a, b)
    return new


def _chosen(larger: Floats, value: float, rng: np.random.Generator | None) -> int | None:
    within = np.flatnonzero(larger < value)
    if not len(within):
        return None
    return int(rng.choice(within)) if rng else int(larger.argmin())


def exchanges(arrays: Arrays, device: Ints, deadline_s: float, rng: np.random.Generator) -> Ints:
    """Lower the largest load by exchanges until `time.perf_counter()` passes the deadline.

    The fullest device is paired with every other; where none helps, random pairs are split
    anew within the present load first.
    """
    order, best = narrow(arrays), device
    now = device
    while time.perf_counter() < deadline_s and arrays.num_devices > 1:
        loads = arrays.loads(now)[: arrays.num_devices]
        fullest = int(loads.argmax())
        for other in rng.permutation(arrays.num_devices).tolist():
            if other == fullest or time.perf_counter() >= deadline_s:
                continue
            new = exchange(arrays, now, (fullest, other), order)
            if _fits(arrays, new) and arrays.loads(new).max() < loads.max() * (1 - 1e-9):
                best = now = new
                break
        else:
            now = _wander(arrays, best, order, rng)
    return best


def _wander(arrays: Arrays, device: Ints, order: Ints, rng: np.random.Generator) -> Ints:
    largest = arrays.loads(device).max()
    for _ in range(WANDER):
        a, b = rng.choice(arrays.num_devices, size=2, replace=False).tolist()
        new = exchange(arrays, device, (a, b), order, rng)
        if _fits(arrays, new) and arrays.loads(new).max() <= largest * (1 + 1e-9):
            device = new
    return device


def _fits(arrays: Arrays, device: Ints) -> bool:
    return bool((arrays.held_bytes(device) <= arrays.limit_bytes).all())
