"""Simulated annealing of a window of a schedule, compiled.

A move takes the colocation classes of some tasks along a path to another device, or a task to
another place of its segment, or both. It is valued by the segments that it touches
(`scheduler/latency/window.py`).

Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220, 1983,
doi:10.1126/science.220.4598.671.
"""

import numba
import numpy as np

from scheduler.arrays import Ints
from scheduler.latency.moves import bring
from scheduler.latency.window import Line, Room, Window, run, segment_of, settle, window_at
from scheduler.list_scheduling.tasks import Tasks, hold

LONGEST_CHAIN = 8
"""Tasks along a path that one move takes to another device."""
COLDEST = 0.001
"""Last temperature as a share of the first."""


@numba.njit(cache=True)
def _target(tasks: Tasks, line: Line, i: int) -> int:
    """Device of a random neighbour of task i, or of a task beside it in the order, or any."""
    draw = np.random.random()
    ins = tasks.ins_start[i + 1] - tasks.ins_start[i]
    outs = tasks.outs_start[i + 1] - tasks.outs_start[i]
    if draw < 0.4 and ins > 0:
        t = tasks.ins[tasks.ins_start[i] + np.random.randint(ins)]
        return int(line.device[tasks.producer[t]])
    if draw < 0.75 and outs > 0:
        t = tasks.outs[tasks.outs_start[i] + np.random.randint(outs)]
        return int(line.device[tasks.reader[np.random.randint(tasks.start[t], tasks.start[t + 1])]])
    if draw < 0.95:
        k = line.place[i] + np.random.randint(-30, 31)
        return int(line.device[line.order[min(max(k, 0), len(line.order) - 1)]])
    return int(np.random.randint(tasks.w.shape[1]))


@numba.njit(cache=True)
def _chain(tasks: Tasks, line: Line, window: Window, i: int, units: Ints) -> int:
    """Write the units along a random path from task i inside the window; their number."""
    units[0], num = tasks.unit[i], 1
    if np.random.random() < 0.4:
        return num
    for _ in range(np.random.randint(LONGEST_CHAIN)):
        if tasks.outs_start[i] == tasks.outs_start[i + 1]:
            break
        t = tasks.outs[np.random.randint(tasks.outs_start[i], tasks.outs_start[i + 1])]
        i = tasks.reader[np.random.randint(tasks.start[t], tasks.start[t + 1])]
        if segment_of(line, window, i) < 0:
            break
        known = False
        for k in range(num):
            known = known or units[k] == tasks.unit[i]
        if not known:
            units[num] = tasks.unit[i]
            num += 1
    return num


@numba.njit(cache=True)
def _put(tasks: Tasks, line: Line, u: int, p: int) -> bool:
    """Take a unit to a device; whether its tasks may run there and its memory suffices."""
    first, past = tasks.member_start[u], tasks.member_start[u + 1]
    hold(tasks, line.held, line.used, u, line.device[tasks.member[first]], -1)
    hold(tasks, line.held, line.used, u, p, 1)
    fits = line.used[p] <= tasks.limit_bytes[p]
    for k in range(first, past):
        line.device[tasks.member[k]] = p
        fits = fits and np.isfinite(tasks.w[tasks.member[k], p])
    return fits  # type: ignore[no-any-return]


@numba.njit(cache=True)
def _another_place(tasks: Tasks, line: Line, window: Window, i: int) -> int:
    """A place in its segment for task i, after what it reads and before what reads it."""
    s = segment_of(line, window, i)
    low, high = window.first[s], window.past[s] - 1
    for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
        low = max(low, line.place[tasks.producer[tasks.ins[k]]] + 1)
    for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
        t = tasks.outs[k]
        for r in range(tasks.start[t], tasks.start[t + 1]):
            high = min(high, line.place[tasks.reader[r]] - 1)
    return np.random.randint(low, high + 1)  # type: ignore[no-any-return]


@numba.njit(cache=True)
def _touch(tasks: Tasks, line: Line, window: Window, units: Ints, touched: np.ndarray) -> bool:
    """Mark the segments of the units' tasks; False if a task is in none."""
    for u in units:
        for m in range(tasks.member_start[u], tasks.member_start[u + 1]):
            s = segment_of(line, window, tasks.member[m])
            if s < 0:
                return False
            touched[s] = True
    return True


@numba.njit(cache=True)
def _write(line: Line, window: Window, order: Ints, device: Ints) -> int:
    """Write the window's tasks in order, and their devices; their number."""
    size = 0
    for s in range(len(window.first)):
        for k in range(window.first[s], window.past[s]):
            order[size], device[size] = line.order[k], line.device[line.order[k]]
            size += 1
    return size


@numba.njit(cache=True)
def _restore(tasks: Tasks, line: Line, window: Window, order: Ints, device: Ints) -> None:
    """Take the window's tasks back to an order and devices."""
    size = 0
    for s in range(len(window.first)):
        for k in range(window.first[s], window.past[s]):
            i = order[size]
            line.order[k], line.place[i] = i, k
            if line.device[i] != device[size]:
                _put(tasks, line, tasks.unit[i], device[size])
            size += 1


@numba.njit(cache=True)
def _trace(room: Room, last: Ints, path: Ints) -> int:
    """Write the tasks that each waited for the next, from the last of each segment."""
    length = 0
    for i in last:
        while i >= 0 and length < len(path):
            path[length] = i
            length += 1
            i = room.cause[i]
    return length


@numba.njit(cache=True)
def anneal_window(
    tasks: Tasks, line: Line, room: Room, first: int, past: int, heat: tuple[float, int], seed: int
) -> float:
    """Anneal the tasks between two places of the order, and what shares their devices.

    `heat`: the first temperature (s), and moves for each task. `line` takes the best that was met;
    returns the seconds gained, as far as the window tells.
    """
    np.random.seed(seed)
    temperature, moves = heat
    window = window_at(tasks, line, first, past)
    num = len(window.first)
    value, last = np.zeros(num), np.zeros(num, dtype=np.int64)
    trial, trial_last = np.zeros(num), np.zeros(num, dtype=np.int64)
    touched = np.zeros(num, dtype=np.bool_)
    for s in range(num):
        value[s], last[s] = run(tasks, line, window, room, s)
    before = lowest = value.sum()
    tables = np.empty((4, (window.past - window.first).sum()), dtype=np.int64)
    mine, order, device, path = tables[0], tables[1], tables[2], tables[3]
    size, length, stale = _write(line, window, mine, device), 0, True
    _write(line, window, order, device)
    ids = np.empty((2, LONGEST_CHAIN), dtype=np.int64)
    cooling = COLDEST ** (1.0 / max(1, moves * size))
    for _ in range(moves * size):
        temperature *= cooling
        if stale:
            length, stale = _trace(room, last, path), False
        i = mine[np.random.randint(size)]
        if length and np.random.random() < 0.6:
            i = path[np.random.randint(length)]
        moved, a, target = 0, line.place[i], 0
        b = a
        touched[:] = False
        if np.random.random() < 0.75:
            target = _target(tasks, line, i)
            moved = _chain(tasks, line, window, i, ids[0])
        units, sources = ids[0, :moved], ids[1, :moved]
        if not _touch(tasks, line, window, units, touched):
            continue
        if moved == 0 or np.random.random() < 0.2:
            b = _another_place(tasks, line, window, i)
            touched[segment_of(line, window, i)] = True
        changed, fits = a != b, True
        for k in range(moved):
            sources[k] = line.device[tasks.member[tasks.member_start[units[k]]]]
            changed = changed or sources[k] != target
        if not changed:
            continue
        for k in range(moved):
            fits = _put(tasks, line, units[k], target) and fits
        if a != b:
            bring(line.order, line.place, a, b)
        gain = -temperature * np.log(1.0 - np.random.random())
        for s in range(num):
            if fits and touched[s] and gain >= 0:
                trial[s], trial_last[s] = run(tasks, line, window, room, s)
                gain += value[s] - trial[s]
        if fits and gain >= 0:
            for s in range(num):
                if touched[s]:
                    value[s], last[s] = trial[s], trial_last[s]
            stale = True
            if value.sum() < lowest:
                lowest = value.sum()
                _write(line, window, order, device)
            continue
        for k in range(moved):
            _put(tasks, line, units[k], sources[k])
        if a != b:
            bring(line.order, line.place, b, a)
    _restore(tasks, line, window, order, device)
    for s in range(num):
        settle(tasks, line, window, room, s)
    return before - lowest  # type: ignore[no-any-return]
