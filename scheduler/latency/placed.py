"""Tasks that are placed and ordered, when they run, and what they send, compiled."""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.compiled import lean
from scheduler.list_scheduling.tasks import Tasks


class Order(NamedTuple):
    """Where tasks run, and in which order.

    Attributes:
        device: (n,) of each task.
        order, place: (n,) tasks in order, and the place of each.
    """

    device: Ints
    order: Ints
    place: Ints


class Times(NamedTuple):
    """When tasks run.

    Attributes:
        start, end: (n,) of each task (s).
        cause: (n,) the task that each one waited for, -1 where none.
        sent: (n, d) when what a task and those before it sent has passed the medium to a device.
        arrived: (t, d) when a tensor is on another device than its producer's.
    """

    start: Floats
    end: Floats
    cause: Ints
    sent: Floats
    arrived: Floats


@numba.njit(cache=True)
def ordered(device: Ints, order: Ints) -> Order:
    """Copy devices and order of the tasks."""
    place = np.empty(len(order), dtype=np.int64)
    for k in range(len(order)):
        place[order[k]] = k
    return Order(device.copy(), order.copy(), place)


@numba.njit(cache=True)
def no_times(tasks: Tasks) -> Times:
    """Room for the times of tasks."""
    n, d = tasks.w.shape
    t = len(tasks.producer)
    return Times(np.zeros(n), np.zeros(n), np.full(n, -1), np.zeros((n, d)), np.zeros((t, d)))


@numba.njit(cache=True)
def room_for_sends(tasks: Tasks) -> Ints:
    """Room for `to`, `what` and `urgency` of `list_sends`."""
    most, (n, d) = 0, tasks.w.shape
    for i in range(n):
        most = max(most, tasks.outs_start[i + 1] - tasks.outs_start[i])
    return np.empty((3, d * most), dtype=np.int64)


@lean
def list_sends(
    first: int, past: int, outs: Ints, start: Ints, reader: Ints, device: Ints, place: Ints, p: int,
    to: Ints, what: Ints, urgency: Ints,
) -> int:  # fmt: skip
    """Write what leaves device p with outs[first:past], the tensor read first first; its number."""
    sent = 0
    for k in range(first, past):
        t, opened = outs[k], sent
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
    if past == first + 1:
        return sent
    for k in range(1, sent):
        q, t, u = to[k], what[k], urgency[k]
        while k > 0 and urgency[k - 1] > u:
            to[k], what[k], urgency[k] = to[k - 1], what[k - 1], urgency[k - 1]
            k -= 1
        to[k], what[k], urgency[k] = q, t, u
    return sent


@lean
def ends_of(
    ends_s: Floats, medium: Ints, ins_start: Ints, ins: Ints, producer: Ints, outs_start: Ints,
    outs: Ints, start: Ints, reader: Ints, device: Ints, place: Ints, i: int,
) -> float:  # fmt: skip
    """Seconds that task i's device spends on what i sends and is the first there to receive.

    Infinite where no link brings it.
    """
    p, seconds = device[i], 0.0
    for e in range(ins_start[i], ins_start[i + 1]):
        t = ins[e]
        if device[producer[t]] != p:
            if medium[device[producer[t]], p] < 0:
                return np.inf
            is_first = True
            for r in range(start[t], start[t + 1]):
                j = reader[r]
                is_first = is_first and not (device[j] == p and place[j] < place[i])
            if is_first:
                seconds += ends_s[t, p]
    for e in range(outs_start[i], outs_start[i + 1]):
        t = outs[e]
        for r in range(start[t], start[t + 1]):
            if device[reader[r]] != p:
                seconds += ends_s[t, p]
                break
    return seconds
