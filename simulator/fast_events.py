"""Events in compiled code: a heap by time, then by order of scheduling, as SimPy has it."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

EVENT = np.dtype([("time_s", "f8"), ("order", "i8"), ("heap", "i8")], align=True)
"""Of each event, pending at most once; `heap` holds the numbers of the pending ones."""

PENDING, SCHEDULED = 0, 1
"""Places of `counts`: the pending events, and all that were ever scheduled."""


def new_events(num: int) -> NDArray[Any]:
    """Room for events 0 ... num - 1."""
    return np.zeros(num, EVENT)


@njit(cache=True)
def schedule(events, counts, event, time_s):
    """Let an event happen at a time."""
    events[event].time_s = time_s
    events[event].order = counts[SCHEDULED]
    k = counts[PENDING]
    counts[SCHEDULED] += 1
    counts[PENDING] += 1
    while k:
        parent = (k - 1) // 2
        if not _before(events, event, events[parent].heap):
            break
        events[k].heap = events[parent].heap
        k = parent
    events[k].heap = event


@njit(cache=True)
def take_next(events, counts):
    """Take the next event out."""
    first = events[0].heap
    counts[PENDING] -= 1
    size, k = counts[PENDING], 0
    last = events[size].heap
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and _before(events, events[child + 1].heap, events[child].heap):
            child += 1
        if not _before(events, events[child].heap, last):
            break
        events[k].heap = events[child].heap
        k = child
    events[k].heap = last
    return first


@njit(cache=True)
def _before(events, a, b):
    if events[a].time_s == events[b].time_s:
        return events[a].order < events[b].order
    return events[a].time_s < events[b].time_s
