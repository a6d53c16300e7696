"""Continuous batching, compiled: the decisions of `simulator.continuous`, to the last bit.

Decoding sequences are counted, not visited: a step in which nobody arrives, finishes or waits for a
block costs the same for one sequence and for a thousand. O(steps + requests + preemptions x
sequences).
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from simulator.continuous import ContinuousBatching, Generations, GenerationTimes
from simulator.step_times import StepTimes

NOBODY = -1


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
            _tables(times),
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


def _tables(times: StepTimes) -> tuple[object, ...]:
    names = ("tokens", "token_s", "sequences", "sequence_s", "chunk", "past", "decodes", "context")
    arrays = tuple(np.ascontiguousarray(getattr(times, name), np.float64) for name in names)
    grid = np.ascontiguousarray(times.attention_s, np.float64)
    padded = np.ascontiguousarray(times.padded_tokens, np.float64)
    return (*arrays, grid, padded, float(times.skew), float(times.step_s))


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


@njit(cache=True, inline="always")
def _blend(low, high, share):
    return low + (high - low) * share


@njit(cache=True)
def _above(axis, value):
    """Number of points of an ascending axis that are at most `value`."""
    low, high = 0, len(axis)
    while low < high:
        middle = (low + high) // 2
        if value < axis[middle]:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True)
def _bracket(axis, value):
    i = min(_above(axis, value), len(axis) - 1) - 1
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])


@njit(cache=True)
def _line(axis, table, value):
    i = min(max(_above(axis, value), 1), len(axis) - 1) - 1
    share = max(0.0, (value - axis[i]) / (axis[i + 1] - axis[i]))
    return _blend(table[i], table[i + 1], share)


@njit(cache=True)
def _prepare(tables, budget, max_running):
    """Work by tokens and by sequences, and decode attention (decodes, context), looked up once."""
    padded = tables[9]
    by_tokens, by_sequences = np.empty(budget + 1), np.empty(2 * max_running + 2)
    for n in range(budget + 1):
        size = float(n)
        if len(padded) and size <= padded[-1]:
            i = _above(padded, size)
            if not (i and padded[i - 1] == size):
                size = padded[i]
        by_tokens[n] = _line(tables[0], tables[1], size)
    for n in range(len(by_sequences)):
        by_sequences[n] = _line(tables[2], tables[3], float(n))
    rows = np.empty((max_running + 1, len(tables[7])))
    for n in range(max_running + 1):
        k, w = _bracket(tables[6], float(n))
        for m in range(len(tables[7])):
            rows[n, m] = _blend(tables[8][0, 0, k, m], tables[8][0, 0, k + 1, m], w)
    return by_tokens, by_sequences, rows


@njit(cache=True)
def _plane(tables, i, j, k, m, u, v, w):
    """The attention grid between two contexts: blended over chunk, past and decodes, at m."""
    grid = tables[8]
    few = _blend(
        _blend(grid[i, j, k, m], grid[i + 1, j, k, m], u),
        _blend(grid[i, j + 1, k, m], grid[i + 1, j + 1, k, m], u),
        v,
    )
    many = _blend(
        _blend(grid[i, j, k + 1, m], grid[i + 1, j, k + 1, m], u),
        _blend(grid[i, j + 1, k + 1, m], grid[i + 1, j + 1, k + 1, m], u),
        v,
    )
    return _blend(few, many, w)


@njit(cache=True)
def _grid(tables, size, past, decodes, context):
    i, u = _bracket(tables[4], size)
    j, v = _bracket(tables[5], past)
    k, w = _bracket(tables[6], decodes)
    m, x = _bracket(tables[7], context)
    low = _plane(tables, i, j, k, m, u, v, w)
    return _blend(low, _plane(tables, i, j, k, m + 1, u, v, w), x)


@njit(cache=True, inline="always")
def _decode_attention(contexts, row, skew, mean, longest):
    m, x = _bracket(contexts, mean)
    even_s = _blend(row[m], row[m + 1], x)
    if skew == 0.0:
        return even_s
    m, x = _bracket(contexts, float(longest))
    return even_s + skew * (_blend(row[m], row[m + 1], x) - even_s)


@njit(cache=True)
def _skewed(tables, size, past, decodes, mean, longest):
    even_s = _grid(tables, size, past, float(decodes), mean)
    skew = tables[10]
    if decodes == 0 or skew == 0.0:
        return even_s
    longest_s = _grid(tables, size, past, float(decodes), float(longest))
    return even_s + skew * (longest_s - even_s)


@njit(cache=True)
def _attention(tables, sizes, pasts, num_chunks, decodes, context, longest):
    mean = context / decodes if decodes else 0.0
    size = 0
    work = 0.0
    for c in range(num_chunks):
        size += sizes[c]
        work += sizes[c] * (0.5 * sizes[c] + pasts[c])
    past_of_one = work / size - 0.5 * size
    if past_of_one >= 0:
        return _skewed(tables, float(size), past_of_one, decodes, mean, longest)
    alone_s = 0.0
    for c in range(num_chunks):
        alone_s += _grid(tables, float(sizes[c]), float(pasts[c]), 0.0, 0.0)
    if decodes == 0:
        return alone_s
    mixed_s = _skewed(tables, float(size), 0.0, decodes, mean, longest)
    return alone_s + (mixed_s - _grid(tables, float(size), 0.0, 0.0, 0.0))


class _State(NamedTuple):
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


class _Steps(NamedTuple):
    """Steps decided and not yet computed, a row each: chunks, first tokens, ends."""

    sizes: Any
    pasts: Any
    firsts: Any
    ends: Any
    numbers: Any


# Positions in _State.n, the counters of a replica.
RUNNING, RETURNED, ARRIVED, ADMITTED, DECODES, BASE_SUM, PREFILLING = range(7)
LOWEST, LOWEST_KNOWN, NUMBER, PREEMPTIONS, FREE, RUN_HEAD, RUN_TAIL = range(7, 14)
# Positions in a row of _Steps.numbers.
CHUNKS, STEP_DECODES, CONTEXT, LONGEST, FIRSTS, ENDS = range(6)


@njit(cache=True, inline="always")
def _take(q, count):
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
def _release(q, count, owner, cached):
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
    _release(q, q.held[r], r, cached)
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
        _take(q, need)
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
        _take(q, q.held[r] - reused)
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
        _take(q, need)
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
            _release(q, q.held[r], NOBODY, 0)
        else:
            _drop(q.returned, q.n[RETURNED], r)
            q.n[RETURNED] -= 1


@njit(cache=True)
def _new_state(prompt, output, limits):
    _, max_running, num_blocks, page, _, _ = limits
    num = len(prompt)
    longest = output.max() if num else 1
    counters = np.zeros(14, np.int64)
    counters[PREFILLING] = NOBODY
    runs = 2 * num_blocks + 4 * max_running + 16
    q = _State(
        prompt, prompt + output, prompt.copy(), np.zeros(num, np.int64), np.zeros(num, np.int64),
        np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, np.bool_),
        np.full(num, NOBODY, np.int64), np.full(num, NOBODY, np.int64),
        np.empty(max_running, np.int64), np.empty(max_running + 1, np.int64),
        np.full(longest + 2, NOBODY, np.int64), np.zeros(page, np.int64),
        np.full(runs, NOBODY, np.int64), np.zeros(runs, np.int64), counters,
    )  # fmt: skip
    _release(q, num_blocks, NOBODY, 0)
    return q


@njit(cache=True)
def _new_steps(depth, max_running):
    width = max_running + 1
    return _Steps(
        np.zeros((depth, width), np.int64),
        np.zeros((depth, width), np.int64),
        np.zeros((depth, width), np.int64),
        np.zeros((depth, 2 * width), np.int64),
        np.zeros((depth, 6), np.int64),
    )


@njit(cache=True, inline="always")
def _step_s(tables, prepared, steps, at):
    by_tokens, by_sequences, rows = prepared
    numbers = steps.numbers[at]
    chunks, decodes = numbers[CHUNKS], numbers[STEP_DECODES]
    num_tokens, context, longest = decodes, numbers[CONTEXT], numbers[LONGEST]
    if chunks == 0:
        mean = context / decodes
        attention_s = _decode_attention(tables[7], rows[decodes], tables[10], mean, longest)
    else:
        for k in range(chunks):
            num_tokens += steps.sizes[at, k]
        sizes, pasts = steps.sizes[at], steps.pasts[at]
        attention_s = _attention(tables, sizes, pasts, chunks, decodes, context, longest)
    return by_tokens[num_tokens] + by_sequences[decodes + chunks] + attention_s + tables[11]


@njit(cache=True)
def _serve(arrival_s, wake_s, prompt, output, limits, tables, result):
    """One replica from its first arrival to its last token; returns preemptions and steps."""
    scheduled_s, first_s, last_s = result
    depth = limits[5] + 1
    q, steps = _new_state(prompt, output, limits), _new_steps(depth, limits[1])
    prepared = _prepare(tables, limits[0], limits[1])
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
