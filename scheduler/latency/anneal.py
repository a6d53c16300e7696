"""Simulated annealing over (device of each unit, order of the tasks), compiled.

Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220, 1983,
doi:10.1126/science.220.4598.671. A change is simulated from the first place on that it may affect,
and given up as soon as what must still follow a task shows that it will be refused.
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.compiled import clock_s, lean
from scheduler.latency.by_clock import run_by_clock
from scheduler.latency.in_order import keep, media_are_private, run_in_order
from scheduler.latency.moves import (
    State,
    bring,
    changes,
    choose,
    critical,
    first_change,
    put,
    state_of,
)
from scheduler.latency.placed import Order, ordered
from scheduler.list_scheduling.tasks import Tasks

TASKS_PER_LOOK = 300
"""Tasks simulated between two looks at the clock: some 10 us."""


class Cooling(NamedTuple):
    """From which temperature (s) to which, and when it ends.

    Attributes:
        num_moves: after which it ends.
        until_s: time of `time.perf_counter` at which it ends at the latest, as cold as planned.
        enough_s: makespan at which it ends.
        stop: (1,) ends as soon as it is not 0.
    """

    hottest_s: float
    coldest_s: float
    num_moves: int
    until_s: float
    enough_s: float
    stop: Ints


@lean
def _run(
    tasks: Tasks, state: State, tail: Floats, most_s: float, first: int, private: bool
) -> float:
    """Makespan (s) of a changed order, written to `trial` from the first changed place on."""
    if private:
        return run_in_order(
            tasks, state.at, tail, most_s, first, state.now, state.trial, state.room
        )
    return run_by_clock(tasks, state.at, tail, most_s, state.trial)


@lean
def _cool(
    tasks: Tasks, state: State, best: Order, best_s: float, tail: Floats, cooling: Cooling
) -> float:
    """Move from where `state` stands; what is better than `best_s` overwrites `best`."""
    at, now = state.at, state.now
    private, per_look = media_are_private(tasks), max(1, TASKS_PER_LOOK // len(tasks.w))
    current = _run(tasks, state, tail, np.inf, 0, private)
    keep(tasks, at, 0, now, state.trial)
    length = critical(tasks.w, at.device, now.start, now.cause, state.path)
    began_s, temperature = clock_s(), cooling.hottest_s
    for move in range(cooling.num_moves):
        if move % per_look == per_look - 1:
            now_s = clock_s()
            if now_s >= cooling.until_s or best_s <= cooling.enough_s or cooling.stop[0]:
                break
            done = max(move / cooling.num_moves, (now_s - began_s) / (cooling.until_s - began_s))
            temperature = cooling.hottest_s * (cooling.coldest_s / cooling.hottest_s) ** done
        i, num, b = choose(tasks, state, length)
        a = at.place[i]
        if not changes(tasks, state, num) and (num > 0 or a == b):
            continue
        if a != b:
            bring(at.order, at.place, a, b)
        most = current - temperature * np.log(1.0 - np.random.random())
        value, first = np.inf, 0
        if num == 0 or put(tasks, state, num, state.targets):
            if private:
                first = first_change(tasks, state, num, i, a, b)
            value = _run(tasks, state, tail, most, first, private)
        if value <= most and value < np.inf:
            current = value
            keep(tasks, at, first, now, state.trial)
            length = critical(tasks.w, at.device, now.start, now.cause, state.path)
            if value < best_s:
                best_s = value
                for k in range(len(at.order)):
                    best.device[k], best.order[k] = at.device[k], at.order[k]
            continue
        if num:
            put(tasks, state, num, state.sources)
        if a != b:
            bring(at.order, at.place, b, a)
    return best_s


@numba.njit(cache=True)
def anneal(
    tasks: Tasks, device: Ints, order: Ints, value: float, tail: Floats, cooling: Cooling, seed: int
) -> tuple[Ints, Ints, float]:
    """Device and order of the tasks after a cooling from a schedule and its makespan (s), `value`.

    Also the makespan (s); the same where nothing better was found.
    """
    np.random.seed(seed)
    state, best = state_of(tasks, device, order), ordered(device, order)
    value = _cool(tasks, state, best, value, tail, cooling)
    return best.device, best.order, value
