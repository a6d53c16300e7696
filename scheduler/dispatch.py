"""Run the stages of a plan as soon as they are ready: the scheduler's own timeline, compiled.

In training a batch of several micro-batches passes forward and backward through the devices:

- `gpipe`: a device runs all forward passes, then all backward passes. Source: Huang et al.,
  "GPipe", NeurIPS 2019, arXiv:1811.06965.
- `1f1b`: a backward pass goes first, and a device that is the k-th of n on the way forward starts
  no forward pass while n - k micro-batches (k from 0) wait there for their backward pass. Where the
  way comes back to a device, the device counts again. Source: Narayanan et al., "PipeDream", SOSP
  2019, doi:10.1145/3341301.3359646; with one update per batch.
"""

import heapq
from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.problem import Problem
from scheduler.stage_work import BACKWARD, FORWARD, StageWork

OLDEST_FIRST, ONE_FORWARD_ONE_BACKWARD, ALL_FORWARD_FIRST = range(3)


class Times(NamedTuple):
    """When m micro-batches do what; NaN for what a micro-batch leaves out.

    Attributes:
        start_s, end_s: (m, s) of stages.
        left_s, arrived_s: (m, t) of transfers.
    """

    start_s: Floats
    end_s: Floats
    left_s: Floats
    arrived_s: Floats


class _Progress(NamedTuple):
    """How far d devices and m micro-batches are.

    Attributes:
        missing: (m, s) transfers that a stage still waits for.
        head: (d, m) next stage of a micro-batch on a device, -1 where it has none left.
        begun: (d, m) whether the device has begun the micro-batch.
        waiting: (d,) micro-batches begun and not done with all but the optimizer.
        left, forward_left: (d,) stages to run, and forward ones, optimizers left out.
        oldest: (d,) a micro-batch before which all are done.
        busy: (d,) whether it runs something.
        changed: (d,) whether something happened since the device last looked for work.
        unfinished: (m,) stages.
    """

    missing: Ints
    head: Ints
    begun: np.ndarray
    waiting: Ints
    left: Ints
    forward_left: Ints
    oldest: Ints
    busy: np.ndarray
    changed: np.ndarray
    unfinished: Ints


def no_times(num_micro_batches: int, work: StageWork) -> Times:
    """Times of nothing yet."""
    shapes = [(num_micro_batches, len(work.seconds))] * 2 + [
        (num_micro_batches, len(work.link))
    ] * 2
    return Times(*(np.full(shape, np.nan) for shape in shapes))


def most_waiting(problem: Problem, work: StageWork) -> Ints:
    """(d,) micro-batches that may wait on a device for their backward pass at once."""
    most = np.full(len(work.first), problem.num_micro_batches, dtype=np.int64)
    if problem.pipeline == "1f1b":
        most = np.minimum(most, _to_go(work))
    return most


@numba.njit(cache=True)
def _to_go(work: StageWork) -> Ints:
    """(d,) most devices on the way from a device's first forward stage to the end, it included."""
    to_go = np.ones(len(work.seconds), np.int64)
    most = np.ones(len(work.first), np.int64)
    for i in range(len(work.seconds) - 1, -1, -1):
        if work.phase[i] != FORWARD:
            continue
        after = work.following[i]
        if after >= 0 and work.phase[after] == FORWARD:
            to_go[i] = to_go[after]
        for t in range(work.send_start[i], work.send_start[i + 1]):
            if work.phase[work.reader[t]] == FORWARD:
                to_go[i] = max(to_go[i], 1 + to_go[work.reader[t]])
        most[work.device[i]] = max(most[work.device[i]], to_go[i])
    return most


@numba.njit(cache=True)
def expected(work: StageWork, m: int) -> Ints:
    """(m, s) transfers that every stage waits for; a stage that runs once waits for all."""
    missing = np.zeros((m, len(work.seconds)), np.int64)
    for i in range(len(work.seconds)):
        for t in range(work.send_start[i], work.send_start[i + 1]):
            j = work.reader[t]
            if work.once[j]:
                missing[m - 1, j] += 1 if work.once[i] else m
            else:
                missing[:, j] += 1
    return missing


@numba.njit(cache=True)
def _new_progress(work: StageWork, m: int) -> _Progress:
    s, d = len(work.seconds), len(work.first)
    left, forward_left = np.zeros(d, np.int64), np.zeros(d, np.int64)
    unfinished = np.zeros(m, np.int64)
    for i in range(s):
        if work.once[i]:
            unfinished[m - 1] += 1
        else:
            unfinished += 1
            left[work.device[i]] += m
            forward_left[work.device[i]] += m if work.phase[i] == FORWARD else 0
    head = np.full((d, m), -1)
    for p in range(d):
        if work.first[p] >= 0:
            head[p, m - 1 if work.once[work.first[p]] else 0 :] = work.first[p]
    return _Progress(
        expected(work, m), head, np.zeros((d, m), np.bool_), np.zeros(d, np.int64), left,
        forward_left, np.zeros(d, np.int64), np.zeros(d, np.bool_),
        np.ones(d, np.bool_), unfinished,
    )  # fmt: skip


@numba.njit(cache=True)
def _choose(work: StageWork, rule: int, most: Ints, q: _Progress, p: int, admitted: int) -> int:
    """The micro-batch whose next stage device p takes, -1 if none may start."""
    while q.oldest[p] < len(q.unfinished) and q.head[p, q.oldest[p]] < 0:
        q.oldest[p] += 1
    for k in range(q.oldest[p], admitted):
        i = q.head[p, k]
        if i < 0:
            continue
        enters = rule == ONE_FORWARD_ONE_BACKWARD and not q.begun[p, k]
        if enters and (
            q.missing[k, i] > 0 or (work.phase[i] == FORWARD and q.waiting[p] >= most[p])
        ):
            return -1
        if q.missing[k, i] > 0 or (work.once[i] and q.left[p] > 0):
            continue
        if rule == ALL_FORWARD_FIRST and work.phase[i] == BACKWARD and q.forward_left[p] > 0:
            continue
        return k
    return -1


@numba.njit(cache=True)
def _end_stage(work: StageWork, q: _Progress, k: int, i: int) -> None:
    p = work.device[i]
    q.busy[p], q.changed[p] = False, True
    q.unfinished[k] -= 1
    after = work.following[i]
    if after >= 0 and work.once[after] and k < len(q.unfinished) - 1:
        after = -1
    q.head[p, k] = after
    if work.once[i]:
        return
    q.left[p] -= 1
    if work.phase[i] == FORWARD:
        q.forward_left[p] -= 1
    if after < 0 or work.once[after]:
        q.waiting[p] -= 1


@numba.njit(cache=True)
def dispatch(
    work: StageWork, rule: int, most: Ints, in_flight: int, times: Times
) -> tuple[Ints, Ints]:
    """Fill `times`; returns stages (k * s + i) and transfers (k * t + j) in the order of starting.

    A free device takes the ready stage of the oldest micro-batch that the rule lets it take. A
    medium carries transfers one at a time, first come first served. Micro-batch k enters when
    k - in_flight has left. O((stages + transfers) (log + in_flight)).
    """
    m, s = times.start_s.shape
    num_transfers = len(work.link)
    q = _new_progress(work, m)
    free_s = np.zeros(work.medium.max() + 1 if num_transfers else 0)
    started = np.empty(q.unfinished.sum(), np.int64)
    sent = np.empty(m * num_transfers, np.int64)
    num_started, num_sent, admitted = 0, 0, min(in_flight, m)
    # (end, tie break, micro-batch, stage, whether it is a transfer that arrives at the stage)
    events = [(0.0, 0, -1, -1, False)]
    while len(events):
        now_s, _, k, i, arrives = heapq.heappop(events)
        if arrives:
            q.missing[k, i] -= 1
            q.changed[work.device[i]] = True
        elif k >= 0:
            _end_stage(work, q, k, i)
            for t in range(work.send_start[i], work.send_start[i + 1]):
                left_s, to = max(now_s, free_s[work.medium[t]]), work.reader[t]
                arrived_s = free_s[work.medium[t]] = left_s + work.move_s[t]
                times.left_s[k, t], times.arrived_s[k, t] = left_s, arrived_s
                sent[num_sent] = k * num_transfers + t
                num_sent += 1
                reader_k = m - 1 if work.once[to] else k
                heapq.heappush(events, (arrived_s, num_started + num_sent, reader_k, to, True))
            while admitted < m and q.unfinished[admitted - in_flight] == 0:
                admitted += 1
                q.changed[:] = True
        if len(events) and events[0][0] <= now_s:
            continue
        for p in range(len(work.first)):
            if q.busy[p] or not q.changed[p]:
                continue
            q.changed[p] = False
            k = _choose(work, rule, most, q, p, admitted)
            if k >= 0:
                i = q.head[p, k]
                q.waiting[p] += 0 if q.begun[p, k] else 1
                q.begun[p, k] = q.busy[p] = True
                times.start_s[k, i], times.end_s[k, i] = now_s, now_s + work.seconds[i]
                started[num_started] = k * s + i
                num_started += 1
                heapq.heappush(events, (times.end_s[k, i], num_started + num_sent, k, i, False))
    return started[:num_started], sent[:num_sent]
