"""Steps in which nothing but decoding happens, compiled: `simulator.coasting`.

The letters are those of `simulator.fast_llm_server`.
"""

from simulator.fast_state import (
    AHEAD,
    BUDGET,
    CHUNKS,
    CONTEXT,
    DECIDED,
    DECODES,
    ENDS,
    FIRSTS,
    FREE,
    FRONT,
    KNOWN,
    LONGEST,
    MAX_RUNNING,
    NUMBER,
    PAGE,
    PREFILLING,
    RETURNED,
    RETURNED_NOW,
    RUNNING_NOW,
    STEP_DECODES,
    STEP_HEAD,
    STEPS,
    WAITING_NOW,
    compiled_inline,
    take,
)
from simulator.fast_step_times import decode_attention


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
def _only_decodes(a, k):
    """Whether the steps decided do nothing but decode, and nothing else can begin."""
    n = a.counters[k]
    decodes, depth = n[DECODES], a.limits[k, AHEAD] + 1
    for j in range(n[DECIDED]):
        step = a.steps[k, (n[STEP_HEAD] + j) % depth]
        if step[CHUNKS] + step[FIRSTS] + step[ENDS] > 0 or step[STEP_DECODES] != decodes:
            return False
    if n[PREFILLING] >= 0 or decodes == 0:
        return False
    return n[RETURNED_NOW] + n[WAITING_NOW] == 0 or _is_blocked(a, k)


@compiled_inline
def coast(a, t, k, end_s, until_s, timeout_s):
    """Take steps in which nothing but decoding happens, as long as they end before `until_s`.

    The step that computes ends at `end_s`. Returns when the last one taken ends.
    """
    if not _only_decodes(a, k):
        return end_s
    n, limits = a.counters[k], a.limits[k]
    decodes, depth = n[DECODES], limits[AHEAD] + 1
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
