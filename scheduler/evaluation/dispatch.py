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
from scheduler.evaluation.stage_work import BACKWARD, FORWARD, StageWork
from scheduler.problem import Problem

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
        head: (d, m) next stage, of all turns', of a micro-batch on a device, -1 where none is.
        begun: (d, m) whether the device has begun the micro-batch.
        waiting: (d,) micro-batches begun and not done with all but the optimizer.
        forward_left: (d,) forward stages to run.
        oldest: (d,) a micro-batch before which all are done.
        busy: (d,) whether it runs something.
        awaited: (d,) of a team, what `awaited` counts.
        summed: (d,) of a team, whether its gradients are summed.
        changed: (d,) whether something happened since the device last looked for work.
        unfinished: (m,) stages, optimizers left out.
    """

    missing: Ints
    head: Ints
    begun: np.ndarray
    waiting: Ints
    forward_left: Ints
    oldest: Ints
    busy: np.ndarray
    awaited: Ints
    summed: np.ndarray
    changed: np.ndarray
    unfinished: Ints


def no_times(num_micro_batches: int, work: StageWork) -> Times:
    """Times of nothing yet."""
    sizes = [len(work.seconds) // work.turns] * 2 + [len(work.link) // work.turns] * 2
    return Times(*(np.full((num_micro_batches, size), np.nan) for size in sizes))


def most_waiting(problem: Problem, work: StageWork) -> Ints:
    """(d,) micro-batches that may wait on a device for their backward pass at once.

    A replica takes its share of those of its team.
    """
    m = problem.num_micro_batches
    took_part = (work.first >= 0).mean(axis=0)
    most = np.full(len(took_part), m)
    if problem.pipeline == "1f1b":
        most = np.minimum(most, _to_go(work))
    share: Ints = np.ceil(most * took_part - 1e-9).astype(np.int64)
    return np.maximum(1, share)


def in_pipeline(problem: Problem, work: StageWork) -> int:
    """Micro-batches of a training step that are in its pipeline at once."""
    m = problem.num_micro_batches
    return min(m, int(_to_go(work).max())) if problem.pipeline == "1f1b" else m


def _to_go(work: StageWork) -> Ints:
    """(d,) most devices on the way from a device's first forward stage to the end, it included."""
    to_go: Ints = _way_to_go(work, np.bincount(work.team)[work.team])
    return to_go


@numba.njit(cache=True)
def _way_to_go(work: StageWork, size: Ints) -> Ints:
    to_go = size[work.device]
    most = size.copy()
    for i in range(len(work.seconds) - 1, -1, -1):
        if work.phase[i] != FORWARD:
            continue
        after = work.following[i]
        if after >= 0 and work.phase[after] == FORWARD:
            to_go[i] = to_go[after]
        for t in range(work.send_start[i], work.send_start[i + 1]):
            if work.phase[work.reader[t]] == FORWARD:
                here, there = size[work.device[i]], size[work.device[work.reader[t]]]
                more = here + max(here, there) - 1
                to_go[i] = max(to_go[i], more + to_go[work.reader[t]])
        most[work.device[i]] = max(most[work.device[i]], to_go[i])
    return most


def expected(work: StageWork, m: int) -> Ints:
    """(m, s) transfers that every stage waits for; a stage that runs once waits for all."""
    turns, s = work.turns, len(work.seconds) // work.turns
    counts = ~work.left_out[_senders(work)]
    src, dst = _senders(work)[counts], work.reader[counts]
    often = ~work.once[dst]
    place = src[often] // s * s + dst[often] % s
    each = np.bincount(place, minlength=turns * s).reshape(turns, s)
    missing: Ints = each[np.arange(m) % turns]
    src, dst = src[~often], dst[~often]
    times = np.where(work.once[src], 1, m // turns)
    np.add.at(missing, (m - turns + dst // s, dst % s), times)
    return missing


def _senders(work: StageWork) -> Ints:
    """(t,) stage that sends each transfer."""
    return np.repeat(np.arange(len(work.seconds)), np.diff(work.send_start))


@numba.njit(cache=True)
def runs_at(work: StageWork, i: int, m: int, k: int) -> int:
    """The micro-batch with which stage i runs what micro-batch k sends it: the last of its turn."""
    return m - work.turns + i // (len(work.seconds) // work.turns) if work.once[i] else k


def awaited(work: StageWork, m: int) -> Ints:
    """(d,) by team: stages to end, and gradients to come to replicas, before optimizers start."""
    summed = work.gathered & ~work.once[_senders(work)]
    at = np.concatenate([work.device[~work.once], work.device[work.reader[summed]]])
    left: Ints = np.bincount(work.team[at], minlength=len(work.team)) * (m // work.turns)
    return left


def _new_progress(work: StageWork, m: int) -> _Progress:
    d, turns, s = len(work.team), work.turns, len(work.seconds) // work.turns
    forward = work.device[~work.once & (work.phase == FORWARD)]
    first, k = work.first[np.arange(m) % turns].T, np.arange(m)
    begins = ~work.once[first] | (m - turns + first // s == k)
    left = awaited(work, m)
    return _Progress(
        expected(work, m), np.ascontiguousarray(np.where((first >= 0) & begins, first, -1)),
        np.zeros((d, m), np.bool_), np.zeros(d, np.int64),
        np.bincount(forward, minlength=d) * (m // turns), np.zeros(d, np.int64),
        np.zeros(d, np.bool_), left, left == 0, np.ones(d, np.bool_),
        np.resize((~work.once).reshape(turns, s).sum(axis=1), m),
    )  # fmt: skip


@numba.njit(cache=True)
def nothing_done(work: StageWork, m: int) -> _Progress:
    """Where m micro-batches stand that are alike and have one phase, before they run."""
    s, d = len(work.seconds), len(work.team)
    missing, head = np.zeros((m, s), dtype=np.int64), np.empty((d, m), dtype=np.int64)
    for to in work.reader:
        missing[:, to] += 1
    for p in range(d):
        head[p] = work.first[0, p]
    zeros, no = np.zeros(d, dtype=np.int64), np.zeros(d, dtype=np.bool_)
    return _Progress(
        missing, head, np.zeros((d, m), dtype=np.bool_), zeros, zeros.copy(), zeros.copy(), no,
        zeros.copy(), np.ones(d, dtype=np.bool_), np.ones(d, dtype=np.bool_), np.full(m, s),
    )  # fmt: skip


@numba.njit(cache=True)
def _choose(work: StageWork, rule: int, most: Ints, q: _Progress, p: int, admitted: int) -> int:
    """The micro-batch whose next stage device p takes, -1 if none may start."""
    s = q.missing.shape[1]
    while q.oldest[p] < len(q.unfinished) and q.head[p, q.oldest[p]] < 0:
        q.oldest[p] += 1
    for k in range(q.oldest[p], admitted):
        i = q.head[p, k]
        if i < 0:
            continue
        enters = rule == ONE_FORWARD_ONE_BACKWARD and not q.begun[p, k]
        if enters and (
            q.missing[k, i % s] > 0 or (work.phase[i] == FORWARD and q.waiting[p] >= most[p])
        ):
            return -1
        if q.missing[k, i % s] > 0 or (work.once[i] and not q.summed[work.team[p]]):
            continue
        if rule == ALL_FORWARD_FIRST and work.phase[i] == BACKWARD and q.forward_left[p] > 0:
            continue
        return k
    return -1


@numba.njit(cache=True)
def _end_stage(work: StageWork, q: _Progress, k: int, i: int) -> None:
    p = work.device[i]
    q.busy[p], q.changed[p] = False, True
    after = work.following[i]
    if after >= 0 and runs_at(work, after, len(q.unfinished), k) != k:
        after = -1
    q.head[p, k] = after
    if work.once[i]:
        return
    q.unfinished[k] -= 1
    if work.phase[i] == FORWARD:
        q.forward_left[p] -= 1
    if after < 0 or work.once[after]:
        q.waiting[p] -= 1


def dispatch(
    work: StageWork, rule: int, most: Ints, in_flight: int, times: Times
) -> tuple[Ints, Ints]:
    """Fill `times`; returns stages (k * s + i) and transfers (k * t + j) in the order of starting.

    A free device takes the ready stage of the oldest micro-batch that the rule lets it take. A
    medium carries transfers one at a time, first come first served. Micro-batch k enters when
    k - in_flight has left. O((stages + transfers) (log + in_flight)).
    """
    progress = _new_progress(work, len(times.start_s))
    order: tuple[Ints, Ints] = run(work, rule, most, in_flight, times, progress)
    return order


@numba.njit(cache=True)
def run(
    work: StageWork, rule: int, most: Ints, in_flight: int, times: Times, q: _Progress
) -> tuple[Ints, Ints]:
    """What `dispatch` does, from `q` on."""
    m, s = times.start_s.shape
    num_transfers = times.left_s.shape[1]
    free_s = np.zeros(work.medium.max() + 1 if num_transfers else 0)
    started = np.empty(m * s, np.int64)
    sent = np.empty(m * num_transfers, np.int64)
    num_started, num_sent, admitted = 0, 0, min(in_flight, m)
    # (time, tie break, micro-batch, stage that ends, or transfer that arrives, whether it is one);
    # micro-batch -1: the gradients of a team are summed
    events = [(0.0, 0, -1, -1, False)]
    while len(events):
        now_s, _, k, i, arrives = heapq.heappop(events)
        less = -1  # a team that waits for less than before
        if arrives:
            to = work.reader[i]
            q.missing[k, to % s] -= 1
            q.changed[work.device[to]] = True
            less = work.team[work.device[to]] if work.gathered[i] else -1
        elif k >= 0:
            _end_stage(work, q, k, i)
            less = -1 if work.once[i] else work.team[work.device[i]]
            for t in range(work.send_start[i], work.send_start[i + 1]):
                left_s, to = max(now_s, free_s[work.medium[t]]), work.reader[t]
                arrived_s = free_s[work.medium[t]] = left_s + work.move_s[t]
                at = t % num_transfers
                times.left_s[k, at], times.arrived_s[k, at] = left_s, arrived_s
                sent[num_sent] = k * num_transfers + at
                num_sent += 1
                reader_k = runs_at(work, to, m, k)
                heapq.heappush(events, (arrived_s, num_started + num_sent, reader_k, t, True))
            while admitted < m and q.unfinished[admitted - in_flight] == 0:
                admitted += 1
                q.changed[:] = True
        elif i >= 0:
            q.summed[i] = q.changed[:] = True
        if less >= 0:
            q.awaited[less] -= 1
            if q.awaited[less] == 0 and work.sum_s[less] == 0:
                q.summed[less] = q.changed[:] = True
            elif q.awaited[less] == 0:
                summed_s = now_s + work.sum_s[less]
                heapq.heappush(events, (summed_s, num_started + num_sent, -1, less, False))
        if len(events) and events[0][0] <= now_s:
            continue
        for p in range(len(work.team)):
            if q.busy[p] or not q.changed[p]:
                continue
            q.changed[p] = False
            k = _choose(work, rule, most, q, p, admitted)
            if k >= 0:
                i = q.head[p, k]
                q.waiting[p] += 0 if q.begun[p, k] else 1
                q.begun[p, k] = q.busy[p] = True
                end_s = now_s + work.seconds[i]
                times.start_s[k, i % s], times.end_s[k, i % s] = now_s, end_s
                started[num_started] = k * s + i % s
                num_started += 1
                heapq.heappush(events, (end_s, num_started + num_sent, k, i, False))
    return started[:num_started], sent[:num_sent]
