"""When tasks run that are placed and ordered, where no media are shared: one pass over the order.

What a task sends leaves when it ends, and only its own device uses the medium, so that nothing
before a place in the order depends on what comes after it: a changed order is run from there.
"""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.compiled import lean
from scheduler.latency.placed import Order, Times, ends_of, list_sends, room_for_sends
from scheduler.list_scheduling.tasks import Tasks

MOST_BITS = 63
"""Devices below which a set of them is one whole number."""


class Room(NamedTuple):
    """What a run keeps in mind: written before it is read.

    Attributes:
        free, last: (d,) when a device ends its last task, and which that was, -1 if none.
        media: (d, d) when the medium between two devices is free.
        to, what, urgency: of each tensor that a task sends.
        source: the task that makes each tensor of `tasks.ins`.
    """

    free: Floats
    last: Ints
    media: Floats
    to: Ints
    what: Ints
    urgency: Ints
    source: Ints


@numba.njit(cache=True)
def room_for(tasks: Tasks) -> Room:
    """Room for runs of tasks."""
    d = tasks.w.shape[1]
    sends, source = room_for_sends(tasks), np.empty_like(tasks.ins)
    for e in range(len(source)):
        source[e] = tasks.producer[tasks.ins[e]]
    last, media = np.full(d, -1), np.zeros((d, d))
    return Room(np.zeros(d), last, media, sends[0], sends[1], sends[2], source)


@lean
def media_are_private(tasks: Tasks) -> bool:
    """Whether every medium joins one device to one other, so that its queue needs no clock."""
    d = tasks.w.shape[1]
    if len(tasks.ends_s):
        return True
    for a in range(d * d):
        for b in range(a):
            m = tasks.medium[a // d, a % d]
            if m >= 0 and m == tasks.medium[b // d, b % d] and a // d != a % d and b // d != b % d:
                return False
    return True


@lean
def _recall(
    device: Ints, order: Ints, first: int, end: Floats, sent: Floats,
    free: Floats, last: Ints, media: Floats,
) -> float:  # fmt: skip
    """Set devices and media to where they stand before the task at place `first` runs."""
    left = d = len(free)
    for p in range(d):
        last[p], free[p] = -1, 0.0
        for q in range(d):
            media[p, q] = 0.0
    makespan = 0.0
    for k in range(first - 1, -1, -1):
        i = order[k]
        p = device[i]
        if last[p] < 0:
            last[p], free[p] = i, end[i]
            makespan = max(makespan, end[i])
            for q in range(d):
                media[p, q] = sent[i, q]
            left -= 1
            if left == 0:
                break
    return makespan


@lean
def _list_devices(
    t: int, start: Ints, reader: Ints, device: Ints, p: int, d: int, to: Ints, what: Ints
) -> int:
    """Write the devices other than p that read tensor t; their number. Each has its own medium."""
    reached, num = 0, 0
    for r in range(start[t], start[t + 1]):
        reached |= 1 << device[reader[r]]
    reached &= ~(1 << p)
    for q in range(d):
        if reached >> q & 1:
            to[num], what[num] = q, t
            num += 1
    return num


@lean
def run_in_order(
    tasks: Tasks, at: Order, tail: Floats, most_s: float, first: int,
    now: Times, trial: Times, room: Room,
) -> float:  # fmt: skip
    """Makespan (s); fills `trial` with the times of the tasks from place `first` on.

    Those before it run as in `now`. Infinite where a link is missing or as soon as the makespan
    must exceed `most_s`. O(edges + transfers). Arrays are taken out of their tuples first: numba
    counts references to a tuple's arrays wherever one is touched.
    """
    device, order, place = at.device, at.order, at.place
    w, ins_start, ins, producer = tasks.w, tasks.ins_start, tasks.ins, tasks.producer
    outs_start, outs, reader_start, reader = tasks.outs_start, tasks.outs, tasks.start, tasks.reader
    medium, table_s, ends_s, num_bytes = tasks.medium, tasks.table_s, tasks.ends_s, tasks.num_bytes
    latency_s, s_per_byte = tasks.latency_s, tasks.s_per_byte
    now_end, now_arrived = now.end, now.arrived
    start, end, causes, sent, arrived = trial
    free, last, media, to, what, urgency, source = room
    n, d = w.shape
    serialised, from_table = len(ends_s) > 0, len(table_s) > 0
    makespan = _recall(device, order, first, now_end, now.sent, free, last, media)
    for k in range(first, n):
        i = order[k]
        p = device[i]
        begin, cause = 0.0, -1
        for e in range(ins_start[i], ins_start[i + 1]):
            j = source[e]
            if device[j] == p or serialised:
                ready = now_end[j] if place[j] < first else end[j]
            else:
                ready = now_arrived[ins[e], p] if place[j] < first else arrived[ins[e], p]
            if ready > begin or cause < 0:
                begin, cause = ready, j
        if free[p] > begin or cause < 0:
            begin, cause = free[p], last[p]
        ends = begin + w[i, p]
        if serialised:
            ends += ends_of(
                ends_s, medium, ins_start, ins, producer, outs_start, outs, reader_start, reader,
                device, place, i,
            )  # fmt: skip
        if ends + tail[i, p] > most_s:
            return np.inf
        start[i], end[i], causes[i] = begin, ends, cause
        free[p], last[p] = ends, i
        makespan = max(makespan, ends)
        if serialised:
            continue
        num, e = 0, outs_start[i]
        if outs_start[i + 1] == e + 1 and d < MOST_BITS:
            num = _list_devices(outs[e], reader_start, reader, device, p, d, to, what)
        elif outs_start[i + 1] > e:
            num = list_sends(
                e, outs_start[i + 1], outs, reader_start, reader, device, place, p,
                to, what, urgency,
            )  # fmt: skip
        for s in range(num):
            t, q = what[s], to[s]
            if medium[p, q] < 0:
                return np.inf
            if from_table:
                seconds = table_s[t, p, q]
            else:
                seconds = latency_s[p, q] + num_bytes[t] * s_per_byte[p, q]
            media[p, q] = max(ends, media[p, q]) + seconds
            arrived[t, q] = media[p, q]
        for q in range(d):
            sent[i, q] = media[p, q]
    return makespan


@lean
def keep(tasks: Tasks, at: Order, first: int, now: Times, trial: Times) -> None:
    """Write the times of the tasks from place `first` on from `trial` to `now`."""
    order, outs_start, outs = at.order, tasks.outs_start, tasks.outs
    start, end, cause, sent, arrived = now
    new_start, new_end, new_cause, new_sent, new_arrived = trial
    for k in range(first, len(order)):
        i = order[k]
        start[i], end[i], cause[i] = new_start[i], new_end[i], new_cause[i]
        for q in range(sent.shape[1]):
            sent[i, q] = new_sent[i, q]
        for e in range(outs_start[i], outs_start[i + 1]):
            t = outs[e]
            for q in range(sent.shape[1]):
                arrived[t, q] = new_arrived[t, q]
