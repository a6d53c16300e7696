"""Steps of one server in which nothing but decoding happens: found at once, not one by one."""

from collections import deque

from simulator.llm_server import Queue, Step


def coast(queue: Queue, decided: deque[Step], end_s: float, until_s: float) -> list[float]:
    """When the steps end in which nothing but decoding happens, up to one that ends later.

    `decided[0]` computes and ends at `end_s`, the first; the last ends at `until_s` or later.
    `skip` then takes those steps.
    """
    ends, first = [end_s], decided[0]
    for step in decided:
        if step.chunks or step.first_tokens or step.finished or step.decodes != queue.decodes:
            return ends
    if queue.prefilling or ((queue.waiting or queue.returned) and not _is_blocked(queue)):
        return ends
    if queue.waiting:
        until_s = min(until_s, queue.waiting[0].arrival_s + queue.timeout_s)
    b, free, decodes = queue.number, queue.blocks.free, queue.decodes
    further_s = queue.times.decode_steps(decodes, first.context, first.longest)
    page, growing, finishing = queue.limits.block_tokens, queue.growing, queue.finishing
    while end_s < until_s and b not in finishing and growing[b % page] <= free:
        free -= growing[b % page]
        b += 1
        end_s += next(further_s)
        ends.append(end_s)
    return ends


def skip(queue: Queue, decided: deque[Step], passed: int) -> None:
    """Take so many of the steps that `coast` found; the steps decided then are in `decided`."""
    page, growing = queue.limits.block_tokens, queue.growing
    whole, rest = divmod(passed, page)
    need = whole * sum(growing) if whole else 0
    need += sum(growing[b % page] for b in range(queue.number, queue.number + rest))
    queue.blocks.take(need)
    queue.number += passed
    queue.steps += passed
    for step in decided:
        step.context += passed * queue.decodes
        step.longest += passed


def _is_blocked(queue: Queue) -> bool:
    """Whether the next in the queue cannot be admitted while nobody leaves."""
    sequence = queue.returned[-1] if queue.returned else queue.waiting[0]
    return (
        len(queue.running) == queue.limits.max_sequences
        or queue.limits.blocks_for(sequence.known) > queue.blocks.free
        or queue.decodes >= queue.limits.token_budget
    )
