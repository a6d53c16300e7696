"""Placement of large graphs over two kinds of devices: each operator where it costs least.

    fast   a a   d d   g g    what suits the fast devices, and what is cheaper kept beside it
    slow     b c   e f   h    what suits the slow ones: both work on all layers

The minimum cuts of `bounds/parting.py` say which side an operator belongs to at some weights of
devices and media. The linear programme over these cuts, whose dual gave the weights, says what part
of the order follows which cut; each side's operators, in order, are then split evenly over its
devices.

Source: recovery of primal solutions from cutting planes: Barahona, Anbil, "The volume algorithm:
producing primal solutions with a subgradient method", Mathematical Programming 87, 2000,
doi:10.1007/s101070050002 (here exact, by the simplex method).
"""

from dataclasses import replace

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints
from scheduler.bounds.parting import Flags, Parting, carried
from scheduler.evaluation.evaluate import excess_bytes
from scheduler.list_scheduling.tasks import MEMORY_ROUNDS
from scheduler.problem import Placement, Problem
from scheduler.throughput.contract import contract
from scheduler.throughput.even_split import split_evenly

MOST_REPEATS = 64
"""Times at most that the mixture of cuts is repeated along the order, to fill all media alike."""
CORRECTIONS = 5
"""Times that the mixture is chosen."""


def two_sides(problem: Problem) -> Placement:
    """Place by the cheapest sides, each split evenly.

    Where activations do not fit, what is missing is taken from the device's limit and all is done
    again. The last placement is returned even so: the plan's own check words the refusal.

    Raises:
        InfeasibleError: devices are alike, media carry nothing, or no split fits the memory.
    """
    parting = problem.parting
    if parting is None or not len(parting.loads):
        raise InfeasibleError("there are no two sides: devices or transfers are alike")
    arrays, names = problem.arrays, problem.costs.devices
    placement: Placement = {}
    for _ in range(MEMORY_ROUNDS):
        device = _best_split(parting, arrays.limit_bytes)
        if device is None:
            break
        placement = {
            op.name: names[d] for op, d in zip(problem.graph.ops, device[arrays.unit], strict=True)
        }
        excess = excess_bytes(problem, placement)
        if not excess.any():
            break
        arrays = replace(arrays, limit_bytes=arrays.limit_bytes - 1.05 * excess)
    if not placement:
        raise InfeasibleError("no split of two sides fits the devices' memory, pins and links")
    return placement


def _best_split(parting: Parting, limit_bytes: Floats) -> Ints | None:
    """(num_ops,) device of each operator of the parted problem; None where a side does not fit.

    What crosses where cuts and devices change, and what media do not share evenly, is not in the
    programme: where media are the fullest, it is told that they take longer, and solved again.
    """
    arrays = replace(parting.sides.arrays, limit_bytes=limit_bytes)
    best, least, longer = None, np.inf, 1.0
    for _ in range(CORRECTIONS):
        device = _split(arrays, parting, _mixed(parting, longer))
        if device is None:
            break
        loads = arrays.loads(device)
        if loads.max() < least:
            best, least = device, float(loads.max())
        over = loads.max() / loads[: arrays.num_devices].max()
        if over <= 1:
            break
        longer *= over
    return best


def _split(arrays: Arrays, parting: Parting, on_second: Flags) -> Ints | None:
    """The operators of either side split evenly over its devices."""
    first, second = parting.sides.devices
    device = np.empty(arrays.num_ops, dtype=np.int64)
    for mine, sequence in (
        (~on_second, np.array(first)),
        (on_second, _in_turn(arrays, second, first)),
    ):
        side = replace(
            arrays,
            seconds=np.where(mine[:, None], arrays.seconds, 0.0),
            op_bytes=np.where(mine, arrays.op_bytes, 0.0),
        )
        split = split_evenly(contract(side, parting.rank), sequence)
        if split is None:
            return None
        device[mine] = split[parting.rank][mine]
    return device


def _mixed(parting: Parting, longer: float) -> Flags:
    """(num_ops,) whether an operator is on the second side, by the best mixture of the cuts.

    `longer`: times that transfers take.
    """
    loads = parting.loads.copy()  # with what crosses between stretches, too
    loads[:, -2:] = [longer * carried(parting.sides, second) for second in parting.second]
    share = _mixture(loads / parting.sides.alike)
    fastest_s = parting.sides.seconds.min(axis=1)
    before = np.empty(len(fastest_s))
    before[parting.rank.argsort()] = fastest_s[parting.rank.argsort()].cumsum()
    repeats = min(int(parting.sides.alike[-2:].max()), MOST_REPEATS)
    phase = before / before.max() * repeats % 1.0
    used = np.flatnonzero(share > 1e-6)
    used = used[np.argsort(parting.second[used].mean(axis=1))]
    which = np.minimum(np.searchsorted(share[used].cumsum(), phase), len(used) - 1)
    return np.asarray(parting.second[used[which], np.arange(len(fastest_s))])


def _mixture(loads: Floats) -> Floats:
    """(j,) shares, together 1, of the rows of (j, r) with which the largest column is least."""
    from scipy.optimize import linprog

    j, r = loads.shape
    solved = linprog(
        np.append(np.zeros(j), 1.0),
        A_ub=np.column_stack([loads.T / loads.max(), -np.ones(r)]),
        b_ub=np.zeros(r),
        A_eq=np.append(np.ones(j), 0.0)[None, :],
        b_eq=[1.0],
        method="highs",
    )
    if not solved.success:
        return np.asarray(np.eye(j)[loads.max(axis=1).argmin()])
    return np.asarray(solved.x[:-1])


def _in_turn(arrays: Arrays, devices: list[int], others: list[int]) -> Ints:
    """Devices in an order in which those behind different media to the others take turns."""
    behind: dict[bytes, list[int]] = {}
    for d in devices:
        behind.setdefault(arrays.medium[d, others].tobytes(), []).append(d)
    groups = list(behind.values())
    longest = max(len(group) for group in groups)
    return np.array([group[k] for k in range(longest) for group in groups if k < len(group)])
