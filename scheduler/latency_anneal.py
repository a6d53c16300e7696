"""Simulated annealing over (device of each unit, order of the tasks), compiled.

Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220, 1983,
doi:10.1126/science.220.4598.671. Six moves in ten start at a task of the critical path. A
simulation is given up as soon as what must still follow a task shows that the change will be
refused.
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.latency_timeline import media_are_private, run_by_clock, run_in_order
from scheduler.tasks import Tasks, hold

LONGEST_CHAIN = 12
"""Tasks along a path that one move takes to another device."""
FARTHEST = 200
"""Places in the order that one move takes a task."""


class State(NamedTuple):
    """Where the search stands.

    Attributes:
        device: (n,) of each task.
        order, place: (n,) tasks in order, and the place of each.
        used, held: memory as in `tasks.hold`.
    """

    device: Ints
    order: Ints
    place: Ints
    used: Floats
    held: np.ndarray


@numba.njit(cache=True)
def _state(tasks: Tasks, device: Ints, order: Ints) -> State:
    n, d = tasks.w.shape
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    for u in range(len(tasks.own_bytes)):
        hold(tasks, held, used, u, device[tasks.member[tasks.member_start[u]]], 1)
    place = np.empty(n, dtype=np.int64)
    for k in range(n):
        place[order[k]] = k
    return State(device.copy(), order.copy(), place, used, held)


@numba.njit(cache=True)
def _critical(w: Floats, device: Ints, start: Floats, cause: Ints, path: Ints) -> int:
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


@numba.njit(cache=True)
def _choose_units(tasks: Tasks, device: Ints, i: int, units: Ints, targets: Ints) -> int:
    """Write units and the devices that a move takes them to, task i's first; their number.

    One unit, or those along a path from i, to a device; or an exchange of two units' devices.
    """
    kind, num = np.random.random(), 1
    units[0], targets[0] = tasks.unit[i], np.random.randint(tasks.w.shape[1])
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


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _bring(order: Ints, place: Ints, a: int, b: int) -> None:
    """Take the task at place a of the order to place b."""
    i = order[a]
    step = 1 if b > a else -1
    for k in range(a, b, step):
        order[k] = order[k + step]
        place[order[k]] = k
    order[b] = i
    place[i] = b


@numba.njit(cache=True)
def _may_run(tasks: Tasks, units: Ints, targets: Ints) -> bool:
    for k in range(len(units)):
        for m in range(tasks.member_start[units[k]], tasks.member_start[units[k] + 1]):
            if not np.isfinite(tasks.w[tasks.member[m], targets[k]]):
                return False
    return True


@numba.njit(cache=True)
def _put(tasks: Tasks, state: State, units: Ints, targets: Ints) -> bool:
    """Take units to devices, the last one first; whether their memory suffices."""
    for k in range(len(units) - 1, -1, -1):
        first, past = tasks.member_start[units[k]], tasks.member_start[units[k] + 1]
        hold(tasks, state.held, state.used, units[k], state.device[tasks.member[first]], -1)
        hold(tasks, state.held, state.used, units[k], targets[k], 1)
        for m in range(first, past):
            state.device[tasks.member[m]] = targets[k]
    fits = True
    for p in targets:
        fits = fits and state.used[p] <= tasks.limit_bytes[p]
    return fits


@numba.njit(cache=True)
def anneal(
    tasks: Tasks, now: tuple[Ints, Ints], best: tuple[Ints, Ints], best_s: float, tail: Floats,
    num_moves: int, hottest_s: float, coldest_s: float, seed: int,
) -> float:  # fmt: skip
    """Cool from `now`, (device, order) of each, and leave there where it ends.

    What is better than `best_s` overwrites `best`; returns the best makespan (s).
    """
    np.random.seed(seed)
    n, d = tasks.w.shape
    private = media_are_private(tasks)
    state = _state(tasks, *now)
    start, cause = np.zeros(n), np.full(n, -1)
    if private:
        current = run_in_order(tasks, *now, tail, np.inf, start, cause)
    else:
        current = run_by_clock(tasks, *now, tail, np.inf, start, cause)
    trial_start, trial_cause = start.copy(), cause.copy()
    path, stale, length = np.empty(n, dtype=np.int64), True, 0
    room = np.empty((3, LONGEST_CHAIN + 1), dtype=np.int64)
    cooling = (coldest_s / hottest_s) ** (1 / num_moves)
    temperature = hottest_s
    for _ in range(num_moves):
        temperature *= cooling
        if stale:
            length = _critical(tasks.w, state.device, start, cause, path)
            stale = False
        i = path[np.random.randint(length)] if np.random.random() < 0.6 else np.random.randint(n)
        num, a = 0, state.place[i]
        if d > 1 and np.random.random() < 0.7:
            num = _choose_units(tasks, state.device, i, room[0], room[1])
        units, targets, sources = room[0, :num], room[1, :num], room[2, :num]
        b = a
        if num == 0 or np.random.random() < 0.3:
            b = _choose_place(tasks, state.place, i)
        changed = a != b
        for k in range(num):
            sources[k] = state.device[tasks.member[tasks.member_start[units[k]]]]
            changed = changed or sources[k] != targets[k]
        if not changed or not _may_run(tasks, units, targets):
            continue
        if a != b:
            _bring(state.order, state.place, a, b)
        most = current - temperature * np.log(1.0 - np.random.random())
        value = np.inf
        if num == 0 or _put(tasks, state, units, targets):
            if private:
                value = run_in_order(
                    tasks, state.device, state.order, tail, most, trial_start, trial_cause
                )
            else:
                value = run_by_clock(
                    tasks, state.device, state.order, tail, most, trial_start, trial_cause
                )
        if value <= most and value < np.inf:
            current, stale = value, True
            start, trial_start = trial_start, start
            cause, trial_cause = trial_cause, cause
            if value < best_s:
                best_s = value
                best[0][:], best[1][:] = state.device, state.order
            continue
        if num:
            _put(tasks, state, units, sources)
        if a != b:
            _bring(state.order, state.place, b, a)
    now[0][:], now[1][:] = state.device, state.order
    return best_s
