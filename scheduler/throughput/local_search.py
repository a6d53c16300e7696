"""Simulated annealing from any plan: clusters of operators move between devices.

The energy is the p-norm of the loads, which is smooth where the largest load alone is flat. A move
takes an operator, with up to a few of its neighbours on the same device, to another device;
loads change incrementally, in O(uses of the moved operators' tensors x devices).

Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220, 1983,
doi:10.1126/science.220.4598.671; moves of clusters as in Kernighan and Lin, "An efficient heuristic
procedure for partitioning graphs", Bell System Technical Journal 49(2), 1970.
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Arrays, Floats, Ints

HOT, COLD = 0.02, 0.0003
"""Temperatures at the start and the end, as shares of the energy."""
LARGEST_CLUSTER = 24


class Net(NamedTuple):
    """`Arrays` as the compiled loop wants them; `uses` are the tensors of each operator."""

    seconds: Floats
    producer: Ints
    start: Ints
    reader: Ints
    num_bytes: Floats
    latency_s: Floats
    s_per_byte: Floats
    table_s: Floats
    ends_s: Floats
    medium: Ints
    uses_start: Ints
    uses: Ints
    op_bytes: Floats
    limit_bytes: Floats


class State(NamedTuple):
    """A placement with what follows from it: members of each tensor, loads and bytes by device."""

    device: Ints
    members: Ints
    load: Floats
    held: Floats


def net(arrays: Arrays) -> Net:
    """Arrange a (contracted) problem for the compiled loop."""
    t = np.arange(arrays.num_tensors)
    op = np.concatenate([arrays.producer, arrays.reader])
    tensor = np.concatenate([t, arrays.edge_tensor])
    order = np.argsort(op, kind="stable")
    uses_start = np.zeros(arrays.num_ops + 1, dtype=np.int64)
    np.cumsum(np.bincount(op, minlength=arrays.num_ops), out=uses_start[1:])
    return Net(
        np.ascontiguousarray(arrays.seconds), arrays.producer, arrays.start, arrays.reader,
        arrays.num_bytes, arrays.latency_s, arrays.s_per_byte, arrays.table_s, arrays.ends_s,
        arrays.medium, uses_start, tensor[order], arrays.op_bytes, arrays.limit_bytes,
    )  # fmt: skip


def state(arrays: Arrays, device: Ints) -> State:
    """Members, loads and bytes of a placement."""
    members = np.zeros((arrays.num_tensors, arrays.num_devices), dtype=np.int64)
    t = np.arange(arrays.num_tensors)
    np.add.at(members, (t, device[arrays.producer]), 1)
    np.add.at(members, (arrays.edge_tensor, device[arrays.reader]), 1)
    load = arrays.loads(device)
    return State(device.astype(np.int64).copy(), members, load, arrays.held_bytes(device))


@numba.njit(cache=True)
def _charge(net: Net, at: State, t: int, src: int, sign: float) -> None:
    """Add (sign 1) or take away (sign -1) what moving tensor t from `src` costs."""
    away = False
    for d in range(len(at.held)):
        if d != src and at.members[t, d] > 0:
            away = True
            if len(net.ends_s):
                at.load[d] += sign * net.ends_s[t, d]
            elif net.medium[src, d] < 0:
                at.load[d] += sign * 1e15
            elif len(net.table_s):
                at.load[net.medium[src, d]] += sign * net.table_s[t, src, d]
            else:
                moved = net.latency_s[src, d] + net.num_bytes[t] * net.s_per_byte[src, d]
                at.load[net.medium[src, d]] += sign * moved
    if away and len(net.ends_s):
        at.load[src] += sign * net.ends_s[t, src]


@numba.njit(cache=True)
def _move(net: Net, at: State, u: int, b: int) -> None:
    """Take operator u to device b."""
    a = at.device[u]
    for k in range(net.uses_start[u], net.uses_start[u + 1]):
        t = net.uses[k]
        _charge(net, at, t, at.device[net.producer[t]], -1.0)
    at.device[u] = b
    at.load[a] -= net.seconds[u, a]
    at.load[b] += net.seconds[u, b]
    at.held[a] -= net.op_bytes[u]
    at.held[b] += net.op_bytes[u]
    for k in range(net.uses_start[u], net.uses_start[u + 1]):
        t = net.uses[k]
        at.members[t, a] -= 1
        at.members[t, b] += 1
        _charge(net, at, t, at.device[net.producer[t]], 1.0)


@numba.njit(cache=True)
def _energy(load: Floats) -> float:
    """The 16-norm of the loads."""
    largest = load.max()
    if largest <= 0:
        return 0.0
    total = 0.0
    for x in load:
        y = x / largest
        y *= y
        y *= y
        y *= y
        total += y * y
    return float(largest * total**0.0625)


@numba.njit(cache=True)
def _neighbour(net: Net, u: int) -> int:
    """A random operator that shares a tensor with u; u if none does."""
    uses = net.uses_start[u + 1] - net.uses_start[u]
    if uses == 0:
        return u
    t = net.uses[net.uses_start[u] + np.random.randint(uses)]
    k = np.random.randint(net.start[t + 1] - net.start[t] + 1)
    return int(net.producer[t] if k == 0 else net.reader[net.start[t] + k - 1])


@numba.njit(cache=True)
def fits_on(net: Net, at: State, members: Ints, device: int) -> bool:
    """Whether operators can run on a device and their weights have room there."""
    need = 0.0
    for op in members:
        if not np.isfinite(net.seconds[op, device]):
            return False
        need += net.op_bytes[op]
    return need == 0 or at.held[device] + need <= net.limit_bytes[device]


@numba.njit(cache=True)
def _cluster(net: Net, at: State, u: int, size: int, members: Ints) -> int:
    """Grow a random connected cluster around u on its device; returns how many it found."""
    members[0] = u
    found = 1
    for _ in range(3 * size):
        if found == size:
            break
        v = _neighbour(net, members[np.random.randint(found)])
        if at.device[v] == at.device[u]:
            known = False
            for i in range(found):
                known = known or members[i] == v
            if not known:
                members[found] = v
                found += 1
    return found


@numba.njit(cache=True)
def anneal(
    net: Net, at: State, best: Ints, temperatures: tuple[float, float, int], seed: int
) -> float:
    """Try `temperatures[2]` moves, cooling from the first temperature to the second.

    `at` is changed; the best placement met goes to `best`. Returns its largest load.
    """
    np.random.seed(seed)
    hot, cold, num_moves = temperatures
    num_ops, num_devices = net.seconds.shape
    energy = _energy(at.load)
    lowest = at.load.max()
    best[:] = at.device
    members = np.zeros(LARGEST_CLUSTER, dtype=np.int64)
    for step in range(num_moves):
        temperature = hot * (cold / hot) ** (step / num_moves)
        u = np.random.randint(num_ops)
        a = at.device[u]
        b = at.device[_neighbour(net, u)]
        if b == a or np.random.random() < 0.1:
            b = np.random.randint(num_devices)
        if b == a:
            continue
        size = 1
        while size < LARGEST_CLUSTER and np.random.random() < 0.6:
            size += 1
        found = _cluster(net, at, u, size, members)
        if not fits_on(net, at, members[:found], b):
            continue
        for i in range(found):
            _move(net, at, members[i], b)
        new = _energy(at.load)
        if new <= energy or np.random.random() < np.exp((energy - new) / (temperature * energy)):
            energy = new
            if at.load.max() < lowest:
                lowest = at.load.max()
                best[:] = at.device
        else:
            for i in range(found):
                _move(net, at, members[i], a)
    return float(lowest)
