"""When tasks run that are placed and ordered, whatever their transfers share: event by event."""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.latency.placed import Order, Times, ends_of, list_sends, room_for_sends
from scheduler.list_scheduling.tasks import Tasks, reads_of


@numba.njit(cache=True)
def _line_up(device: Ints, order: Ints, d: int) -> tuple[Ints, Ints]:
    """Tasks of every device in order, mine[first[p]:first[p + 1]], as (first, mine)."""
    first, mine = np.zeros(d + 1, dtype=np.int64), np.empty(len(order), dtype=np.int64)
    for i in order:
        first[device[i] + 1] += 1
    for p in range(d):
        first[p + 1] += first[p]
    head = first[:d].copy()
    for i in order:
        mine[head[device[i]]] = i
        head[device[i]] += 1
    return first, mine


@numba.njit(cache=True)
def run_by_clock(tasks: Tasks, at: Order, tail: Floats, most_s: float, times: Times) -> float:
    """Makespan (s) for any media, event by event; fills `start`, `end` and `cause` of `times`.

    Infinite where a link is missing or as soon as the makespan must exceed `most_s`.
    O(tasks x devices + edges).
    """
    device, order, place = at.device, at.order, at.place
    w, ins_start, ins, producer = tasks.w, tasks.ins_start, tasks.ins, tasks.producer
    outs_start, outs, reader_start, reader = tasks.outs_start, tasks.outs, tasks.start, tasks.reader
    medium, table_s, ends_s, num_bytes = tasks.medium, tasks.table_s, tasks.ends_s, tasks.num_bytes
    latency_s, s_per_byte = tasks.latency_s, tasks.s_per_byte
    start, ended, cause = times.start, times.end, times.cause
    n, d = w.shape
    serialised, from_table = len(ends_s) > 0, len(table_s) > 0
    first, mine = _line_up(device, order, d)
    head, missing = first[:d].copy(), reads_of(tasks)
    sends = room_for_sends(tasks)
    to, what, urgency = sends[0], sends[1], sends[2]
    ready, waited, free = np.zeros(n), np.full(n, -1), np.zeros(d)
    end, fresh = np.full(d, np.inf), np.ones(d, dtype=np.bool_)
    medium_free = np.zeros(max(d, medium.max() + 1))
    makespan = 0.0
    for _ in range(n):
        now, p = np.inf, -1
        for q in range(d):
            if fresh[q]:
                end[q] = np.inf
                if head[q] < first[q + 1] and missing[mine[head[q]]] == 0:
                    i = mine[head[q]]
                    start[i] = max(free[q], ready[i])
                    cause[i] = waited[i]
                    if free[q] > ready[i] or (free[q] == ready[i] and waited[i] < 0):
                        cause[i] = mine[head[q] - 1] if head[q] > first[q] else -1
                    end[q] = start[i] + w[i, q]
                    if serialised:
                        end[q] += ends_of(
                            ends_s, medium, ins_start, ins, producer, outs_start, outs,
                            reader_start, reader, device, place, i,
                        )  # fmt: skip
                fresh[q] = False
            if end[q] < now:
                now, p = end[q], q
        if p < 0:
            return np.inf
        i = mine[head[p]]
        if now + tail[i, p] > most_s:
            return np.inf
        ended[i] = now
        makespan = max(makespan, now)
        head[p] += 1
        free[p] = now
        fresh[p] = True
        for k in range(outs_start[i], outs_start[i + 1]):
            for r in range(reader_start[outs[k]], reader_start[outs[k] + 1]):
                j = reader[r]
                missing[j] -= 1
                if device[j] == p or serialised:
                    if now > ready[j] or waited[j] < 0:
                        ready[j], waited[j] = now, i
                    if missing[j] == 0:
                        fresh[device[j]] = True
        if serialised:
            continue
        num = list_sends(
            outs_start[i], outs_start[i + 1], outs, reader_start, reader, device, place, p,
            to, what, urgency,
        )  # fmt: skip
        for s in range(num):
            t, q, m = what[s], to[s], medium[p, to[s]]
            if m < 0:
                return np.inf
            if from_table:
                seconds = table_s[t, p, q]
            else:
                seconds = latency_s[p, q] + num_bytes[t] * s_per_byte[p, q]
            medium_free[m] = max(now, medium_free[m]) + seconds
            for r in range(reader_start[t], reader_start[t + 1]):
                j = reader[r]
                if device[j] == q:
                    if medium_free[m] > ready[j] or waited[j] < 0:
                        ready[j], waited[j] = medium_free[m], i
                    if missing[j] == 0:
                        fresh[q] = True
    return makespan
