"""Replay of stages and transfers, compiled: the same times as `pipeline.py` to the last bit."""

import heapq
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from scheduler.dispatch import Times, expected, no_times
from scheduler.stage_work import StageWork
from simulator.agenda import Agenda

# Kinds of events; of those at one time the lower goes first.
SHARED_ARRIVAL, STAGE_END, ARRIVAL, ENTRY = range(4)


class Media(NamedTuple):
    """Fair media, see `fair_medium.py`; c carriers, media by number.

    Attributes:
        virtual_s, at_s, next_s, version: of each medium.
        end_s: (c,) virtual time at which a carrier's tensor arrives, infinite where none is.
        alone: (c,) whether nothing had been shared when it entered.
        carriers: those that share each medium, from `start` on.
    """

    virtual_s: Any
    at_s: Any
    next_s: Any
    version: Any
    end_s: Any
    alone: Any
    start: Any
    carriers: Any


def run_fast(work: StageWork, agenda: Agenda, num_micro_batches: int) -> Times:
    """Times (s) of stages and transfers."""
    times = no_times(num_micro_batches, work)
    shared = np.flatnonzero(agenda.medium >= 0)
    carriers = shared[np.argsort(agenda.medium[shared], kind="stable")]
    num_media = int(agenda.medium.max(initial=-1)) + 1
    counts = np.bincount(agenda.medium[shared], minlength=num_media)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    media = Media(
        np.zeros(num_media), np.zeros(num_media), np.full(num_media, np.inf),
        np.zeros(num_media, np.int64), np.full(len(agenda.medium), np.inf),
        np.zeros(len(agenda.medium), np.bool_), start, carriers,
    )  # fmt: skip
    _run(work, agenda, media, times)
    return times


@njit(cache=True)
def _settle(media, medium, now_s, arrived):
    """Do the work until now; `arrived` takes the carriers that are done. Returns (done, left)."""
    mine = media.carriers[media.start[medium] : media.start[medium + 1]]
    low_s, flows, num_arrived = np.inf, 0, 0
    for c in mine:
        if media.end_s[c] < np.inf:
            flows += 1
            low_s = min(low_s, media.end_s[c])
    if flows and media.next_s[medium] <= now_s:
        media.virtual_s[medium] = low_s
        for c in mine:
            if media.end_s[c] <= low_s:
                media.end_s[c] = np.inf
                arrived[num_arrived] = c
                num_arrived += 1
    elif flows:
        media.virtual_s[medium] += (now_s - media.at_s[medium]) / flows
    media.at_s[medium] = now_s
    return num_arrived, flows - num_arrived


@njit(cache=True)
def _look_ahead(media, medium, now_s, events):
    """Plan the next arrival."""
    media.version[medium] += 1
    media.next_s[medium] = np.inf
    low_s, flows, first = np.inf, 0, -1
    for c in media.carriers[media.start[medium] : media.start[medium + 1]]:
        if media.end_s[c] < np.inf:
            flows += 1
            if media.end_s[c] < low_s:
                low_s, first = media.end_s[c], c
    if flows == 0:
        return
    virtual_s = media.virtual_s[medium]
    if flows > 1 or not media.alone[first] or virtual_s != media.at_s[medium]:
        low_s = now_s + max(0.0, (low_s - virtual_s) * flows)
    media.next_s[medium] = low_s
    heapq.heappush(events, (low_s, SHARED_ARRIVAL, medium, media.version[medium]))


@njit(cache=True)
def _run(work, agenda, media, times):
    m, s = times.start_s.shape
    num_transfers, num_carriers = len(work.link), len(agenda.medium)
    missing = expected(work, m)
    unfinished = np.zeros(m, np.int64)
    for task in agenda.stage:
        unfinished[task // s] += 1
    num_devices = len(agenda.stage_start) - 1
    head, busy = agenda.stage_start[:-1].copy(), np.zeros(num_devices, np.bool_)
    turn = agenda.transfer_start[:num_carriers].copy()
    moving = np.zeros(num_carriers, np.bool_)
    ready = np.zeros(m * num_transfers, np.bool_)
    arrived = np.empty(max(1, num_carriers), np.int64)
    events = [(0.0, STAGE_END, -1, 0)]
    while len(events):
        now_s, kind, x, version = heapq.heappop(events)
        num_arrived = 0
        if kind == STAGE_END and x < 0:
            for p in range(num_devices):
                _start(work, agenda, times, head, busy, missing, unfinished, p, now_s, events)
        elif kind == STAGE_END:
            k, i = x // s, x % s
            p = work.device[i]
            busy[p] = False
            head[p] += 1
            for t in range(work.send_start[i], work.send_start[i + 1]):
                ready[k * num_transfers + t] = True
                c = agenda.carrier[t]
                _send(work, agenda, times, turn, moving, ready, c, now_s, events)
            unfinished[k] -= 1
            if unfinished[k] == 0:
                for q in range(num_devices):
                    _start(work, agenda, times, head, busy, missing, unfinished, q, now_s, events)
            else:
                _start(work, agenda, times, head, busy, missing, unfinished, p, now_s, events)
        elif kind == ARRIVAL:
            arrived[0], num_arrived = x, 1
        elif kind == ENTRY:
            medium, transfer = agenda.medium[x], agenda.transfer[turn[x]]
            k, t = transfer // num_transfers, transfer % num_transfers
            num_arrived, flows = _settle(media, medium, now_s, arrived)
            if flows == 0:
                media.virtual_s[medium] = now_s
            end_s = times.left_s[k, t] + work.move_s[t]
            if end_s <= now_s:
                arrived[num_arrived] = x
                num_arrived += 1
            else:
                media.alone[x] = media.virtual_s[medium] == now_s
                media.end_s[x] = end_s
                if not media.alone[x]:
                    work_s = work.move_s[t] - work.latency_s[t]
                    media.end_s[x] = media.virtual_s[medium] + work_s
            _look_ahead(media, medium, now_s, events)
        elif media.version[x] == version:
            num_arrived, _ = _settle(media, x, now_s, arrived)
            _look_ahead(media, x, now_s, events)
        for c in arrived[:num_arrived]:
            transfer = agenda.transfer[turn[c]]
            k, t = transfer // num_transfers, transfer % num_transfers
            times.arrived_s[k, t] = now_s
            moving[c] = False
            turn[c] += 1
            _send(work, agenda, times, turn, moving, ready, c, now_s, events)
            i = work.reader[t]
            missing[m - 1 if work.once[i] else k, i] -= 1
            p = work.device[i]
            _start(work, agenda, times, head, busy, missing, unfinished, p, now_s, events)


@njit(cache=True)
def _start(work, agenda, times, head, busy, missing, unfinished, p, now_s, events):
    """Start the next stage of device p if it is free and nothing is missing."""
    if busy[p] or head[p] == agenda.stage_start[p + 1]:
        return
    k, i = divmod(agenda.stage[head[p]], times.start_s.shape[1])
    if missing[k, i] > 0 or (k >= agenda.in_flight and unfinished[k - agenda.in_flight] > 0):
        return
    busy[p] = True
    times.start_s[k, i], times.end_s[k, i] = now_s, now_s + work.seconds[i]
    heapq.heappush(events, (times.end_s[k, i], STAGE_END, agenda.stage[head[p]], 0))


@njit(cache=True)
def _send(work, agenda, times, turn, moving, ready, c, now_s, events):
    """Start the next transfer of carrier c if it is free and the tensor is there."""
    if moving[c] or turn[c] == agenda.transfer_start[c + 1]:
        return
    transfer = agenda.transfer[turn[c]]
    if not ready[transfer]:
        return
    moving[c] = True
    k, t = divmod(transfer, times.left_s.shape[1])
    times.left_s[k, t] = now_s
    if agenda.medium[c] < 0:
        heapq.heappush(events, (now_s + work.move_s[t], ARRIVAL, c, 0))
    else:
        heapq.heappush(events, (now_s + work.latency_s[t], ENTRY, c, 0))
