"""One replica as arrays for compiled code: its sequences, its free blocks, the steps decided."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

NOBODY = -1


class State(NamedTuple):
    """One replica. Arrays (num_requests,) by request; the names are those of `_Replica`."""

    prompt: Any
    last: Any
    known: Any
    computed: Any
    held: Any
    base: Any
    finish: Any
    decoding: Any
    following: Any
    run_of: Any
    running: Any
    returned: Any
    finishing: Any
    growing: Any
    run_owner: Any
    run_count: Any
    n: Any


class Steps(NamedTuple):
    """Steps decided and not yet computed, a row each: chunks, first tokens, ends."""

    sizes: Any
    pasts: Any
    firsts: Any
    ends: Any
    numbers: Any


# Positions in State.n, the counters of a replica.
RUNNING, RETURNED, ARRIVED, ADMITTED, DECODES, BASE_SUM, PREFILLING = range(7)
LOWEST, LOWEST_KNOWN, NUMBER, PREEMPTIONS, FREE, RUN_HEAD, RUN_TAIL = range(7, 14)
# Positions in a row of Steps.numbers.
CHUNKS, STEP_DECODES, CONTEXT, LONGEST, FIRSTS, ENDS = range(6)


@njit(cache=True, inline="always")
def take(q, count):
    """Take free blocks, the longest free first."""
    q.n[FREE] -= count
    while count > 0:
        at = q.n[RUN_HEAD] % len(q.run_owner)
        taken = min(count, q.run_count[at])
        q.run_count[at] -= taken
        count -= taken
        if q.run_count[at] == 0:
            if q.run_owner[at] >= 0:
                q.run_of[q.run_owner[at]] = NOBODY
            q.n[RUN_HEAD] += 1


@njit(cache=True)
def _append_run(q, owner, count):
    if q.n[RUN_TAIL] - q.n[RUN_HEAD] == len(q.run_owner):
        _close_gaps(q)
    at = q.n[RUN_TAIL] % len(q.run_owner)
    q.run_owner[at], q.run_count[at] = owner, count
    if owner >= 0:
        q.run_of[owner] = at
    q.n[RUN_TAIL] += 1


@njit(cache=True)
def _close_gaps(q):
    head, size, kept = q.n[RUN_HEAD], len(q.run_owner), 0
    for k in range(head, q.n[RUN_TAIL]):
        at = k % size
        if q.run_count[at] > 0:
            to = (head + kept) % size
            q.run_owner[to], q.run_count[to] = q.run_owner[at], q.run_count[at]
            if q.run_owner[to] >= 0:
                q.run_of[q.run_owner[to]] = to
            kept += 1
    q.n[RUN_TAIL] = head + kept


@njit(cache=True)
def release(q, count, owner, cached):
    """Free blocks, of which the first `cached` still hold the owner's tokens."""
    q.n[FREE] += count
    if count > cached:
        at = (q.n[RUN_TAIL] - 1) % len(q.run_owner)
        if q.n[RUN_TAIL] > q.n[RUN_HEAD] and q.run_owner[at] < 0:
            q.run_count[at] += count - cached
        else:
            _append_run(q, NOBODY, count - cached)
    if cached > 0:
        _append_run(q, owner, cached)


@njit(cache=True)
def new_state(prompt, output, limits):
    """A replica before its first request; all blocks free."""
    _, max_running, num_blocks, page, _, _ = limits
    num = len(prompt)
    longest = output.max() if num else 1
    counters = np.zeros(14, np.int64)
    counters[PREFILLING] = NOBODY
    runs = 2 * num_blocks + 4 * max_running + 16
    q = State(
        prompt, prompt + output, prompt.copy(), np.zeros(num, np.int64), np.zeros(num, np.int64),
        np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, np.bool_),
        np.full(num, NOBODY, np.int64), np.full(num, NOBODY, np.int64),
        np.empty(max_running, np.int64), np.empty(max_running + 1, np.int64),
        np.full(longest + 2, NOBODY, np.int64), np.zeros(page, np.int64),
        np.full(runs, NOBODY, np.int64), np.zeros(runs, np.int64), counters,
    )  # fmt: skip
    release(q, num_blocks, NOBODY, 0)
    return q


@njit(cache=True)
def new_steps(depth, max_running):
    """Room for the steps decided ahead."""
    width = max_running + 1
    return Steps(
        np.zeros((depth, width), np.int64),
        np.zeros((depth, width), np.int64),
        np.zeros((depth, width), np.int64),
        np.zeros((depth, 2 * width), np.int64),
        np.zeros((depth, 6), np.int64),
    )
