"""Replay of stages and transfers, compiled: the same times as `pipeline.py` to the last bit.

A medium, a device and a carrier have one event ahead of them each: the next arrival, the end of a
stage (or of the sum of gradients that it waits for), the end of a transfer or of its latency. A
tournament tree holds them; of events at one time the arrivals on shared media go first.
"""

from typing import Any, NamedTuple

import numpy as np

from scheduler.evaluation.dispatch import Times, awaited, expected, no_times, runs_at
from scheduler.evaluation.stage_work import StageWork
from simulator.agenda import Agenda
from simulator.fast_state import compiled, compiled_inline


class State(NamedTuple):
    """Where a replay is: r resources (g media, then d devices, then c carriers), p a power of 2.

    Attributes:
        event_s: (p,) next event of every resource, infinite where none is ahead.
        winner: (2 p,) the resource that is first in each part of the tree; the root is 1.
        missing: (m, s) transfers that a stage waits for.
        unfinished: (m,) stages, optimizers left out.
        awaited: (d,) of a team, what is to come before its gradients are summed.
        summed_s: (d,) of a team, when they are.
        head: (d + c,) place of each device's and each carrier's next item in the agenda.
        busy: (d + c,) whether it works on that item.
        asked: (m * t,) whether a transfer's tensor is there.
        virtual_s, at_s, flows: of each medium, see `fair_medium.py`.
        heap: carriers whose tensors are on a shared medium, a heap by `end_s` for each medium.
        heap_start: (g + 1,) where the heap of each medium lies.
        end_s: (c,) virtual time at which a carrier's tensor arrives.
        alone: (c,) whether nothing had been shared when it entered.
    """

    event_s: Any
    winner: Any
    missing: Any
    unfinished: Any
    awaited: Any
    summed_s: Any
    head: Any
    busy: Any
    asked: Any
    virtual_s: Any
    at_s: Any
    flows: Any
    heap: Any
    heap_start: Any
    end_s: Any
    alone: Any


def run_fast(work: StageWork, agenda: Agenda, num_micro_batches: int) -> Times:
    """Times (s) of stages and transfers."""
    times = no_times(num_micro_batches, work)
    _run(work, agenda, _new_state(work, agenda, times), times)
    return times


def _new_state(work: StageWork, agenda: Agenda, times: Times) -> State:
    m = len(times.start_s)
    num_media = int(agenda.medium.max(initial=-1)) + 1
    num_devices, num_carriers = len(agenda.stage_start) - 1, len(agenda.medium)
    sharing = np.bincount(agenda.medium[agenda.medium >= 0], minlength=num_media)
    left = awaited(work, m)
    leaves = 1 << (num_media + num_devices + num_carriers).bit_length()
    tree = np.arange(2 * leaves) - leaves
    for width in (leaves >> k for k in range(1, leaves.bit_length())):
        tree[width : 2 * width] = tree[2 * width : 4 * width : 2]
    return State(
        np.full(leaves, np.inf), tree, expected(work, m),
        np.resize((~work.once).reshape(work.turns, -1).sum(axis=1), m),
        left, np.where(left > 0, np.inf, 0.0),
        np.concatenate([agenda.stage_start[:-1], agenda.transfer_start[:num_carriers]]),
        np.zeros(num_devices + num_carriers, np.bool_),
        np.zeros(times.left_s.size, np.bool_),
        np.zeros(num_media), np.zeros(num_media), np.zeros(num_media, np.int64),
        np.zeros(num_carriers, np.int64), np.concatenate([[0], np.cumsum(sharing)]),
        np.zeros(num_carriers), np.zeros(num_carriers, np.bool_),
    )  # fmt: skip


@compiled
def _run(work, agenda, q, times):
    num_media, num_devices = len(q.virtual_s), len(agenda.stage_start) - 1
    for p in range(num_devices):
        _start(work, agenda, q, times, p, 0.0)
    while True:
        x = q.winner[1]
        now_s = q.event_s[x]
        if now_s == np.inf:
            return
        if x < num_media:
            _settle(work, agenda, q, times, x, now_s)
            _look_ahead(q, x, now_s)
        elif x < num_media + num_devices:
            _set(q, x, np.inf)
            if q.busy[x - num_media]:
                _end_stage(work, agenda, q, times, x - num_media, now_s)
            else:
                _start(work, agenda, q, times, x - num_media, now_s)
        else:
            _set(q, x, np.inf)
            c = x - num_media - num_devices
            if agenda.medium[c] < 0:
                _arrive(work, agenda, q, times, c, now_s)
            else:
                _enter(work, agenda, q, times, c, now_s)


@compiled_inline
def _set(q, x, event_s):
    """Give a resource its next event."""
    q.event_s[x] = event_s
    node = (x + len(q.event_s)) >> 1
    while node:
        left, right = q.winner[2 * node], q.winner[2 * node + 1]
        first = right if q.event_s[right] < q.event_s[left] else left
        if first == q.winner[node] and first != x:
            return
        q.winner[node] = first
        node >>= 1


@compiled
def _start(work, agenda, q, times, p, now_s):
    """Start the next stage of device p if it is free and nothing is missing."""
    if q.busy[p] or q.head[p] == agenda.stage_start[p + 1]:
        return
    s = len(work.seconds) // work.turns
    task = agenda.stage[q.head[p]]
    k, at = task // s, task % s
    i = k % work.turns * s + at
    if q.missing[k, at] or (k >= agenda.in_flight and q.unfinished[k - agenda.in_flight]):
        return
    if work.once[i] and now_s < q.summed_s[work.team[p]]:
        _set(q, len(q.virtual_s) + p, q.summed_s[work.team[p]])
        return
    q.busy[p] = True
    times.start_s[k, at] = now_s
    times.end_s[k, at] = now_s + work.seconds[i]
    _set(q, len(q.virtual_s) + p, now_s + work.seconds[i])


@compiled_inline
def _end_stage(work, agenda, q, times, p, now_s):
    s, num_devices = len(work.seconds) // work.turns, len(agenda.stage_start) - 1
    num_transfers = len(work.link) // work.turns
    task = agenda.stage[q.head[p]]
    k = task // s
    i = k % work.turns * s + task % s
    q.busy[p] = False
    q.head[p] += 1
    for t in range(work.send_start[i], work.send_start[i + 1]):
        q.asked[k * num_transfers + t % num_transfers] = True
        _send(work, agenda, q, times, agenda.carrier[t], now_s)
    if not work.once[i]:
        q.unfinished[k] -= 1
        _await_less(work, agenda, q, times, work.team[p], now_s)
    if q.unfinished[k] or work.once[i]:
        _start(work, agenda, q, times, p, now_s)
    else:
        for other in range(num_devices):
            _start(work, agenda, q, times, other, now_s)


@compiled_inline
def _await_less(work, agenda, q, times, team, now_s):
    """After the last that a team awaits, its ring sums; those that wait for it look again."""
    q.awaited[team] -= 1
    if q.awaited[team] == 0:
        q.summed_s[team] = now_s + work.sum_s[team]
        for p in range(len(agenda.stage_start) - 1):
            if work.team[p] == team:
                _start(work, agenda, q, times, p, now_s)


@compiled
def _send(work, agenda, q, times, c, now_s):
    """Start the next transfer of carrier c if it is free and the tensor is there."""
    num_devices = len(agenda.stage_start) - 1
    at = q.head[num_devices + c]
    if q.busy[num_devices + c] or at == agenda.transfer_start[c + 1]:
        return
    transfer = agenda.transfer[at]
    if not q.asked[transfer]:
        return
    q.busy[num_devices + c] = True
    num_transfers = len(work.link) // work.turns
    k, at = transfer // num_transfers, transfer % num_transfers
    t = k % work.turns * num_transfers + at
    times.left_s[k, at] = now_s
    ahead_s = work.move_s[t] if agenda.medium[c] < 0 else work.latency_s[t]
    _set(q, len(q.virtual_s) + num_devices + c, now_s + ahead_s)


@compiled
def _arrive(work, agenda, q, times, c, now_s):
    """The tensor of carrier c arrives; the stage that waits for it may start."""
    x = len(agenda.stage_start) - 1 + c
    transfer = agenda.transfer[q.head[x]]
    num_transfers = len(work.link) // work.turns
    k, at = transfer // num_transfers, transfer % num_transfers
    t = k % work.turns * num_transfers + at
    times.arrived_s[k, at] = now_s
    q.busy[x] = False
    q.head[x] += 1
    _send(work, agenda, q, times, c, now_s)
    i = work.reader[t]
    s = len(work.seconds) // work.turns
    q.missing[runs_at(work, i, len(q.unfinished), k), i % s] -= 1
    if work.gathered[t]:
        _await_less(work, agenda, q, times, work.team[work.device[i]], now_s)
    _start(work, agenda, q, times, work.device[i], now_s)


@compiled_inline
def _enter(work, agenda, q, times, c, now_s):
    """The tensor of carrier c enters its shared medium."""
    g, x = agenda.medium[c], len(agenda.stage_start) - 1 + c
    _settle(work, agenda, q, times, g, now_s)
    if q.flows[g] == 0:
        q.virtual_s[g] = now_s
    transfer = agenda.transfer[q.head[x]]
    num_transfers = len(work.link) // work.turns
    k, at = transfer // num_transfers, transfer % num_transfers
    t = k % work.turns * num_transfers + at
    end_s = times.left_s[k, at] + work.move_s[t]
    if end_s <= now_s:
        _arrive(work, agenda, q, times, c, now_s)
    else:
        q.alone[c] = q.virtual_s[g] == now_s
        q.end_s[c] = end_s
        if not q.alone[c]:
            q.end_s[c] = q.virtual_s[g] + (work.move_s[t] - work.latency_s[t])
        _push(q, g, c)
    _look_ahead(q, g, now_s)


@compiled
def _settle(work, agenda, q, times, g, now_s):
    """Do the work of medium g until now, and let those arrive that are done."""
    if q.flows[g] and q.event_s[g] <= now_s:
        low_s = q.end_s[q.heap[q.heap_start[g]]]
        q.virtual_s[g] = low_s
        while q.flows[g] and q.end_s[q.heap[q.heap_start[g]]] <= low_s:
            _arrive(work, agenda, q, times, _pop(q, g), now_s)
    elif q.flows[g]:
        q.virtual_s[g] += (now_s - q.at_s[g]) / q.flows[g]
    q.at_s[g] = now_s


@compiled_inline
def _look_ahead(q, g, now_s):
    """Plan the next arrival on medium g."""
    if q.flows[g] == 0:
        _set(q, g, np.inf)
        return
    c = q.heap[q.heap_start[g]]
    event_s = q.end_s[c]
    if q.flows[g] > 1 or not q.alone[c] or q.virtual_s[g] != q.at_s[g]:
        event_s = now_s + max(0.0, (event_s - q.virtual_s[g]) * q.flows[g])
    _set(q, g, event_s)


@compiled_inline
def _push(q, g, c):
    a, k = q.heap_start[g], q.flows[g]
    q.flows[g] += 1
    while k and q.end_s[c] < q.end_s[q.heap[a + (k - 1) // 2]]:
        q.heap[a + k] = q.heap[a + (k - 1) // 2]
        k = (k - 1) // 2
    q.heap[a + k] = c


@compiled_inline
def _pop(q, g):
    """Take out the carrier whose tensor arrives first."""
    a = q.heap_start[g]
    first = q.heap[a]
    q.flows[g] -= 1
    size, k = q.flows[g], 0
    last = q.heap[a + size]
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and q.end_s[q.heap[a + child + 1]] < q.end_s[q.heap[a + child]]:
            child += 1
        if q.end_s[last] <= q.end_s[q.heap[a + child]]:
            break
        q.heap[a + k] = q.heap[a + child]
        k = child
    q.heap[a + k] = last
    return first
