"""One server of continuous batching, compiled: the decisions of `simulator.llm_server`.

Decoding sequences are counted, not visited: a step in which nobody joins, leaves or waits for a
block costs the same for one sequence and for a thousand. `k` is the server, `r` a sequence, `b` the
number of a step, `at` its row among the steps decided.
"""

import numpy as np

from simulator.fast_state import (
    AHEAD,
    BASE,
    BASE_SUM,
    BUDGET,
    CACHING,
    CHUNKS,
    COMPUTED,
    CONTEXT,
    DECIDED,
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
    LATEST,
    LONGEST,
    LOWEST,
    LOWEST_KNOWN,
    MAX_RUNNING,
    NEXT,
    NOBODY,
    NUMBER,
    PAGE,
    PAST_LIST,
    PREEMPTIONS,
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
    STEP_HEAD,
    STEPS,
    WAITING_NOW,
    append,
    compiled,
    compiled_inline,
    release,
    remove,
    take,
)
from simulator.fast_step_times import decode_attention

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


@compiled
def _leave(a, k, r, b):
    """Stop decoding before step b: write down where the sequence stands."""
    n, s = a.counters[k], a.sequences[r]
    page = a.limits[k, PAGE]
    s[DECODING] = 0
    s[KNOWN] = b - s[BASE]
    s[COMPUTED] = s[KNOWN] - 1
    s[HELD] = -(-s[COMPUTED] // page)
    n[DECODES] -= 1
    n[BASE_SUM] -= s[BASE]
    a.growing[k, (s[BASE] + 1) % page] -= 1
    if s[BASE] == n[LOWEST]:
        n[LOWEST_KNOWN] = 0


@compiled
def _preempt(a, k, r, b):
    n, s, finishing = a.counters[k], a.sequences[r], a.finishing[k]
    if s[DECODING]:
        bucket = s[FINISH] % len(finishing)
        if finishing[bucket] == r:
            finishing[bucket] = s[FOLLOWING]
        else:
            w = finishing[bucket]
            while a.sequences[w, FOLLOWING] != r:
                w = a.sequences[w, FOLLOWING]
            a.sequences[w, FOLLOWING] = s[FOLLOWING]
        _leave(a, k, r, b)
    cached = min(s[COMPUTED] // a.limits[k, PAGE], s[HELD]) if a.limits[k, CACHING] else 0
    release(a, k, s[HELD], r, cached)
    s[COMPUTED] = s[HELD] = s[READY] = 0
    if n[PREFILLING] == r:
        n[PREFILLING] = NOBODY
    s[NEXT] = n[RETURNED]
    n[RETURNED] = r
    n[RETURNED_NOW] += 1
    n[PREEMPTIONS] += 1


@compiled
def _allocate_in_order(a, k, b, chunk):
    """Give blocks to the running in order of admission; preempt from the end where none is."""
    n, q, page = a.counters[k], a.sequences, a.limits[k, PAGE]
    r = n[FIRST]
    while r >= 0:
        need = 0
        if r == n[PREFILLING]:
            need = -(-(q[r, COMPUTED] + chunk) // page) - q[r, HELD]
        elif q[r, DECODING] and (b - q[r, BASE] - 1) % page == 0:
            need = 1
        while need > n[FREE]:
            last = n[LATEST]
            remove(a, k, last)
            _preempt(a, k, last, b)
            if last == r:
                return
        take(a, k, need)
        if r == n[PREFILLING]:
            q[r, HELD] += need
        r = q[r, NEXT]


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
        _leave(a, k, r, b + 1)
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
        _allocate_in_order(a, k, b, chunk)
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
def _is_blocked(a, k):
    """Whether the next in the queue cannot be admitted while nobody leaves."""
    n = a.counters[k]
    r = n[RETURNED] if n[RETURNED_NOW] > 0 else n[FRONT]
    return (
        n[RUNNING_NOW] == a.limits[k, MAX_RUNNING]
        or -(-a.sequences[r, KNOWN] // a.limits[k, PAGE]) > n[FREE]
        or n[DECODES] >= a.limits[k, BUDGET]
    )


@compiled_inline
def coast(a, t, k, end_s, until_s, timeout_s):
    """Take steps in which nothing but decoding happens, as long as they end before `until_s`.

    The step that computes ends at `end_s`. Returns when the last one taken ends.
    """
    n, limits = a.counters[k], a.limits[k]
    decodes, depth = n[DECODES], limits[AHEAD] + 1
    for j in range(n[DECIDED]):
        step = a.steps[k, (n[STEP_HEAD] + j) % depth]
        if step[CHUNKS] + step[FIRSTS] + step[ENDS] > 0 or step[STEP_DECODES] != decodes:
            return end_s
    if n[PREFILLING] >= 0 or decodes == 0:
        return end_s
    if n[RETURNED_NOW] + n[WAITING_NOW] > 0 and not _is_blocked(a, k):
        return end_s
    if n[WAITING_NOW] > 0:
        until_s = min(until_s, a.due_s[n[FRONT]] + timeout_s)
    growing, finishing, page, ring = (
        a.growing[k],
        a.finishing[k],
        limits[PAGE],
        a.finishing.shape[1],
    )
    kind = t.kind[k]
    row, contexts, num = t.rows[kind, decodes], t.axes[kind, 3], t.lengths[kind, 3]
    work_s = t.by_tokens[kind, decodes] + t.by_sequences[kind, decodes]
    skew, step_s = t.skew[kind], t.step_s[kind]
    head = a.steps[k, n[STEP_HEAD]]
    context, longest = head[CONTEXT], head[LONGEST]
    b, free = n[NUMBER], n[FREE]
    slot, bucket = b % page, b % ring
    cell = 0
    while end_s < until_s and finishing[bucket] < 0 and growing[slot] <= free:
        free -= growing[slot]
        b += 1
        slot = slot + 1 if slot + 1 < page else 0
        bucket = bucket + 1 if bucket + 1 < ring else 0
        context += decodes
        longest += 1
        mean = context / decodes
        if skew == 0.0:
            while cell + 2 < num and mean >= contexts[cell + 1]:
                cell += 1
            share = (mean - contexts[cell]) / (contexts[cell + 1] - contexts[cell])
            attention_s = row[cell] + (row[cell + 1] - row[cell]) * share
        else:
            attention_s = decode_attention(contexts[:num], row, skew, mean, longest)
        end_s += work_s + attention_s + step_s
    passed = b - n[NUMBER]
    if passed > 0:
        take(a, k, n[FREE] - free)
        n[NUMBER] = b
        n[STEPS] += passed
        for j in range(n[DECIDED]):
            step = a.steps[k, (n[STEP_HEAD] + j) % depth]
            step[CONTEXT] += passed * decodes
            step[LONGEST] += passed
    return end_s


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
