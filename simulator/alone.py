"""One request alone on a server, and the least of a server that an answer takes: closed forms.

Nothing under traffic is sooner than alone, and no fleet carries more than its servers can do.
"""

from dataclasses import dataclass

import numpy as np

from simulator.generations import Counts, Generations, Server
from simulator.step_times import Array


@dataclass(frozen=True)
class Alone:
    """Requests each alone on a server, (num_requests,) each."""

    ttft_s: Array
    tpot_s: Array
    latency_s: Array


def alone(server: Server, requests: Generations) -> Alone:
    """What requests meet on a server that does nothing else.

    A prompt is computed in chunks of the token budget, then a step gives each further token.
    """
    prompt, output = requests.prompt_tokens, requests.output_tokens
    lengths, which = np.unique(prompt, return_inverse=True)
    ttft_s = np.array([_prefill_s(server, int(length)) for length in lengths])[which]
    total_s = _decode_sums_s(server, int((prompt + output).max()))
    decode_s = total_s[prompt + output - 1] - total_s[prompt]
    return Alone(ttft_s, decode_s / np.maximum(output - 1, 1), ttft_s + decode_s)


def _prefill_s(server: Server, prompt: int) -> float:
    budget = server.limits.token_budget
    starts = range(0, prompt, budget)
    return sum(server.times.step([(min(budget, prompt - done), done)], 0, 0, 0) for done in starts)


def _decode_sums_s(server: Server, most: int) -> Array:
    """(most + 1,) seconds of the decode steps of contexts up to each."""
    steps = server.times.decode_steps(1, 0, 0)
    return np.cumsum([0.0, *(next(steps) for _ in range(most))])


def least_server_s(server: Server, prompt: float, output: float) -> float:
    """Seconds of a server that an answer takes at least, however full its steps.

    A step of T tokens decodes at most min(T, max_sequences) of them. By the shares w of steps of
    each size, with attention taken as free, a linear programme:

        min sum w_T s_T,  sum w_T T >= prompt + output - 1,  sum w_T min(T, D) >= output - 1

    s_T and min(T, D) are linear between its points, so no other size is better. Beside it, what an
    answer's tokens take at least of the work per sequence.
    """
    from scipy.optimize import linprog

    limits, times = server.limits, server.times
    most = min(limits.max_sequences, limits.num_blocks)
    inside = times.tokens[(times.tokens >= 1) & (times.tokens <= limits.token_budget)]
    sizes = np.unique([1.0, *inside, most, limits.token_budget])
    step_s = np.interp(sizes, times.tokens, times.token_s) + times.step_s
    needs = np.array([prompt + output - 1, output - 1])
    gives = np.array([sizes, np.minimum(sizes, most)])
    scale = step_s.max()
    found = linprog(step_s / scale, A_ub=-gives, b_ub=-needs)
    counts = np.unique([1.0, *times.sequences[1:], limits.max_sequences])
    counts = counts[counts <= limits.max_sequences]
    sequence_s = np.interp(counts, times.sequences, times.sequence_s) / counts
    return float(found.fun * scale + output * sequence_s.min())


def mean_tokens(requests: Generations) -> tuple[float, float]:
    """Mean tokens of prompt and answer."""
    columns: tuple[Counts, Counts] = (requests.prompt_tokens, requests.output_tokens)
    return float(columns[0].mean()), float(columns[1].mean())


def full_server_s(server: Server, prompt: float, output: float) -> float:
    """Seconds of a server that an answer takes where it never runs out of requests (an estimate).

    n sequences decode in every step, as many as limits and cache allow, and n * prompt / output
    prompt tokens are computed beside them, so that as many sequences begin as end.
    """
    limits = server.limits
    room = limits.num_blocks // limits.blocks_for(round(prompt + output))
    budget = limits.token_budget / (1 + prompt / output)
    n = max(1, int(min(limits.max_sequences, room, budget)))
    chunk, context = round(n * prompt / output), round(prompt + output / 2)
    chunks = [(chunk, 0)] if chunk else []
    return server.times.step(chunks, n, n * context, context) * output / n
