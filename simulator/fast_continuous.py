"""Continuous batching of a fleet, compiled: `simulator.continuous`, to the last bit.

O(requests x servers + steps in which somebody joins or leaves), and a few nanoseconds for every
other step.
"""

import math
from collections.abc import Sequence

import numpy as np

from simulator.fast_coasting import coast
from simulator.fast_llm_server import complete, expire, schedule
from simulator.fast_state import (
    AHEAD,
    BACK,
    BUSY_S,
    DECIDED,
    END_S,
    FREE,
    FRONT,
    LAST,
    MAX_RUNNING,
    NEXT,
    NUM_BLOCKS,
    PAGE,
    PREEMPTIONS,
    PROMPT,
    PROMPT_NS,
    PROMPT_TOKENS,
    RETURNED_NOW,
    RUNNING_NOW,
    SAMPLED,
    SINCE_S,
    STEP_HEAD,
    STEPS,
    WAITING_NOW,
    compiled,
    compiled_inline,
    new_arrays,
)
from simulator.fast_step_times import step_seconds, tables_of
from simulator.generations import Fleet, Generations, GenerationTimes

ROUTINGS = ("round_robin", "shortest_queue", "fastest")


def generate_fast(
    requests: Generations, fleet: Fleet, sample_s: Sequence[float] = ()
) -> GenerationTimes:
    """What `simulator.continuous.generate` gives, from compiled code."""
    a = new_arrays(requests, fleet, np.array(sample_s, np.float64))
    max_queue = len(a.due_s) + 1 if fleet.max_queue is None else fleet.max_queue
    timeout_s = math.inf if fleet.timeout_s is None else float(fleet.timeout_s)
    _serve(a, tables_of(fleet), ROUTINGS.index(fleet.routing), max_queue, timeout_s)
    return GenerationTimes(
        a.met[0],
        a.met[1],
        a.met[2],
        a.server,
        a.timed_out,
        a.counters[:, PREEMPTIONS].copy(),
        a.counters[:, STEPS].copy(),
        a.clocks[:, BUSY_S].copy(),
        a.sample_s,
        a.samples,
    )


@compiled
def _serve(a, t, routing, max_queue, timeout_s):
    """All requests in order of arrival: first every server up to it, then the request to one."""
    for i in range(len(a.due_s)):
        due_s = a.due_s[i]
        if i == 0 or due_s > a.due_s[i - 1]:
            for k in range(len(a.limits)):
                _advance(a, t, k, due_s, timeout_s)
        if timeout_s < np.inf:
            for k in range(len(a.limits)):
                expire(a, k, due_s, timeout_s)
        k = _route(a, i, routing)
        if k >= 0 and a.counters[k, WAITING_NOW] < max_queue:
            _deliver(a, k, i)
    for k in range(len(a.limits)):
        _advance(a, t, k, np.inf, timeout_s)


@compiled_inline
def _route(a, i, routing):
    """The server that takes a request; -1 if none can hold it."""
    size, best, least = len(a.limits), -1, 0
    for k in range(size):
        if -(-a.sequences[i, LAST] // a.limits[k, PAGE]) > a.limits[k, NUM_BLOCKS]:
            continue
        n = a.counters[k]
        if routing == 0:
            cost = (k - i) % size
        elif routing == 1:
            cost = n[WAITING_NOW] + n[RETURNED_NOW] + n[RUNNING_NOW]
        else:
            cost = _predicted_ns(a, k, i)
        if best < 0 or cost < least:
            best, least = k, cost
    return best


@compiled_inline
def _predicted_ns(a, k, i):
    """Until a server would have answered a request, beside what it has now."""
    n, most = a.counters[k], a.limits[k, MAX_RUNNING]
    beside = n[WAITING_NOW] + n[RETURNED_NOW] + n[RUNNING_NOW] + 1
    answer = a.answer_ns[k, min(beside, most)] * max(beside, most) // most
    return (n[PROMPT_TOKENS] + a.sequences[i, PROMPT]) * a.limits[k, PROMPT_NS] + answer


@compiled_inline
def _deliver(a, k, i):
    n = a.counters[k]
    if n[WAITING_NOW] > 0:
        a.sequences[n[BACK], NEXT] = i
    else:
        n[FRONT] = i
    n[BACK] = i
    n[WAITING_NOW] += 1
    n[PROMPT_TOKENS] += a.sequences[i, PROMPT]
    a.server[i] = k
    if a.clocks[k, END_S] == np.inf:
        a.clocks[k, END_S] = a.clocks[k, SINCE_S] = a.due_s[i]


@compiled
def _advance(a, t, k, until_s, timeout_s):
    """Step after step of a server, those that end before `until_s`."""
    n, clocks, depth = a.counters[k], a.clocks[k], a.limits[k, AHEAD] + 1
    kind = t.kind[k]
    skewed = t.skew[kind] != 0.0
    while clocks[END_S] < until_s:
        now_s = clocks[END_S]
        if n[DECIDED] > 0:
            head = n[STEP_HEAD]
            _sample(a, k, now_s)
            complete(a, k, head, now_s)
            n[STEP_HEAD] = (head + 1) % depth
            n[DECIDED] -= 1
        else:
            while n[SAMPLED] < len(a.sample_s) and a.sample_s[n[SAMPLED]] < now_s:
                n[SAMPLED] += 1
        expire(a, k, now_s, timeout_s)
        while n[DECIDED] < depth:
            if not schedule(a, k, (n[STEP_HEAD] + n[DECIDED]) % depth, skewed, now_s):
                break
            n[DECIDED] += 1
        if n[DECIDED] == 0:
            clocks[BUSY_S] += now_s - clocks[SINCE_S]
            clocks[END_S] = np.inf
            return
        head = n[STEP_HEAD]
        end_s = now_s + step_seconds(t, kind, a.steps[k, head], a.listed[k, head])
        limit_s = until_s
        if n[SAMPLED] < len(a.sample_s):
            limit_s = min(limit_s, a.sample_s[n[SAMPLED]])
        clocks[END_S] = coast(a, t, k, end_s, limit_s, timeout_s)


@compiled_inline
def _sample(a, k, now_s):
    n = a.counters[k]
    while n[SAMPLED] < len(a.sample_s) and a.sample_s[n[SAMPLED]] <= now_s:
        sample = a.samples[n[SAMPLED], k]
        sample[0] = n[WAITING_NOW] + n[RETURNED_NOW]
        sample[1] = n[RUNNING_NOW]
        sample[2] = a.limits[k, NUM_BLOCKS] - n[FREE]
        n[SAMPLED] += 1
