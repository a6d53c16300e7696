"""One server of continuous batching, compiled: the decisions of `simulator.llm_server`.

Decoding sequences are counted, not visited: a step in which nobody joins, leaves or waits for a
block costs the same for one sequence and for a thousand. `k` is the server, `r` a sequence, `b` the
number of a step, `at` its row among the steps decided.
"""

import numpy as np

from simulator.fast_preemption import allocate_in_order, leave
from simulator.fast_state import (
    BASE,
    BASE_SUM,
    BUDGET,
    CHUNKS,
    COMPUTED,
    CONTEXT,
    DECODES,
    DECODING,
    END_LIST,
    ENDS,
    FINISH,
    FIRST,
    FIRST_LIST,
    FIRSTS,
    FOLLOWING,
    FREE,
    FRONT,
    HELD,
    KNOWN,
    LAST,
    LONGEST,
    LOWEST,
    LOWEST_KNOWN,
    MAX_RUNNING,
    NEXT,
    NOBODY,
    NUMBER,
    PAGE,
    PAST_LIST,
    PREFILLING,
    PROMPT,
    PROMPT_TOKENS,
    READY,
    RETURNED,
    RETURNED_NOW,
    RUN_OF,
    RUNNING_NOW,
    SIZE_LIST,
    STEP_DECODES,
    STEPS,
    WAITING_NOW,
    append,
    compiled,
    compiled_inline,
    release,
    remove,
    take,
)

SCHEDULED, FIRST_TOKEN, LAST_TOKEN = range(3)
"""Rows of Arrays.met."""


@compiled_inline
def expire(a, k, now_s, timeout_s):
    """Let requests go that have waited too long."""
    n = a.counters[k]
    while n[WAITING_NOW] > 0 and a.due_s[n[FRONT]] + timeout_s <= now_s:
        r = n[FRONT]
        n[FRONT] = a.sequences[r, NEXT]
        n[WAITING_NOW] -= 1
        a.timed_out[r] = True
        n[PROMPT_TOKENS] -= a.sequences[r, PROMPT]


@compiled_inline
def _compute(a, k, at, r, chunk):
    n, s = a.counters[k], a.sequences[r]
    step, listed = a.steps[k, at], a.listed[k, at]
    listed[SIZE_LIST, step[CHUNKS]] = chunk
    listed[PAST_LIST, step[CHUNKS]] = s[COMPUTED]
    step[CHUNKS] += 1
    s[COMPUTED] += chunk
    if s[COMPUTED] == s[KNOWN]:
        n[PREFILLING] = NOBODY
        listed[FIRST_LIST, step[FIRSTS]] = r
        step[FIRSTS] += 1
    else:
        n[PREFILLING] = r


@compiled
def _admit(a, k, at, left, now_s):
    n, q, page = a.counters[k], a.sequences, a.limits[k, PAGE]
    while left > 0 and n[RUNNING_NOW] < a.limits[k, MAX_RUNNING]:
        comes_back = n[RETURNED_NOW] > 0
        if not (comes_back or n[WAITING_NOW] > 0):
            return
        r = n[RETURNED] if comes_back else n[FRONT]
        s = q[r]
        if -(-s[KNOWN] // page) > n[FREE]:
            return
        if comes_back:
            n[RETURNED] = s[NEXT]
            n[RETURNED_NOW] -= 1
        else:
            n[FRONT] = s[NEXT]
            n[WAITING_NOW] -= 1
        append(a, k, r)
        reused = 0
        if s[RUN_OF] >= 0:
            run = a.runs[k, s[RUN_OF]]
            reused = min(run[1], (s[KNOWN] - 1) // page)
            if reused > 0:
                n[FREE] -= reused
                run[1] -= reused
                run[0] = NOBODY
                s[RUN_OF] = NOBODY
        s[COMPUTED] = max(reused * page, s[READY])
        chunk = min(s[KNOWN] - s[COMPUTED], left)
        s[HELD] = -(-(s[COMPUTED] + chunk) // page)
        take(a, k, s[HELD] - reused)
        if np.isnan(a.met[SCHEDULED, r]):
            a.met[SCHEDULED, r] = now_s
            n[PROMPT_TOKENS] -= s[PROMPT]
        _compute(a, k, at, r, chunk)
        left -= chunk


@compiled
def _end_or_decode(a, k, at, b):
    """Who ends with step b stops decoding; who computed its prompt in it starts."""
    n, q, finishing = a.counters[k], a.sequences, a.finishing[k]
    step, listed = a.steps[k, at], a.listed[k, at]
    bucket = b % len(finishing)
    r = finishing[bucket]
    finishing[bucket] = NOBODY
    while r >= 0:
        listed[END_LIST, step[ENDS]] = r
        step[ENDS] += 1
        leave(a, k, r, b + 1)
        r = q[r, FOLLOWING]
    for j in range(step[FIRSTS]):
        r = listed[FIRST_LIST, j]
        s = q[r]
        s[KNOWN] += 1
        if s[KNOWN] == s[LAST]:
            listed[END_LIST, step[ENDS]] = r
            step[ENDS] += 1
            continue
        base = b + 1 - s[KNOWN]
        s[BASE] = base
        s[DECODING] = 1
        s[FINISH] = base + s[LAST] - 1
        bucket = s[FINISH] % len(finishing)
        s[FOLLOWING] = finishing[bucket]
        finishing[bucket] = r
        n[DECODES] += 1
        n[BASE_SUM] += base
        a.growing[k, (base + 1) % a.limits[k, PAGE]] += 1
        n[LOWEST] = min(n[LOWEST], base)


@compiled
def _lowest_base(a, k):
    n, q = a.counters[k], a.sequences
    if n[LOWEST_KNOWN] == 0:
        n[LOWEST], n[LOWEST_KNOWN] = n[NUMBER], 1
        r = n[FIRST]
        while r >= 0:
            if q[r, DECODING]:
                n[LOWEST] = min(n[LOWEST], q[r, BASE])
            r = q[r, NEXT]
    return n[LOWEST]


@compiled_inline
def schedule(a, k, at, skewed, now_s):
    """Decide the next step into row `at`; whether there is something to compute."""
    n, q, step = a.counters[k], a.sequences, a.steps[k, at]
    budget, page = a.limits[k, BUDGET], a.limits[k, PAGE]
    b, decodes = n[NUMBER], n[DECODES]
    somebody_waits = n[RETURNED_NOW] + n[WAITING_NOW] > 0
    if decodes == 0 and n[PREFILLING] < 0 and not somebody_waits:
        return False
    chunk = growth = 0
    r = n[PREFILLING]
    if r >= 0:
        chunk = min(q[r, KNOWN] - q[r, COMPUTED], budget - decodes)
        growth = -(-(q[r, COMPUTED] + chunk) // page) - q[r, HELD]
    need = a.growing[k, b % page] + growth
    preempted = need > n[FREE]
    if preempted:
        allocate_in_order(a, k, b, chunk)
        if n[PREFILLING] < 0:
            chunk = 0
    elif need > 0:
        take(a, k, need)
        if r >= 0:
            q[r, HELD] += growth
    decodes = n[DECODES]
    step[:] = 0
    step[STEP_DECODES], step[CONTEXT] = decodes, decodes * b - n[BASE_SUM]
    if decodes > 0 and skewed:
        step[LONGEST] = b - _lowest_base(a, k)
    if n[PREFILLING] >= 0 and chunk > 0:
        _compute(a, k, at, n[PREFILLING], chunk)
    if somebody_waits and not preempted:
        _admit(a, k, at, budget - decodes - chunk, now_s)
    if decodes == 0 and step[CHUNKS] == 0:
        return False
    if a.finishing[k, b % a.finishing.shape[1]] >= 0 or step[FIRSTS] > 0:
        _end_or_decode(a, k, at, b)
    n[NUMBER] += 1
    return True


@compiled_inline
def complete(a, k, at, now_s):
    """Hand out the tokens of a step; the finished leave with their blocks."""
    n, q, step, listed = a.counters[k], a.sequences, a.steps[k, at], a.listed[k, at]
    n[STEPS] += 1
    for j in range(step[FIRSTS]):
        r = listed[FIRST_LIST, j]
        if np.isnan(a.met[FIRST_TOKEN, r]):
            a.met[FIRST_TOKEN, r] = now_s
    for j in range(step[ENDS]):
        r = listed[END_LIST, j]
        a.met[LAST_TOKEN, r] = now_s
        if q[r, HELD] > 0:
            remove(a, k, r)
            release(a, k, q[r, HELD], NOBODY, 0)
        else:
            _drop_returned(a, k, r)


@compiled
def _drop_returned(a, k, r):
    """A sequence whose last token was under way when it was preempted need not come back."""
    n, q = a.counters[k], a.sequences
    if n[RETURNED] == r:
        n[RETURNED] = q[r, NEXT]
    else:
        w = n[RETURNED]
        while q[w, NEXT] != r:
            w = q[w, NEXT]
        q[w, NEXT] = q[r, NEXT]
    n[RETURNED_NOW] -= 1
