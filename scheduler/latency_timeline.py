"""When tasks run that are placed and ordered, compiled: what the search for latency simulates.

Both simulations have the semantics of `timeline.stage_timeline` on the stages of `plan.cut_runs`:
every device runs its tasks in order, a medium carries one tensor at a time, first come first
served, and what a task makes leaves in the order in which it is read.
"""

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.tasks import Tasks, move_s


@numba.njit(cache=True)
def tails(tasks: Tasks) -> Floats:
    """(n, d) seconds that must follow a task on a device: the longest path, transfers included.

    tail(i, p) = max over readers j of min over q of (move(i, j, p, q) + w(j, q) + tail(j, q));
    where media contend or devices are busy it takes longer. O(edges x devices^2).
    """
    n, d = tasks.w.shape
    serialised = len(tasks.ends_s) > 0
    tail = np.zeros((n, d))
    for i in range(n - 1, -1, -1):
        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[k]
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                for p in range(d):
                    least = np.inf
                    for q in range(d):
                        rest = tasks.w[j, q] + tail[j, q]
                        if p != q and tasks.medium[p, q] < 0:
                            continue
                        if p != q:
                            rest += tasks.ends_s[t, q] if serialised else move_s(tasks, t, p, q)
                        least = min(least, rest)
                    tail[i, p] = max(tail[i, p], least)
    return tail


@numba.njit(cache=True)
def heads(tasks: Tasks) -> Floats:
    """(n, d) seconds until a task has run on a device, at least: the longest path to it.

    Tasks of one unit are on one device.
    head(j, q) = w(j, q) + max over what j reads of min over p of (head(i, p) + move(i, j, p, q)).
    O(edges x devices^2).
    """
    n, d = tasks.w.shape
    head = np.zeros((n, d))
    for j in range(n):
        for q in range(d):
            ready = 0.0
            for k in range(tasks.ins_start[j], tasks.ins_start[j + 1]):
                t = tasks.ins[k]
                i = tasks.producer[t]
                least = np.inf
                for p in range(d):
                    if p == q:
                        least = min(least, head[i, p])
                    elif tasks.medium[p, q] >= 0 and tasks.unit[i] != tasks.unit[j]:
                        least = min(least, head[i, p] + move_s(tasks, t, p, q))
                ready = max(ready, least)
            head[j, q] = ready + tasks.w[j, q]
    return head


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _list_sends(
    outs: Ints, start: Ints, reader: Ints, device: Ints, place: Ints, p: int,
    to: Ints, what: Ints, urgency: Ints,
) -> int:  # fmt: skip
    """Write what leaves device p when `outs` are made, the tensor read first first; its number."""
    sent = 0
    for t in outs:
        opened = sent
        for r in range(start[t], start[t + 1]):
            q = device[reader[r]]
            if q == p:
                continue
            slot = opened
            while slot < sent and to[slot] != q:
                slot += 1
            if slot == sent:
                to[slot], what[slot], urgency[slot] = q, t, place[reader[r]]
                sent += 1
            urgency[slot] = min(urgency[slot], place[reader[r]])
    for k in range(1, sent):
        q, t, u = to[k], what[k], urgency[k]
        while k > 0 and urgency[k - 1] > u:
            to[k], what[k], urgency[k] = to[k - 1], what[k - 1], urgency[k - 1]
            k -= 1
        to[k], what[k], urgency[k] = q, t, u
    return sent


@numba.njit(cache=True)
def run_in_order(
    tasks: Tasks, device: Ints, order: Ints, tail: Floats, most_s: float, start: Floats, cause: Ints
) -> float:
    """Makespan (s) where `media_are_private`, in one pass over the order.

    Fills `start` and `cause`: the task that each one waited for, -1 where none. Infinite where a
    link is missing or as soon as the makespan must exceed `most_s`. O(edges + transfers).
    """
    n, d = tasks.w.shape
    serialised, from_table = len(tasks.ends_s) > 0, len(tasks.table_s) > 0
    ready, waited = np.zeros(n), np.full(n, -1)
    free, last = np.zeros(d), np.full(d, -1)
    medium_free, arrival, sent = np.zeros((d, d)), np.zeros(d), np.full(d, -1)
    received = np.zeros((len(tasks.producer), d) if serialised else (0, 0), dtype=np.bool_)
    makespan = 0.0
    for i in order:
        p = device[i]
        begin = ready[i]
        cause[i] = waited[i]
        if free[p] > begin or (free[p] == begin and waited[i] < 0):
            begin, cause[i] = free[p], last[p]
        end = begin + tasks.w[i, p]
        if serialised:
            for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
                t = tasks.ins[k]
                if device[tasks.producer[t]] != p and not received[t, p]:
                    received[t, p] = True
                    end += tasks.ends_s[t, p]
            for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
                t = tasks.outs[k]
                for r in range(tasks.start[t], tasks.start[t + 1]):
                    if device[tasks.reader[r]] != p:
                        end += tasks.ends_s[t, p]
                        break
        if end + tail[i, p] > most_s:
            return np.inf
        start[i] = begin
        free[p], last[p] = end, i
        makespan = max(makespan, end)
        first, past = tasks.outs_start[i], tasks.outs_start[i + 1]
        if past > first + 1 and not serialised:
            if not _send_many(tasks, device, order, i, end, ready, waited, medium_free):
                return np.inf
            continue
        for k in range(first, past):
            t = tasks.outs[k]
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                q = device[j]
                at = end
                if q != p and not serialised:
                    if sent[q] != t:
                        if tasks.medium[p, q] < 0:
                            return np.inf
                        if from_table:
                            seconds = tasks.table_s[t, p, q]
                        else:
                            seconds = tasks.num_bytes[t] * tasks.s_per_byte[p, q]
                            seconds += tasks.latency_s[p, q]
                        medium_free[p, q] = max(end, medium_free[p, q]) + seconds
                        arrival[q], sent[q] = medium_free[p, q], t
                    at = arrival[q]
                if at > ready[j] or waited[j] < 0:
                    ready[j], waited[j] = at, i
    return makespan


@numba.njit(cache=True)
def _send_many(
    tasks: Tasks, device: Ints, order: Ints, i: int, end: float,
    ready: Floats, waited: Ints, medium_free: Floats,
) -> bool:  # fmt: skip
    """Deliver all that task i makes, read first sent first; False where a link is missing."""
    n, d = tasks.w.shape
    outs = tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]
    to, what, urgency = _room(len(outs) * d), _room(len(outs) * d), _room(len(outs) * d)
    place, p = np.empty(n, dtype=np.int64), device[i]
    for k in range(n):
        place[order[k]] = k
    num = _list_sends(outs, tasks.start, tasks.reader, device, place, p, to, what, urgency)
    for t in outs:
        for r in range(tasks.start[t], tasks.start[t + 1]):
            j = tasks.reader[r]
            if device[j] == p and (end > ready[j] or waited[j] < 0):
                ready[j], waited[j] = end, i
    for k in range(num):
        t, q = what[k], to[k]
        if tasks.medium[p, q] < 0:
            return False
        medium_free[p, q] = max(end, medium_free[p, q]) + move_s(tasks, t, p, q)
        for r in range(tasks.start[t], tasks.start[t + 1]):
            j = tasks.reader[r]
            if device[j] == q and (medium_free[p, q] > ready[j] or waited[j] < 0):
                ready[j], waited[j] = medium_free[p, q], i
    return True


@numba.njit(cache=True)
def _room(size: int) -> Ints:
    return np.empty(size, dtype=np.int64)


@numba.njit(cache=True)
def _work_s(tasks: Tasks, device: Ints, place: Ints, i: int) -> float:
    """Seconds that task i occupies its device, with what it sends and is the first to receive."""
    p = device[i]
    seconds = tasks.w[i, p]
    if len(tasks.ends_s) == 0:
        return seconds  # type: ignore[no-any-return]
    for t in tasks.ins[tasks.ins_start[i] : tasks.ins_start[i + 1]]:
        if device[tasks.producer[t]] != p:
            first = True
            for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]]:
                first = first and not (device[j] == p and place[j] < place[i])
            if first:
                seconds += tasks.ends_s[t, p]
    for t in tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]:
        for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]]:
            if device[j] != p:
                seconds += tasks.ends_s[t, p]
                break
    return seconds  # type: ignore[no-any-return]


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
def run_by_clock(
    tasks: Tasks, device: Ints, order: Ints, tail: Floats, most_s: float, start: Floats, cause: Ints
) -> float:
    """Makespan (s) for any media, event by event; else as `run_in_order`.

    O(tasks x devices + edges).
    """
    n, d = tasks.w.shape
    serialised = len(tasks.ends_s) > 0
    first, mine = _line_up(device, order, d)
    head, missing, place = first[:d].copy(), _room(n), _room(n)
    most_sends = 0
    for k in range(n):
        i = order[k]
        place[i] = k
        missing[i] = tasks.ins_start[i + 1] - tasks.ins_start[i]
        most_sends = max(most_sends, d * (tasks.outs_start[i + 1] - tasks.outs_start[i]))
    to, what, urgency = _room(most_sends), _room(most_sends), _room(most_sends)
    ready, waited, free = np.zeros(n), np.full(n, -1), np.zeros(d)
    end, fresh = np.full(d, np.inf), np.ones(d, dtype=np.bool_)
    medium_free = np.zeros(max(d, tasks.medium.max() + 1))
    makespan = 0.0
    for _ in range(n):
        now, at = np.inf, -1
        for p in range(d):
            if fresh[p]:
                end[p] = np.inf
                if head[p] < first[p + 1] and missing[mine[head[p]]] == 0:
                    i = mine[head[p]]
                    start[i] = max(free[p], ready[i])
                    cause[i] = waited[i]
                    if free[p] > ready[i] or (free[p] == ready[i] and waited[i] < 0):
                        cause[i] = mine[head[p] - 1] if head[p] > first[p] else -1
                    end[p] = start[i] + _work_s(tasks, device, place, i)
                fresh[p] = False
            if end[p] < now:
                now, at = end[p], p
        if at < 0:
            return np.inf
        i = mine[head[at]]
        if now + tail[i, at] > most_s:
            return np.inf
        makespan = max(makespan, now)
        head[at] += 1
        free[at] = now
        fresh[at] = True
        outs = tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]]
        for t in outs:
            for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]]:
                missing[j] -= 1
                if device[j] == at or serialised:
                    if now > ready[j] or waited[j] < 0:
                        ready[j], waited[j] = now, i
                    if missing[j] == 0:
                        fresh[device[j]] = True
        if serialised:
            continue
        num = _list_sends(outs, tasks.start, tasks.reader, device, place, at, to, what, urgency)
        for k in range(num):
            t, q, m = what[k], to[k], tasks.medium[at, to[k]]
            if m < 0:
                return np.inf
            medium_free[m] = max(now, medium_free[m]) + move_s(tasks, t, at, q)
            for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]]:
                if device[j] == q:
                    if medium_free[m] > ready[j] or waited[j] < 0:
                        ready[j], waited[j] = medium_free[m], i
                    if missing[j] == 0:
                        fresh[q] = True
    return makespan


@numba.njit(cache=True)
def simulate(
    tasks: Tasks, device: Ints, order: Ints, tail: Floats, most_s: float, start: Floats, cause: Ints
) -> float:
    """Makespan (s) by whichever of the two simulations is right and fast."""
    if media_are_private(tasks):
        return run_in_order(tasks, device, order, tail, most_s, start, cause)
    return run_by_clock(tasks, device, order, tail, most_s, start, cause)
