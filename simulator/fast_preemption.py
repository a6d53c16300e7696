"""Who gets blocks where they are short, and who gives them up: `simulator.llm_server`, compiled.

The letters are those of `simulator.fast_llm_server`.
"""

from simulator.fast_state import (
    BASE,
    BASE_SUM,
    CACHING,
    COMPUTED,
    DECODES,
    DECODING,
    FINISH,
    FIRST,
    FOLLOWING,
    FREE,
    HELD,
    KNOWN,
    LATEST,
    LOWEST,
    LOWEST_KNOWN,
    NEXT,
    NOBODY,
    PAGE,
    PREEMPTIONS,
    PREFILLING,
    READY,
    RETURNED,
    RETURNED_NOW,
    compiled,
    release,
    remove,
    take,
)


@compiled
def leave(a, k, r, b):
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
    """Give up the blocks of a sequence and send it back to the head of the queue."""
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
        leave(a, k, r, b)
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
def allocate_in_order(a, k, b, chunk):
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
