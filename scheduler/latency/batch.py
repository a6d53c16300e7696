"""The makespan of a batch of several micro-batches, compiled: the plan's own timeline of tasks.

The order of the tasks is cut into the stages of `plan.cut_runs`, which `dispatch.run` then runs, so
that what a search compares is what the plan is worth.
"""

import numba
import numpy as np

from scheduler.arrays import Ints
from scheduler.evaluation.dispatch import OLDEST_FIRST, Times, nothing_done, run
from scheduler.evaluation.stage_work import FORWARD, StageWork
from scheduler.latency.placed import Order, ends_of, list_sends, ordered, room_for_sends
from scheduler.list_scheduling.tasks import Tasks, move_s


@numba.njit(cache=True)
def batch_makespan(tasks: Tasks, device: Ints, order: Ints, m: int) -> float:
    """Seconds until m micro-batches have run, in an order in which tasks can run.

    Infinite where a link is missing. O(m (tasks + transfers) log).
    """
    work = _runs(tasks, ordered(device, order))
    if len(work.medium) and work.medium.min() < 0:
        return np.inf
    s, t, d = len(work.seconds), len(work.medium), len(work.team)
    times = Times(
        np.full((m, s), 0.0), np.full((m, s), 0.0), np.full((m, t), 0.0), np.full((m, t), 0.0)
    )
    progress = nothing_done(work, m)
    run(work, OLDEST_FIRST, np.full(d, m), _in_flight(work, m), times, progress)
    ends_s = times.end_s.max() if s else 0.0
    return max(ends_s, times.arrived_s.max()) if t else ends_s


@numba.njit(cache=True)
def _runs(tasks: Tasks, at: Order) -> StageWork:
    """Stages of the tasks of each device between what they receive and what they send."""
    n, d = tasks.w.shape
    device, order, place = at.device, at.order, at.place
    sends = room_for_sends(tasks)
    to, what, first_read = sends[0], sends[1], sends[2]
    receives, leaves = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    for i in range(n):
        leaves[i] = list_sends(
            tasks.outs_start[i], tasks.outs_start[i + 1], tasks.outs, tasks.start, tasks.reader,
            device, place, device[i], to, what, first_read,
        )  # fmt: skip
        for k in range(leaves[i]):
            receives[order[first_read[k]]] = True
    of, last = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    seconds, home = np.zeros(n), np.empty(n, dtype=np.int64)
    first, following = np.full((1, d), -1), np.full(n, -1)
    current, s = np.full(d, -1), 0
    for i in order:
        p = device[i]
        r = current[p]
        if r < 0 or receives[i] or leaves[last[r]] > 0:
            if r < 0:
                first[0, p] = s
            else:
                following[r] = s
            r = current[p] = s
            home[r] = p
            s += 1
        of[i], last[r] = r, i
        seconds[r] += tasks.w[i, p]
        if len(tasks.ends_s):
            seconds[r] += ends_of(
                tasks.ends_s, tasks.medium, tasks.ins_start, tasks.ins, tasks.producer,
                tasks.outs_start, tasks.outs, tasks.start, tasks.reader, device, place, i,
            )  # fmt: skip
    num = leaves.sum()
    medium, reader = np.empty(num, dtype=np.int64), np.empty(num, dtype=np.int64)
    moves = np.zeros(num)
    send_start, e = np.zeros(s + 1, dtype=np.int64), 0
    for r in range(s):
        i = last[r]
        p = device[i]
        list_sends(
            tasks.outs_start[i], tasks.outs_start[i + 1], tasks.outs, tasks.start, tasks.reader,
            device, place, p, to, what, first_read,
        )  # fmt: skip
        for k in range(leaves[i]):
            medium[e], reader[e] = tasks.medium[p, to[k]], of[order[first_read[k]]]
            if not len(tasks.ends_s):
                moves[e] = move_s(tasks, what[k], p, to[k])
            e += 1
        send_start[r + 1] = e
    none, nothing, no = np.empty(0, dtype=np.int64), np.empty(0), np.zeros(s, dtype=np.bool_)
    return StageWork(
        1, none, none, nothing, nothing, seconds[:s].copy(), home[:s].copy(),
        np.full(s, FORWARD), no, no, np.arange(d), np.zeros(d), first, following[:s].copy(),
        send_start, none, medium, moves, nothing, reader, np.zeros(num, dtype=np.bool_),
    )  # fmt: skip


@numba.njit(cache=True)
def _in_flight(work: StageWork, m: int) -> int:
    """Micro-batches in the pipeline at once, as `evaluate.in_flight_of` has it."""
    d = len(work.team)
    most = d if not len(work.medium) else max(d, work.medium.max() + 1)
    load_s, s = np.zeros(most), len(work.seconds)
    for r in range(s):
        load_s[work.device[r]] += work.seconds[r]
    for t in range(len(work.medium)):
        load_s[work.medium[t]] += work.move_s[t]
    if s == 1:
        return 1
    largest_s, enough = load_s.max(), 1
    if 0 < largest_s < np.inf:
        enough = 2 * int(np.ceil(load_s.sum() / largest_s)) + 2
    return min(s + 1, enough, m)
