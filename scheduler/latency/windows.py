"""Large neighbourhood search for latency: windows of a schedule are annealed, the rest is fixed.

    device 0  ...====[==  ====  =]=====...[== ]...    a window holds tasks that run at about the
    device 1  ...==  [ ====   == ]  ===...[ ==]...    same time, and what shares their devices

After some windows the whole schedule is timed anew, and the best is kept.

Source: Shaw, "Using constraint programming and local search methods to solve vehicle routing
problems", CP 1998, doi:10.1007/3-540-49481-2_30.
"""

import time
from collections.abc import Callable

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.latency.makespan import simulate
from scheduler.latency.window import Line, deliver, num_media, room_for, tails_of
from scheduler.latency.window_anneal import anneal_window
from scheduler.list_scheduling.tasks import (
    Schedule,
    Tasks,
    batch_excess_bytes,
    fits,
    hold,
    placement_of,
    tasks_of,
    within_memory,
)
from scheduler.problem import Placement, Problem
from scheduler.stopped import Stopped

SMALLEST, LARGEST = 24, 72
"""Tasks in the first segment of a window."""
MOVES_PER_TASK, MOST_MOVES_PER_TASK = 4, 128
"""Changes tried in a window on the first way through the schedule; twice as many on the next."""
HEATS = (0.0, 0.3, 1.0)
"""First temperatures of windows, in mean seconds of a task, on the ways through in turn."""
WINDOWS_PER_CHECK = 4.0
"""Time spent on windows between two timings of the whole schedule, in such timings."""
SLICES = (0.5, 0.8, 1.0)
"""Shares of what time is left after which memory is checked with activations."""

Tell = Callable[[float], None]


def latency_windows(
    problem: Problem, schedule: Schedule, deadline_s: float, tell: Tell = lambda value: None
) -> Placement:
    """Place by a schedule, and improve it by windows until a deadline of `time.perf_counter`.

    `tell` is called with each better makespan (s). What does not fit with its activations is
    dropped, and its excess taken from the devices' limits.

    Raises:
        Stopped: Ctrl-C; it has the best schedule until then.
    """
    found: list[tuple[Tasks, Ints, Ints]] = []

    def first(tasks: Tasks) -> tuple[Ints, Floats]:
        device, start = schedule(tasks)
        found.append((tasks, device, np.lexsort((np.arange(len(device)), start))))
        return device, start

    best = within_memory(problem, first)
    tasks, device, order = found[-1]
    began_s = time.perf_counter()
    if not fits(tasks, device) or batch_excess_bytes(problem, best).any():
        return best
    deadline_s -= time.perf_counter() - began_s
    for share in SLICES:
        now_s = time.perf_counter()
        if now_s >= deadline_s:
            break
        until_s = now_s + share * (deadline_s - now_s)
        better = improve_windows(tasks, device, order, until_s, tell)
        start = np.argsort(better[1]).astype(float)
        placed = placement_of(problem, better[0], start)
        excess = batch_excess_bytes(problem, placed)
        if excess.any():
            tasks = tasks._replace(limit_bytes=tasks.limit_bytes - 1.05 * excess)
        else:
            best, (device, order) = placed, better
    return best


def compile_windows(problem: Problem) -> None:
    """Compile the loops, or load them from the cache."""
    tasks = tasks_of(problem)
    n = len(tasks.w)
    line = timed(tasks, np.zeros(n, dtype=np.int64), np.arange(n))[1]
    anneal_window(tasks, line, room_for(tasks), 0, n, (1.0, 1), 0)


def improve_windows(
    tasks: Tasks, device: Ints, order: Ints, deadline_s: float,
    tell: Tell = lambda value: None, seed: int = 0,
) -> tuple[Ints, Ints]:  # fmt: skip
    """Device and order of the tasks after annealing windows from the start to the end, in turns.

    Serialised transfers are left as they are.

    Raises:
        Stopped: Ctrl-C; it has the best schedule until then.
    """
    n = len(order)
    value, best = timed(tasks, device, order)
    if len(tasks.ends_s) or not value < np.inf:
        return device, order
    rng, room = np.random.default_rng(seed), room_for(tasks)
    mean_s = float(tasks.w.min(axis=1).mean())
    began_s = time.perf_counter()
    now = timed(tasks, device, order)[1]
    since_s = time.perf_counter()
    check_s = since_s - began_s
    at, turn = 0, 0
    try:
        while time.perf_counter() < deadline_s - check_s:
            first, at = max(at, 0), min(at + int(rng.integers(SMALLEST, LARGEST)), n)
            heat = HEATS[turn % len(HEATS)] * mean_s
            moves = min(MOVES_PER_TASK * 2**turn, MOST_MOVES_PER_TASK)
            if at > first:
                seed = int(rng.integers(2**31))
                anneal_window(tasks, now, room, first, at, (heat, moves), seed)
            if at >= n:
                at, turn = -int(rng.integers(SMALLEST)), turn + 1
            elif time.perf_counter() - since_s < WINDOWS_PER_CHECK * check_s:
                continue
            found, checked = timed(tasks, now.device, now.order)
            is_better = found < value
            if found <= value:
                value, best = found, checked
            if is_better:
                tell(found)
            now = Line._make(part.copy() for part in best)
            since_s = time.perf_counter()
    except KeyboardInterrupt:
        raise Stopped(best.device, best.order) from None
    return best.device, best.order


def timed(tasks: Tasks, device: Ints, order: Ints) -> tuple[float, Line]:
    """Makespan (s) of a schedule, and the schedule in the order of its starts."""
    n = len(order)
    value, times = simulate(tasks, device, order, np.zeros_like(tasks.w), np.inf)
    place, arrive = np.empty(n, dtype=np.int64), np.zeros(len(tasks.reader))
    place[order] = np.arange(n)
    order = np.lexsort((place, times.start))
    place[order] = np.arange(n)
    end = times.start + tasks.w[np.arange(n), device]
    if value < np.inf:
        by_end = np.argsort(end, kind="stable")
        deliver(tasks, device, end, by_end, np.zeros(num_media(tasks)), arrive)
    tail = tails_of(tasks, device, order, end, arrive)
    memory = _memory(tasks, device)
    return value, Line(device.copy(), order, place, end, tail, arrive, device.copy(), *memory)


@numba.njit(cache=True)
def _memory(tasks: Tasks, device: Ints) -> tuple[Floats, np.ndarray]:
    """Bytes used on each device, and units that use each weight there, as in `tasks.hold`."""
    d = tasks.w.shape[1]
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    for u in range(len(tasks.own_bytes)):
        hold(tasks, held, used, u, device[tasks.member[tasks.member_start[u]]], 1)
    return used, held
