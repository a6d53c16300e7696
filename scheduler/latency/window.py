"""A window of a schedule and the longest path through it, compiled.

    heads |  segment  | tails     a segment is a stretch of the order of all tasks, a window some
    ------[===--=====-]------     segments that change together

What runs before a segment ends as it was timed, what runs after it takes its tail; media carry what
a segment sends after what was sent before it.

Source: heads and tails as in Adams, Balas, Zawack, "The shifting bottleneck procedure for job shop
scheduling", Management Science 34(3), 1988, doi:10.1287/mnsc.34.3.391.
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.list_scheduling.tasks import Tasks, move_s

MOST_TASKS = 512
"""Tasks in all segments of a window."""
PAD, MOST_SEGMENTS = 12, 16
"""Places around a task of another segment that belong to it; segments of a window."""
LOOK_BACK = 400
"""Places before a segment in which transfers may keep media busy."""


class Line(NamedTuple):
    """A schedule with its times.

    Attributes:
        device, order, place: (n,) of each task; tasks in order; place of each in the order.
        end: (n,) seconds at which each task ends.
        tail: (n,) longest path (s) from the start of each task to the end of all.
        arrive: (e,) when each use of a tensor has it, as timed.
        timed_on: (n,) device when it was timed.
        used, held: memory as in `tasks.hold`.
    """

    device: Ints
    order: Ints
    place: Ints
    end: Floats
    tail: Floats
    arrive: Floats
    timed_on: Ints
    used: Floats
    held: np.ndarray


class Window(NamedTuple):
    """Segments of the order, and what is before and after each.

    Attributes:
        first, past: (s,) places.
        free: (s, d) when each device ends what is before.
        busy: (s, m) when each medium has carried what was sent before.
        tail: (s, d) longest path from the first task after a segment on each device.
    """

    first: Ints
    past: Ints
    free: Floats
    busy: Floats
    tail: Floats


class Room(NamedTuple):
    """What a trial writes: of each task, each device and each medium.

    `in_edge` (e,): position in `Tasks.reader` of each entry of `Tasks.ins`; never changes.
    """

    in_edge: Ints
    ready: Floats
    waited: Ints
    cause: Ints
    end: Floats
    free: Floats
    last: Ints
    medium_free: Floats
    arrival: Floats
    sent: Ints


def room_for(tasks: Tasks) -> Room:
    """Room for trials."""
    n, d = tasks.w.shape
    in_edge = np.argsort(tasks.reader, kind="stable")
    return Room(
        in_edge, np.zeros(n), np.full(n, -1), np.full(n, -1), np.zeros(n), np.zeros(d),
        np.full(d, -1), np.zeros(num_media(tasks)), np.zeros(d), np.full(d, -1),
    )  # fmt: skip


@numba.njit(cache=True)
def num_media(tasks: Tasks) -> int:
    """Rows that a table of media has."""
    return max(tasks.w.shape[1], tasks.medium.max() + 1)  # type: ignore[no-any-return]


@numba.njit(cache=True)
def deliver(
    tasks: Tasks, device: Ints, end: Floats, senders: Ints, medium_free: Floats, arrive: Floats
) -> None:
    """Fill in when each use of what the senders, in turn, make has it."""
    d = tasks.w.shape[1]
    arrival, sent = np.zeros(d), np.full(d, -1)
    for i in senders:
        p = device[i]
        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[k]
            for e in range(tasks.start[t], tasks.start[t + 1]):
                q = device[tasks.reader[e]]
                arrive[e] = end[i]
                if q != p and sent[q] != t:
                    m = tasks.medium[p, q]
                    medium_free[m] = max(end[i], medium_free[m]) + move_s(tasks, t, p, q)
                    arrival[q], sent[q] = medium_free[m], t
                if q != p:
                    arrive[e] = arrival[q]


@numba.njit(cache=True)
def tails_of(tasks: Tasks, device: Ints, order: Ints, end: Floats, arrive: Floats) -> Floats:
    """(n,) longest path from the start of each task to the end of all, along data and devices."""
    n, d = tasks.w.shape
    tail, after = np.zeros(n), np.zeros(d)
    for k in range(n - 1, -1, -1):
        i = order[k]
        p = device[i]
        longest = after[p]
        for t in tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]:
            for e in range(tasks.start[t], tasks.start[t + 1]):
                longest = max(longest, arrive[e] - end[i] + tail[tasks.reader[e]])
        tail[i] = longest + tasks.w[i, p]
        after[p] = tail[i]
    return tail


@numba.njit(cache=True)
def segment_of(line: Line, window: Window, i: int) -> int:
    """Segment of task i; -1 if it is in none."""
    for s in range(len(window.first)):
        if window.first[s] <= line.place[i] < window.past[s]:
            return s
    return -1


@numba.njit(cache=True)
def _segments(tasks: Tasks, line: Line, first: int, past: int) -> tuple[Ints, Ints]:
    """First and past places of the segments of a window, the given one first.

    The others hold, with some places around, what the tasks of the first share devices with.
    """
    places = np.empty(2 * MOST_TASKS, dtype=np.int64)
    num = 0
    for k in range(first, past):
        u = tasks.unit[line.order[k]]
        for m in range(tasks.member_start[u], tasks.member_start[u + 1]):
            place = line.place[tasks.member[m]]
            if not first <= place < past and num < len(places):
                places[num] = place
                num += 1
    start, end = np.empty(MOST_SEGMENTS, dtype=np.int64), np.empty(MOST_SEGMENTS, dtype=np.int64)
    start[0], end[0] = first, past
    count, total = 1, past - first
    for place in np.unique(places[:num]):
        low, high = max(0, place - PAD), min(len(line.order), place + PAD + 1)
        if place < first:
            high = min(high, first)
        else:
            low = max(low, past)
        same_side = count > 1 and (start[count - 1] < first) == (place < first)
        if same_side and low <= end[count - 1]:
            total += high - end[count - 1]
            end[count - 1] = high
        elif count < MOST_SEGMENTS and total < MOST_TASKS:
            start[count], end[count] = low, high
            total += high - low
            count += 1
    return start[:count], end[:count]


@numba.njit(cache=True)
def window_at(tasks: Tasks, line: Line, first: int, past: int) -> Window:
    """The window around the tasks between two places of the order."""
    n, d = tasks.w.shape
    start, end = _segments(tasks, line, first, past)
    free, tail = np.zeros((len(start), d)), np.zeros((len(start), d))
    busy = np.zeros((len(start), num_media(tasks)))
    for s in range(len(start)):
        seen, missing = np.zeros(d, dtype=np.bool_), d
        for k in range(start[s] - 1, -1, -1):
            i = line.order[k]
            p = line.device[i]
            if not seen[p]:
                seen[p], free[s, p] = True, line.end[i]
                missing -= 1
            if start[s] - k < LOOK_BACK:
                for t in tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]:
                    for e in range(tasks.start[t], tasks.start[t + 1]):
                        q = line.device[tasks.reader[e]]
                        m = tasks.medium[p, q]
                        if q != p and m >= 0:
                            busy[s, m] = max(busy[s, m], line.arrive[e])
            elif missing == 0:
                break
        seen[:], missing = False, d
        for k in range(end[s], n):
            p = line.device[line.order[k]]
            if not seen[p]:
                seen[p], tail[s, p] = True, line.tail[line.order[k]]
                missing -= 1
                if missing == 0:
                    break
    return Window(start, end, free, busy, tail)


@numba.njit(cache=True)
def run(tasks: Tasks, line: Line, window: Window, room: Room, s: int) -> tuple[float, int]:
    """Longest path (s) through segment s, and its last task there; infinite without a link."""
    first, past = window.first[s], window.past[s]
    free, last, medium_free = room.free, room.last, room.medium_free
    free[:], medium_free[:] = window.free[s], window.busy[s]
    last[:], room.sent[:] = -1, -1
    for k in range(first, past):
        room.ready[line.order[k]], room.waited[line.order[k]] = 0.0, -1
    longest, at = 0.0, -1
    for k in range(first, past):
        i = line.order[k]
        p = line.device[i]
        begin, why = room.ready[i], room.waited[i]
        for e in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
            j = tasks.producer[tasks.ins[e]]
            if not first <= line.place[j] < past:
                there = _there(tasks, line, i, tasks.ins[e], room.in_edge[e])
                if there > begin:
                    begin, why = there, -1
        if free[p] > begin:
            begin, why = free[p], last[p]
        end = begin + tasks.w[i, p]
        room.cause[i], room.end[i] = why, end
        free[p], last[p] = end, i
        if end > longest:
            longest, at = end, i
        for e in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[e]
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                q = line.device[j]
                there = end
                if q != p:
                    if room.sent[q] != t:
                        m = tasks.medium[p, q]
                        if m < 0:
                            return np.inf, -1
                        medium_free[m] = max(end, medium_free[m]) + move_s(tasks, t, p, q)
                        room.arrival[q], room.sent[q] = medium_free[m], t
                    there = room.arrival[q]
                if first <= line.place[j] < past:
                    if there > room.ready[j]:
                        room.ready[j], room.waited[j] = there, i
                elif there + line.tail[j] > longest:
                    longest, at = there + line.tail[j], i
    for p in range(len(free)):
        if last[p] >= 0 and free[p] + window.tail[s, p] > longest:
            longest, at = free[p] + window.tail[s, p], last[p]
    return longest, at


@numba.njit(cache=True)
def _there(tasks: Tasks, line: Line, i: int, t: int, edge: int) -> float:
    """When tensor t, made outside the segment, is there for task i."""
    j, p = tasks.producer[t], line.device[i]
    src = line.device[j]
    if line.timed_on[i] == p and line.timed_on[j] == src:
        return line.arrive[edge]  # type: ignore[no-any-return]
    if src != p and tasks.medium[src, p] < 0:
        return np.inf
    return line.end[j] + move_s(tasks, t, src, p)  # type: ignore[no-any-return]


@numba.njit(cache=True)
def settle(tasks: Tasks, line: Line, window: Window, room: Room, s: int) -> None:
    """Take over the times of segment s."""
    run(tasks, line, window, room, s)
    mine = line.order[window.first[s] : window.past[s]]
    for i in mine:
        line.end[i], line.timed_on[i] = room.end[i], line.device[i]
    deliver(tasks, line.device, line.end, mine, window.busy[s].copy(), line.arrive)
