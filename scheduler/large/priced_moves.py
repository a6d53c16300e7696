"""Moves of clusters on large graphs, valued by what a second of each device and medium is worth.

The energy is sum_r price[r] (load[r] / scale)^power. Where all loads are even its gradient is the
price: an operator goes from a device whose second is dear to one whose second is cheap, though it
takes longer there. The largest load alone does not show that, since both are full. Prices are the
weights that gave the bound of `bounds/parting.py`. A move costs what it touches, not the graph.

Source: Fiduccia, Mattheyses, "A linear-time heuristic for improving network partitions", DAC 1982,
doi:10.1145/800263.809204, with the clusters and the temperature of `throughput/local_search.py`.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numba
import numpy as np

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.bounds.parting import Parting
from scheduler.problem import Problem
from scheduler.throughput.contract import contract
from scheduler.throughput.local_search import (
    LARGEST_CLUSTER,
    Net,
    State,
    _cluster,
    _move,
    _neighbour,
    fits_on,
)
from scheduler.throughput.local_search import net as net_of
from scheduler.throughput.local_search import state as state_of
from scheduler.throughput.set_bound import CLOSE

MOVES = 20_000
"""Moves between two looks at the clock."""
POWER, CLUSTER = 64.0, 1.7
"""Of the energy; mean operators of a cluster."""
HOT, COLD, COOLING = 3e-7, 1e-8, 0.8
"""Relative increases of the largest load that pass with probability 1/e: first, last, and ratio."""
CHEAP = 1e-4
"""Price of a medium within a side, as a share of the dearest resource's."""


def priced_moves(
    problem: Problem, device: Ints, bound_s: float, until_s: float, tell: Callable[[float], None]
) -> tuple[Ints, bool]:
    """(num_ops,) devices after moves that lower the largest load, and whether Ctrl-C ended it.

    Until `time.perf_counter()` is `until_s`, or no load is lower than `bound_s`. `tell` gets each
    better load (s).
    """
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)
    small = contract(arrays, arrays.unit)
    first = np.unique(arrays.unit, return_index=True)[1]
    best = device[first]
    least_s, round_, heat, stopped = float(small.loads(best).max()), 0, HOT, False
    net, at, price = net_of(small), state_of(small, best), _prices(small, problem.parting)
    try:
        while time.perf_counter() < until_s and least_s > bound_s * (1 + CLOSE):
            _improve(net, at, price, (POWER, heat, CLUSTER), (round_, MOVES))
            round_, heat = round_ + 1, heat * COOLING if heat > COLD else HOT
            load_s = float(small.loads(at.device).max())
            if load_s < least_s * (1 - 1e-9):
                best, least_s = at.device.copy(), load_s
                tell(least_s)
    except KeyboardInterrupt:
        stopped = True
    return best[arrays.unit], stopped


def compile_moves(problem: Problem) -> None:
    """Compile the loop, or load it from the cache."""
    arrays = contract(problem.arrays, np.zeros(problem.arrays.num_ops, dtype=np.int64))
    at = state_of(arrays, np.zeros(1, dtype=np.int64))
    _improve(net_of(arrays), at, np.ones(len(at.load)), (POWER, HOT, CLUSTER), (0, 1))


def _prices(arrays: Arrays, parting: Parting | None) -> Floats:
    """(num_resources,) of a second of each device and medium; 1 where there are no two sides."""
    price = np.ones(arrays.num_resources)
    if parting is None:
        return price
    first, second = parting.sides.devices
    price[: arrays.num_devices] = 0.0
    price[first + second] = np.repeat(parting.prices[:-2], parting.sides.alike[:-2])
    price[arrays.num_devices :] = 0.0
    for src, dst, paid in ((first, second, -2), (second, first, -1)):
        media = arrays.medium[np.ix_(src, dst)]
        price[media[media >= 0]] = parting.prices[paid]
    return np.asarray(np.maximum(price, CHEAP * price.max()))


@numba.njit(cache=True)
def _improve(
    net: Net,
    at: State,
    price: Floats,
    rules: tuple[float, float, float],
    batch: tuple[int, int],
) -> None:
    """Try moves; `rules`: power, temperature, mean cluster; `batch`: seed, and how many."""
    np.random.seed(batch[0])
    power, temperature, size = rules
    num_ops, num_devices = net.seconds.shape
    scale = at.load.max()
    before, members = at.load.copy(), np.zeros(LARGEST_CLUSTER, dtype=np.int64)
    energy = (price * (np.maximum(before, 0.0) / scale) ** power).sum()
    for _ in range(batch[1]):
        u = np.random.randint(num_ops)
        a, b = at.device[u], at.device[_neighbour(net, u)]
        if b == a or np.random.random() < 0.05:
            b = np.random.randint(num_devices)
        if b == a:
            continue
        wanted = 1
        while wanted < LARGEST_CLUSTER and np.random.random() > 1 / size:
            wanted += 1
        found = _cluster(net, at, u, wanted, members)
        if not fits_on(net, at, members[:found], b):
            continue
        for i in range(found):
            _move(net, at, members[i], b)
        change = 0.0
        for r in range(len(before)):
            if at.load[r] != before[r]:
                new, old = max(at.load[r], 0.0) / scale, max(before[r], 0.0) / scale
                change += price[r] * (new**power - old**power)
        if change <= -np.log(1 - np.random.random()) * temperature * power * energy:
            energy += change
            before[:] = at.load
        else:
            for i in range(found):
                _move(net, at, members[i], a)
            at.load[:] = before
