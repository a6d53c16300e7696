"""A fleet as arrays for compiled code: sequences, queues, free blocks, the steps decided.

Queues and the running are linked lists through `NEXT` and `BEFORE`, so that joining and leaving
costs the same for one sequence and for a thousand.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from simulator.generations import Fleet, Generations, predicted_ns

# Compiled functions take views of arrays that the caller holds, so that numba need not count
# references to them (_nrt=False), which costs more than all the rest.
FLAGS: dict[str, Any] = {"cache": True, "_nrt": False, "error_model": "numpy"}
compiled: Any = njit(**FLAGS)
compiled_inline: Any = njit(**FLAGS, forceinline=True)
allocating: Any = njit(cache=True)

NOBODY = -1

# Columns of Arrays.sequences.
PROMPT, LAST, READY, KNOWN, COMPUTED, HELD, BASE, FINISH, DECODING = range(9)
FOLLOWING, RUN_OF, NEXT, BEFORE, WIDTH = range(9, 14)
# Columns of Arrays.counters, one row a server.
FRONT, BACK, WAITING_NOW, RETURNED, RETURNED_NOW, FIRST, LATEST, RUNNING_NOW = range(8)
DECODES, BASE_SUM, PREFILLING, LOWEST, LOWEST_KNOWN, NUMBER, PREEMPTIONS, FREE = range(8, 16)
RUN_HEAD, RUN_TAIL, STEP_HEAD, DECIDED, STEPS, SAMPLED, PROMPT_TOKENS, NUM_COUNTERS = range(16, 24)
# Columns of Arrays.clocks, one row a server.
END_S, SINCE_S, BUSY_S = range(3)
# Columns of Arrays.limits, one row a server.
BUDGET, MAX_RUNNING, NUM_BLOCKS, PAGE, CACHING, AHEAD, PROMPT_NS = range(7)
# Columns of Arrays.steps; chunks, first tokens and ends are listed in Arrays.listed.
CHUNKS, STEP_DECODES, CONTEXT, LONGEST, FIRSTS, ENDS = range(6)
# Rows of Arrays.listed.
SIZE_LIST, PAST_LIST, FIRST_LIST, END_LIST = range(4)


class Arrays(NamedTuple):
    """All that a simulation reads and writes.

    Attributes:
        due_s: (num_requests,) arrivals on the simulation's clock.
        sequences: (num_requests, WIDTH).
        limits, counters, clocks: (num_servers, ...).
        answer_ns: (num_servers, max_sequences + 1) of `predicted_ns`.
        growing: (num_servers, page) decoding sequences that need a block, by step modulo page.
        finishing: (num_servers, longest) first of those that end with a step, by step modulo.
        runs: (num_servers, size, 2) free blocks released together: owner and count.
        steps: (num_servers, 2, 6) steps decided.
        listed: (num_servers, 2, 4, width) what is in them.
        met: (3, num_requests) scheduled, first token, last token.
        server, timed_out: (num_requests,).
        sample_s, samples: (num_samples,), (num_samples, num_servers, 3).
    """

    due_s: Any
    sequences: Any
    limits: Any
    answer_ns: Any
    counters: Any
    clocks: Any
    growing: Any
    finishing: Any
    runs: Any
    steps: Any
    listed: Any
    met: Any
    server: Any
    timed_out: Any
    sample_s: Any
    samples: Any


def new_arrays(requests: Generations, fleet: Fleet, sample_s: Any) -> Arrays:
    """A fleet before its first request; all blocks free."""
    num, size = len(requests.arrival_s), len(fleet.servers)
    prompt_ns, answer_ns = predicted_ns(fleet, requests)
    limits = np.array(
        [
            (s.limits.token_budget, s.limits.max_sequences, s.limits.num_blocks,
             s.limits.block_tokens, s.limits.prefix_caching, s.limits.steps_ahead, ns)
            for s, ns in zip(fleet.servers, prompt_ns, strict=True)
        ],
        np.int64,
    )  # fmt: skip
    sequences = np.zeros((num, WIDTH), np.int32)
    sequences[:, PROMPT] = sequences[:, KNOWN] = requests.prompt_tokens
    sequences[:, LAST] = requests.prompt_tokens + requests.output_tokens
    sequences[:, READY] = requests.ready_tokens
    sequences[:, FOLLOWING:WIDTH] = NOBODY
    counters = np.zeros((size, NUM_COUNTERS), np.int64)
    for column in (FRONT, BACK, RETURNED, FIRST, LATEST, PREFILLING):
        counters[:, column] = NOBODY
    counters[:, FREE] = limits[:, NUM_BLOCKS]
    counters[:, RUN_TAIL] = 1
    most = int(limits[:, MAX_RUNNING].max())
    length = int(2 * limits[:, NUM_BLOCKS].max() + 4 * most + 16)
    runs = np.full((size, length, 2), NOBODY, np.int64)
    runs[:, :, 1] = 0
    runs[:, 0, 1] = limits[:, NUM_BLOCKS]
    longest = int(requests.output_tokens.max()) if num else 1
    clocks = np.zeros((size, 3))
    clocks[:, END_S] = np.inf
    return Arrays(
        _clock(requests.arrival_s.astype(np.float64)),
        sequences, limits, answer_ns, counters, clocks,
        np.zeros((size, int(limits[:, PAGE].max())), np.int64),
        np.full((size, longest + 2), NOBODY, np.int64), runs,
        np.zeros((size, 2, 6), np.int64), np.zeros((size, 2, 4, 2 * most + 2), np.int64),
        np.full((3, num), np.nan), np.full(num, NOBODY, np.int64), np.zeros(num, np.bool_),
        sample_s, np.zeros((len(sample_s), size, 3), np.int64),
    )  # fmt: skip


@allocating
def _clock(arrival_s):
    """`simulator.generations.clock_of`."""
    clock, now_s = np.empty_like(arrival_s), 0.0
    for i in range(len(arrival_s)):
        if arrival_s[i] > now_s:
            now_s = now_s + (arrival_s[i] - now_s)
        clock[i] = now_s
    return clock


@compiled_inline
def take(a, k, count):
    """Take free blocks, the longest free first."""
    n, runs = a.counters[k], a.runs[k]
    n[FREE] -= count
    while count > 0:
        at = n[RUN_HEAD] % len(runs)
        taken = min(count, runs[at, 1])
        runs[at, 1] -= taken
        count -= taken
        if runs[at, 1] == 0:
            if runs[at, 0] >= 0:
                a.sequences[runs[at, 0], RUN_OF] = NOBODY
            n[RUN_HEAD] += 1


@compiled
def _append_run(a, k, owner, count):
    n, runs = a.counters[k], a.runs[k]
    if n[RUN_TAIL] - n[RUN_HEAD] == len(runs):
        _close_gaps(a, k)
    at = n[RUN_TAIL] % len(runs)
    runs[at, 0], runs[at, 1] = owner, count
    if owner >= 0:
        a.sequences[owner, RUN_OF] = at
    n[RUN_TAIL] += 1


@compiled
def _close_gaps(a, k):
    n, runs = a.counters[k], a.runs[k]
    head, size, kept = n[RUN_HEAD], len(runs), 0
    for j in range(head, n[RUN_TAIL]):
        at = j % size
        if runs[at, 1] > 0:
            to = (head + kept) % size
            runs[to, 0], runs[to, 1] = runs[at, 0], runs[at, 1]
            if runs[to, 0] >= 0:
                a.sequences[runs[to, 0], RUN_OF] = to
            kept += 1
    n[RUN_TAIL] = head + kept


@compiled_inline
def release(a, k, count, owner, cached):
    """Free blocks, of which the first `cached` still hold the owner's tokens."""
    n, runs = a.counters[k], a.runs[k]
    n[FREE] += count
    if count > cached:
        at = (n[RUN_TAIL] - 1) % len(runs)
        if n[RUN_TAIL] > n[RUN_HEAD] and runs[at, 0] < 0:
            runs[at, 1] += count - cached
        else:
            _append_run(a, k, NOBODY, count - cached)
    if cached > 0:
        _append_run(a, k, owner, cached)


@compiled_inline
def append(a, k, r):
    """Put a sequence last among the running."""
    n, q = a.counters[k], a.sequences
    q[r, BEFORE], q[r, NEXT] = n[LATEST], NOBODY
    if n[LATEST] >= 0:
        q[n[LATEST], NEXT] = r
    else:
        n[FIRST] = r
    n[LATEST] = r
    n[RUNNING_NOW] += 1


@compiled_inline
def remove(a, k, r):
    """Take a sequence out of the running."""
    n, q = a.counters[k], a.sequences
    before, after = q[r, BEFORE], q[r, NEXT]
    if before >= 0:
        q[before, NEXT] = after
    else:
        n[FIRST] = after
    if after >= 0:
        q[after, BEFORE] = before
    else:
        n[LATEST] = before
    n[RUNNING_NOW] -= 1
