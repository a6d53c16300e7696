"""Refinement of a placement: operators at boundaries move to the device beside them.

Operators of the fullest device may also move to the emptiest.
A move is taken when it lowers the 16-norm of the loads, does not raise the largest, and turns no
tensor against the order of the devices, so that a pipeline stays one: few stages, and no ping-pong
between two devices.

Source: Fiduccia, Mattheyses, "A linear-time heuristic for improving network partitions", DAC 1982,
doi:10.1145/800263.809204, without its hill climbing.
"""

import numba
import numpy as np

from scheduler.arrays import Arrays, Ints
from scheduler.throughput.local_search import Net, State, _energy, _move, net, state

PASSES = 8


def refine(arrays: Arrays, device: Ints, sequence: Ints) -> Ints:
    """(num_ops,) the placement after moves that lower its loads; `sequence` orders the devices."""
    rank = np.full(arrays.num_devices, arrays.num_devices, dtype=np.int64)
    rank[sequence] = np.arange(len(sequence))
    at = state(arrays, device)
    _improve(net(arrays), at, rank, PASSES)
    return at.device.copy()


@numba.njit(cache=True)
def _improve(net: Net, at: State, rank: Ints, passes: int) -> None:
    """Visit all operators, forward and backward in turn, until a pass moves none."""
    num_ops = len(at.device)
    targets = np.empty(len(rank), dtype=np.int64)
    energy, largest = _energy(at.load), at.load.max()
    num_devices = len(rank)
    fullest, emptiest = at.load[:num_devices].argmax(), at.load[:num_devices].argmin()
    for step in range(passes):
        moved = 0
        for k in range(num_ops):
            u = k if step % 2 == 0 else num_ops - 1 - k
            a = at.device[u]
            found = _beside(net, at, u, targets)
            if a == fullest and found < num_devices:
                targets[found] = emptiest
                found += 1
            for c in range(found):
                b = targets[c]
                if b == a or not np.isfinite(net.seconds[u, b]):
                    continue
                if net.op_bytes[u] > 0 and at.held[b] + net.op_bytes[u] > net.limit_bytes[b]:
                    continue
                if _against(net, at, u, b, rank) > _against(net, at, u, a, rank):
                    continue
                _move(net, at, u, b)
                new = _energy(at.load)
                if new < energy * (1 - 1e-12) and at.load.max() <= largest:
                    energy, largest = new, at.load.max()
                    fullest = at.load[:num_devices].argmax()
                    emptiest = at.load[:num_devices].argmin()
                    moved += 1
                    break
                _move(net, at, u, a)
        if not moved:
            break


@numba.njit(cache=True)
def _beside(net: Net, at: State, u: int, targets: Ints) -> int:
    """Other devices that hold a member of a tensor of u, into `targets`; returns how many."""
    found = 0
    for k in range(net.uses_start[u], net.uses_start[u + 1]):
        t = net.uses[k]
        for d in range(len(at.held)):
            if at.members[t, d] > 0 and d != at.device[u]:
                known = False
                for c in range(found):
                    known = known or targets[c] == d
                if not known:
                    targets[found] = d
                    found += 1
    return found


@numba.njit(cache=True)
def _against(net: Net, at: State, u: int, d: int, rank: Ints) -> int:
    """Uses of tensors of u, were it on device d, that go to a device of lower rank."""
    count = 0
    for k in range(net.uses_start[u], net.uses_start[u + 1]):
        t = net.uses[k]
        p = net.producer[t]
        if p != u:
            count += rank[at.device[p]] > rank[d]
            continue
        for r in range(net.start[t], net.start[t + 1]):
            count += rank[at.device[net.reader[r]]] < rank[d]
    return count
