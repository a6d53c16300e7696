"""Continuous batching, compiled: the decisions of `simulator.continuous`, to the last bit.

Decoding sequences are counted, not visited: a step in which nobody arrives, finishes or waits for a
block costs the same for one sequence and for a thousand. O(steps + requests + preemptions x
sequences).
"""

import numpy as np
from numba import njit

from simulator.fast_state import (
    ADMITTED,
    ARRIVED,
    BASE_SUM,
    CHUNKS,
    CONTEXT,
    DECODES,
    ENDS,
    FIRSTS,
    FREE,
    LONGEST,
    LOWEST,
    LOWEST_KNOWN,
    NOBODY,
    NUMBER,
    PREEMPTIONS,
    PREFILLING,
    RETURNED,
    RUNNING,
    STEP_DECODES,
    new_state,
    new_steps,
    release,
    take,
)
from simulator.fast_step_times import attention, decode_attention, prepare, tables_of
from simulator.generations import ContinuousBatching, Generations, GenerationTimes
from simulator.step_times import StepTimes


def generate_fast(
    requests: Generations, limits: ContinuousBatching, times: StepTimes, replicas: int = 1
) -> GenerationTimes:
    """What `simulator.continuous.generate` gives, from compiled code.

    Raises:
        ValueError: there are no replicas.
    """
    if replicas < 1:
        raise ValueError(f"serving: replicas must be at least 1, got {replicas}")
    num = len(requests.arrival_s)
    scheduled_s, first_s, last_s = (np.full(num, np.nan) for _ in range(3))
    wake_s = _wake_times(requests.arrival_s)
    preemptions = steps = 0
    for k in range(replicas):
        mine = slice(k, None, replicas)
        counted = _serve(
            requests.arrival_s[mine].astype(np.float64),
            wake_s[mine],
            requests.prompt_tokens[mine].astype(np.int64),
            requests.output_tokens[mine].astype(np.int64),
            _numbers(limits),
            tables_of(times),
            (scheduled_s[mine], first_s[mine], last_s[mine]),
        )
        preemptions += counted[0]
        steps += counted[1]
    return GenerationTimes(scheduled_s, first_s, last_s, preemptions, steps)


def _numbers(limits: ContinuousBatching) -> tuple[int, int, int, int, bool, int]:
    return (
        limits.token_budget,
        limits.max_sequences,
        limits.num_blocks,
        limits.block_tokens,
        limits.prefix_caching,
        limits.steps_ahead,
    )


@njit(cache=True)
def _wake_times(arrival_s):
    """The clock at which a sleeping replica learns of each arrival: sums of differences."""
    wake_s = np.empty_like(arrival_s)
    clock_s = 0.0
    for i in range(len(arrival_s)):
        if arrival_s[i] > clock_s:
            clock_s = clock_s + (arrival_s[i] - clock_s)
        wake_s[i] = clock_s
    return wake_s


@njit(cache=True)
def _leave(q, r, b):
    """Stop decoding before step b: write down where the sequence stands."""
    q.decoding[r] = False
    q.known[r] = b - q.base[r]
    q.computed[r] = q.known[r] - 1
    q.held[r] = -(-q.computed[r] // len(q.growing))
    q.n[DECODES] -= 1
    q.n[BASE_SUM] -= q.base[r]
    q.growing[(q.base[r] + 1) % len(q.growing)] -= 1
    q.n[LOWEST_KNOWN] = 0


@njit(cache=True)
def _preempt(q, r, b, caching):
    if q.decoding[r]:
        bucket = q.finish[r] % len(q.finishing)
        if q.finishing[bucket] == r:
            q.finishing[bucket] = q.following[r]
        else:
            w = q.finishing[bucket]
            while q.following[w] != r:
                w = q.following[w]
            q.following[w] = q.following[r]
        _leave(q, r, b)
    cached = min(q.computed[r] // len(q.growing), q.held[r]) if caching else 0
    release(q, q.held[r], r, cached)
    q.computed[r] = 0
    q.held[r] = 0
    if q.n[PREFILLING] == r:
        q.n[PREFILLING] = NOBODY
    q.returned[q.n[RETURNED]] = r
    q.n[RETURNED] += 1
    q.n[PREEMPTIONS] += 1


@njit(cache=True)
def _allocate_in_order(q, b, chunk, caching):
    """Give blocks to the running in order of admission; preempt from the end where none is."""
    page = len(q.growing)
    k = 0
    while k < q.n[RUNNING]:
        r = q.running[k]
        need = 0
        if r == q.n[PREFILLING]:
            need = -(-(q.computed[r] + chunk) // page) - q.held[r]
        elif q.decoding[r] and (b - q.base[r] - 1) % page == 0:
            need = 1
        while need > q.n[FREE]:
            q.n[RUNNING] -= 1
            last = q.running[q.n[RUNNING]]
            _preempt(q, last, b, caching)
            if last == r:
                return
        take(q, need)
        if r == q.n[PREFILLING]:
            q.held[r] += need
        k += 1


@njit(cache=True)
def _compute(q, steps, at, r, chunk):
    numbers = steps.numbers[at]
    steps.sizes[at, numbers[CHUNKS]] = chunk
    steps.pasts[at, numbers[CHUNKS]] = q.computed[r]
    numbers[CHUNKS] += 1
    q.computed[r] += chunk
    if q.computed[r] == q.known[r]:
        q.n[PREFILLING] = NOBODY
        steps.firsts[at, numbers[FIRSTS]] = r
        numbers[FIRSTS] += 1
    else:
        q.n[PREFILLING] = r


@njit(cache=True)
def _admit(q, steps, at, left, now_s, num_blocks, scheduled_s):
    page = len(q.growing)
    while left > 0 and q.n[RUNNING] < len(q.running):
        comes_back = q.n[RETURNED] > 0
        if comes_back:
            r = q.returned[q.n[RETURNED] - 1]
        elif q.n[ADMITTED] < q.n[ARRIVED]:
            r = q.n[ADMITTED]
            if -(-q.last[r] // page) > num_blocks:
                q.n[ADMITTED] += 1
                continue
        else:
            return
        if -(-q.known[r] // page) > q.n[FREE]:
            return
        q.n[RETURNED if comes_back else ADMITTED] += -1 if comes_back else 1
        q.running[q.n[RUNNING]] = r
        q.n[RUNNING] += 1
        run = q.run_of[r]
        reused = min(q.run_count[run], (q.known[r] - 1) // page) if run >= 0 else 0
        if reused > 0:
            q.n[FREE] -= reused
            q.run_count[run] -= reused
            q.run_owner[run] = NOBODY
            q.run_of[r] = NOBODY
        q.computed[r] = reused * page
        chunk = min(q.known[r] - q.computed[r], left)
        q.held[r] = -(-(q.computed[r] + chunk) // page)
        take(q, q.held[r] - reused)
        if np.isnan(scheduled_s[r]):
            scheduled_s[r] = now_s
        _compute(q, steps, at, r, chunk)
        left -= chunk


@njit(cache=True)
def _end_or_decode(q, steps, at, b):
    """Who ends with step b stops decoding; who computed its prompt in it starts."""
    numbers = steps.numbers[at]
    bucket = b % len(q.finishing)
    r = q.finishing[bucket]
    q.finishing[bucket] = NOBODY
    while r >= 0:
        steps.ends[at, numbers[ENDS]] = r
        numbers[ENDS] += 1
        _leave(q, r, b + 1)
        r = q.following[r]
    for k in range(numbers[FIRSTS]):
        r = steps.firsts[at, k]
        q.known[r] += 1
        if q.known[r] == q.last[r]:
            steps.ends[at, numbers[ENDS]] = r
            numbers[ENDS] += 1
            continue
        base = b + 1 - q.known[r]
        q.base[r] = base
        q.decoding[r] = True
        q.finish[r] = base + q.last[r] - 1
        bucket = q.finish[r] % len(q.finishing)
        q.following[r] = q.finishing[bucket]
        q.finishing[bucket] = r
        q.n[DECODES] += 1
        q.n[BASE_SUM] += base
        q.growing[(base + 1) % len(q.growing)] += 1
        q.n[LOWEST_KNOWN] = 0


@njit(cache=True, inline="always")
def _lowest_base(q):
    if q.n[LOWEST_KNOWN] == 0:
        lowest = q.n[NUMBER]
        for k in range(q.n[RUNNING]):
            if q.decoding[q.running[k]]:
                lowest = min(lowest, q.base[q.running[k]])
        q.n[LOWEST], q.n[LOWEST_KNOWN] = lowest, 1
    return q.n[LOWEST]


@njit(cache=True, inline="always")
def _schedule(q, steps, at, limits, skewed, now_s, scheduled_s):
    """Decide the next step into row `at`; whether there is something to compute."""
    budget, _, num_blocks, page, caching, _ = limits
    b, decodes = q.n[NUMBER], q.n[DECODES]
    nobody_waits = q.n[RETURNED] == 0 and q.n[ADMITTED] == q.n[ARRIVED]
    if decodes == 0 and q.n[PREFILLING] < 0 and nobody_waits:
        return False
    chunk = growth = 0
    r = q.n[PREFILLING]
    if r >= 0:
        chunk = min(q.known[r] - q.computed[r], budget - decodes)
        growth = -(-(q.computed[r] + chunk) // page) - q.held[r]
    need = q.growing[b % page] + growth
    preempted = need > q.n[FREE]
    if preempted:
        _allocate_in_order(q, b, chunk, caching)
        if q.n[PREFILLING] < 0:
            chunk = 0
    elif need > 0:
        take(q, need)
        if r >= 0:
            q.held[r] += growth
    decodes = q.n[DECODES]
    numbers = steps.numbers[at]
    numbers[:] = 0
    numbers[STEP_DECODES], numbers[CONTEXT] = decodes, decodes * b - q.n[BASE_SUM]
    if decodes > 0 and skewed:
        numbers[LONGEST] = b - _lowest_base(q)
    if q.n[PREFILLING] >= 0 and chunk > 0:
        _compute(q, steps, at, q.n[PREFILLING], chunk)
    if not (preempted or nobody_waits):
        _admit(q, steps, at, budget - decodes - chunk, now_s, num_blocks, scheduled_s)
    if decodes == 0 and numbers[CHUNKS] == 0:
        return False
    if q.finishing[b % len(q.finishing)] >= 0 or numbers[FIRSTS] > 0:
        _end_or_decode(q, steps, at, b)
    q.n[NUMBER] += 1
    return True


@njit(cache=True)
def _drop(items, count, item):
    """Remove an item and close the gap."""
    k = 0
    while items[k] != item:
        k += 1
    for j in range(k, count - 1):
        items[j] = items[j + 1]


@njit(cache=True, inline="always")
def _complete(q, steps, at, now_s, first_s, last_s):
    """Hand out the tokens of a step; the finished leave with their blocks."""
    for k in range(steps.numbers[at, FIRSTS]):
        r = steps.firsts[at, k]
        if np.isnan(first_s[r]):
            first_s[r] = now_s
    for k in range(steps.numbers[at, ENDS]):
        r = steps.ends[at, k]
        last_s[r] = now_s
        if q.held[r] > 0:
            _drop(q.running, q.n[RUNNING], r)
            q.n[RUNNING] -= 1
            release(q, q.held[r], NOBODY, 0)
        else:
            _drop(q.returned, q.n[RETURNED], r)
            q.n[RETURNED] -= 1


@njit(cache=True, inline="always")
def _step_s(tables, prepared, steps, at):
    by_tokens, by_sequences, rows = prepared
    numbers = steps.numbers[at]
    chunks, decodes = numbers[CHUNKS], numbers[STEP_DECODES]
    num_tokens, context, longest = decodes, numbers[CONTEXT], numbers[LONGEST]
    if chunks == 0:
        mean = context / decodes
        attention_s = decode_attention(tables[7], rows[decodes], tables[10], mean, longest)
    else:
        for k in range(chunks):
            num_tokens += steps.sizes[at, k]
        sizes, pasts = steps.sizes[at], steps.pasts[at]
        attention_s = attention(tables, sizes, pasts, chunks, decodes, context, longest)
    return by_tokens[num_tokens] + by_sequences[decodes + chunks] + attention_s + tables[11]


@njit(cache=True)
def _serve(arrival_s, wake_s, prompt, output, limits, tables, result):
    """One replica from its first arrival to its last token; returns preemptions and steps."""
    scheduled_s, first_s, last_s = result
    depth = limits[5] + 1
    q, steps = new_state(prompt, output, limits), new_steps(depth, limits[1])
    prepared = prepare(tables, limits[0], limits[1])
    num, head, decided, num_steps, now_s = len(arrival_s), 0, 0, 0, 0.0
    while True:
        while q.n[ARRIVED] < num and arrival_s[q.n[ARRIVED]] <= now_s:
            q.n[ARRIVED] += 1
        while decided < depth:
            at = (head + decided) % depth
            if not _schedule(q, steps, at, limits, tables[10] != 0.0, now_s, scheduled_s):
                break
            decided += 1
        if decided > 0:
            now_s += _step_s(tables, prepared, steps, head)
            num_steps += 1
            _complete(q, steps, head, now_s, first_s, last_s)
            head, decided = (head + 1) % depth, decided - 1
        elif q.n[ARRIVED] == num:
            return q.n[PREEMPTIONS], num_steps
        else:
            now_s = wake_s[q.n[ARRIVED]]
            q.n[ARRIVED] += 1
