"""Changes of a schedule that the search for latency tries, compiled.

A unit, or the units along a path, go to another device; two units exchange devices; a task goes
to another place in the order. Six moves in ten start at a task of the critical path.
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.compiled import lean
from scheduler.latency.in_order import Room, room_for
from scheduler.latency.placed import Order, Times, no_times, ordered
from scheduler.list_scheduling.tasks import Tasks, hold

LONGEST_CHAIN = 12
"""Tasks along a path that one move takes to another device."""
FARTHEST = 200
"""Places in the order that one move takes a task."""


class State(NamedTuple):
    """Where the search stands.

    Attributes:
        at: devices and order of the tasks.
        used, held: memory as in `tasks.hold`.
        now, trial: times of the tasks, and those of a changed order.
        room: what a run needs.
        units, targets, sources: what a move takes from where to where.
        path: tasks on the critical path.
    """

    at: Order
    used: Floats
    held: np.ndarray
    now: Times
    trial: Times
    room: Room
    units: Ints
    targets: Ints
    sources: Ints
    path: Ints


@numba.njit(cache=True)
def state_of(tasks: Tasks, device: Ints, order: Ints) -> State:
    """Where a search starts; `now`, `trial` and `path` are not yet written."""
    n, d = tasks.w.shape
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    for u in range(len(tasks.own_bytes)):
        hold(tasks, held, used, u, device[tasks.member[tasks.member_start[u]]], 1)
    move = np.empty((3, LONGEST_CHAIN + 1), dtype=np.int64)
    return State(
        ordered(device, order), used, held, no_times(tasks), no_times(tasks), room_for(tasks),
        move[0], move[1], move[2], np.empty(n, dtype=np.int64),
    )  # fmt: skip


@lean
def critical(w: Floats, device: Ints, start: Floats, cause: Ints, path: Ints) -> int:
    """Write the tasks that each waited for the next, from the one that ends last; their number."""
    length, last, ends = 0, 0, -1.0
    for i in range(len(start)):
        if start[i] + w[i, device[i]] > ends:
            ends, last = start[i] + w[i, device[i]], i
    while last >= 0 and length < len(path):
        path[length] = last
        length += 1
        last = cause[last]
    return length


@lean
def _choose_device(tasks: Tasks, device: Ints, i: int) -> int:
    """Another device for task i: as often as not a neighbour's, unless that is its own."""
    d, p = tasks.w.shape[1], device[i]
    first, past = tasks.ins_start[i], tasks.ins_start[i + 1]
    sent, end = tasks.outs_start[i], tasks.outs_start[i + 1]
    if past - first + end - sent > 0 and np.random.random() < 0.5:
        k = np.random.randint(past - first + end - sent)
        if k < past - first:
            p = device[tasks.producer[tasks.ins[first + k]]]
        else:
            t = tasks.outs[sent + k - past + first]
            p = device[tasks.reader[np.random.randint(tasks.start[t], tasks.start[t + 1])]]
    if p == device[i]:
        p = (p + 1 + np.random.randint(d - 1)) % d
    return p  # type: ignore[no-any-return]


@lean
def _choose_units(tasks: Tasks, device: Ints, i: int, units: Ints, targets: Ints) -> int:
    """Write units and the devices that a move takes them to, task i's first; their number.

    One unit, or those along a path from i, to a device; or an exchange of two units' devices.
    """
    kind, num = np.random.random(), 1
    units[0], targets[0] = tasks.unit[i], _choose_device(tasks, device, i)
    if kind > 0.86:
        j = np.random.randint(len(device))
        if tasks.unit[j] != tasks.unit[i]:
            units[1], targets[0], targets[1] = tasks.unit[j], device[j], device[i]
            num = 2
    elif kind > 0.36:
        j = i
        for _ in range(np.random.randint(LONGEST_CHAIN)):
            if tasks.outs_start[j] == tasks.outs_start[j + 1]:
                break
            t = tasks.outs[np.random.randint(tasks.outs_start[j], tasks.outs_start[j + 1])]
            j = tasks.reader[np.random.randint(tasks.start[t], tasks.start[t + 1])]
            known = False
            for k in range(num):
                known = known or units[k] == tasks.unit[j]
            if not known:
                units[num], targets[num] = tasks.unit[j], targets[0]
                num += 1
    return num


@lean
def _choose_place(tasks: Tasks, place: Ints, i: int) -> int:
    """Another place for task i after all that it reads and before all that reads it."""
    a = place[i]
    low, high = max(0, a - FARTHEST), min(len(place) - 1, a + FARTHEST)
    for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
        low = max(low, place[tasks.producer[tasks.ins[k]]] + 1)
    for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
        t = tasks.outs[k]
        for r in range(tasks.start[t], tasks.start[t + 1]):
            high = min(high, place[tasks.reader[r]] - 1)
    return np.random.randint(low, high + 1)  # type: ignore[no-any-return]


@lean
def bring(order: Ints, place: Ints, a: int, b: int) -> None:
    """Take the task at place a of the order to place b."""
    i = order[a]
    step = 1 if b > a else -1
    for k in range(a, b, step):
        order[k] = order[k + step]
        place[order[k]] = k
    order[b] = i
    place[i] = b


@lean
def changes(tasks: Tasks, state: State, num: int) -> bool:
    """Write the devices of the units of a move; whether it changes any, and all may run."""
    changed = False
    for k in range(num):
        first, past = tasks.member_start[state.units[k]], tasks.member_start[state.units[k] + 1]
        state.sources[k] = state.at.device[tasks.member[first]]
        changed = changed or state.sources[k] != state.targets[k]
        for m in range(first, past):
            if not np.isfinite(tasks.w[tasks.member[m], state.targets[k]]):
                return False
    return changed


@lean
def put(tasks: Tasks, state: State, num: int, targets: Ints) -> bool:
    """Take units to devices, the last one first; whether their memory suffices."""
    device, units = state.at.device, state.units
    for k in range(num - 1, -1, -1):
        first, past = tasks.member_start[units[k]], tasks.member_start[units[k] + 1]
        hold(tasks, state.held, state.used, units[k], device[tasks.member[first]], -1)
        hold(tasks, state.held, state.used, units[k], targets[k], 1)
        for m in range(first, past):
            device[tasks.member[m]] = targets[k]
    fits = True
    for k in range(num):
        fits = fits and state.used[targets[k]] <= tasks.limit_bytes[targets[k]]
    return fits


@lean
def first_change(tasks: Tasks, state: State, num: int, i: int, a: int, b: int) -> int:
    """The place in the order before which all run as they did, after task i went from a to b."""
    first, place = len(state.at.order), state.at.place
    if a != b:
        first = min(a, b)
        for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
            first = min(first, place[tasks.producer[tasks.ins[k]]])
    for c in range(num):
        u = state.units[c]
        for m in range(tasks.member_start[u], tasks.member_start[u + 1]):
            j = tasks.member[m]
            first = min(first, place[j])
            for k in range(tasks.ins_start[j], tasks.ins_start[j + 1]):
                first = min(first, place[tasks.producer[tasks.ins[k]]])
    return first


@lean
def choose(tasks: Tasks, state: State, length: int) -> tuple[int, int, int]:
    """A task of those on the critical path or of all, units to move with it, and its new place."""
    n, d = tasks.w.shape
    i, num = np.random.randint(n), 0
    if np.random.random() < 0.6:
        i = state.path[np.random.randint(length)]
    if d > 1 and np.random.random() < 0.7:
        num = _choose_units(tasks, state.at.device, i, state.units, state.targets)
    b = state.at.place[i]
    if num == 0 or np.random.random() < 0.3:
        b = _choose_place(tasks, state.at.place, i)
    return i, num, b
