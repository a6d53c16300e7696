"""One server of continuous batching: what it decides for each step.

A step decodes one token of every running sequence and fills the rest of its token budget with
prompt chunks, first come first served. Sequences hold pages of KV cache; where none is free the
sequence admitted last is preempted: it gives up its pages, keeps its place at the head of the
queue, and recomputes what is no longer cached when it is admitted again.

Sources: Yu et al., "Orca", OSDI 2022 (iteration-level scheduling); Kwon et al., "Efficient memory
management for large language model serving with PagedAttention", SOSP 2023,
doi:10.1145/3600006.3613165; Agrawal et al., "Sarathi-Serve", OSDI 2024 (chunked prefill); the
order of decisions is that of vLLM's V1 scheduler.
"""

import math
from bisect import insort
from collections import Counter, deque
from dataclasses import dataclass, field

from simulator.generations import Server
from simulator.kv_blocks import Blocks
from simulator.step_times import Chunk


@dataclass(slots=True, eq=False)
class Answer:
    """A sequence: a request on a server, and the answer as far as it is.

    `base`: while it decodes, its context in step b is b - base. `computed` and `held` count
    tokens and blocks; both are behind while it decodes. `ready` tokens came with the request.
    """

    index: int
    known: int
    last: int
    ready: int
    prompt: int
    arrival_s: float
    computed: int = 0
    held: int = 0
    base: int = 0
    finish: int = -1
    decoding: bool = False


@dataclass(slots=True, eq=False)
class Step:
    """Prompt chunks, decoding sequences, their context together and the longest; who gets what."""

    chunks: list[Chunk]
    decodes: int
    context: int
    longest: int = 0
    first_tokens: list[Answer] = field(default_factory=list)
    finished: list[Answer] = field(default_factory=list)


@dataclass(slots=True)
class Met:
    """What requests met, one value a request; filled while the simulation runs."""

    scheduled_s: list[float]
    first_token_s: list[float]
    last_token_s: list[float]
    timed_out: list[bool]


class Queue:
    """A server: its queue, its running sequences in order of admission, and its blocks."""

    def __init__(self, server: Server, met: Met, timeout_s: float | None) -> None:
        self.limits, self.times, self.met = server.limits, server.times, met
        self.timeout_s = math.inf if timeout_s is None else timeout_s
        self.waiting: deque[Answer] = deque()
        self.returned: list[Answer] = []
        self.running: list[Answer] = []
        self.blocks = Blocks(server.limits.num_blocks)
        self.prefilling: Answer | None = None
        self.number = self.preemptions = self.steps = 0
        self.prompt_tokens = 0
        self.decodes = self.base_sum = 0
        self.bases: Counter[int] = Counter()
        self.lowest: int | None = None
        self.finishing: dict[int, list[Answer]] = {}
        self.growing = [0] * server.limits.block_tokens

    def __len__(self) -> int:
        """Requests that wait or run."""
        return len(self.waiting) + len(self.returned) + len(self.running)

    def expire(self, now_s: float) -> None:
        """Let requests go that have waited too long."""
        while self.waiting and self.waiting[0].arrival_s + self.timeout_s <= now_s:
            sequence = self.waiting.popleft()
            self.met.timed_out[sequence.index] = True
            self.prompt_tokens -= sequence.prompt

    def deliver(self, sequence: Answer) -> None:
        """Take a request; one that was sent before keeps its place by arrival."""
        if self.waiting and self.waiting[-1].index > sequence.index:
            insort(self.waiting, sequence, key=lambda waiting: waiting.index)
        else:
            self.waiting.append(sequence)
        self.prompt_tokens += sequence.prompt

    def schedule(self, now_s: float) -> Step | None:
        """Decide the next step; None if there is nothing to compute."""
        b = self.number
        if not (self.decodes or self.prefilling or self.waiting or self.returned):
            return None
        chunk = growth = 0
        if self.prefilling:
            left = self.limits.token_budget - self.decodes
            chunk = min(self.prefilling.known - self.prefilling.computed, left)
            growth = self.limits.blocks_for(self.prefilling.computed + chunk) - self.prefilling.held
        need = self.growing[b % self.limits.block_tokens] + growth
        preempted = need > self.blocks.free
        if preempted:
            self._allocate_in_order(b, chunk)
            chunk = chunk if self.prefilling else 0
        elif need:
            self.blocks.take(need)
            if self.prefilling:
                self.prefilling.held += growth
        step = Step([], self.decodes, self.decodes * b - self.base_sum)
        if self.decodes and self.times.skew:
            step.longest = b - self._lowest_base()
        if self.prefilling and chunk:
            self._compute(self.prefilling, chunk, step)
        if (self.waiting or self.returned) and not preempted:
            self._admit(self.limits.token_budget - self.decodes - chunk, step, now_s)
        if not step.decodes and not step.chunks:
            return None
        if b in self.finishing:
            for sequence in self.finishing.pop(b):
                if sequence.decoding and sequence.finish == b:
                    step.finished.append(sequence)
                    self._leave(sequence, b + 1)
        self.number += 1
        for sequence in step.first_tokens:
            self._decode_or_finish(sequence, step)
        return step

    def _allocate_in_order(self, b: int, chunk: int) -> None:
        """Give blocks to the running in order of admission; preempt from the end where none is."""
        k = 0
        while k < len(self.running):
            sequence = self.running[k]
            need = 0
            if sequence is self.prefilling:
                need = self.limits.blocks_for(sequence.computed + chunk) - sequence.held
            elif sequence.decoding and (b - sequence.base - 1) % self.limits.block_tokens == 0:
                need = 1
            while need > self.blocks.free:
                last = self.running.pop()
                self._preempt(last, b)
                if last is sequence:
                    return
            self.blocks.take(need)
            if sequence is self.prefilling:
                sequence.held += need
            k += 1

    def _preempt(self, sequence: Answer, b: int) -> None:
        if sequence.decoding:
            self._leave(sequence, b)
        full = sequence.computed // self.limits.block_tokens
        cached = full if self.limits.prefix_caching else 0
        self.blocks.release(sequence.held, sequence.index, min(cached, sequence.held))
        sequence.computed = sequence.held = sequence.ready = 0
        if sequence is self.prefilling:
            self.prefilling = None
        self.returned.append(sequence)
        self.preemptions += 1

    def _admit(self, budget: int, step: Step, now_s: float) -> None:
        while budget > 0 and len(self.running) < self.limits.max_sequences:
            if not (self.returned or self.waiting):
                return
            sequence = self.returned[-1] if self.returned else self.waiting[0]
            if self.limits.blocks_for(sequence.known) > self.blocks.free:
                return
            if self.returned:
                self.returned.pop()
            else:
                self.waiting.popleft()
            self.running.append(sequence)
            page = self.limits.block_tokens
            reused = min(self.blocks.cached(sequence.index), (sequence.known - 1) // page)
            if reused:
                self.blocks.reuse(sequence.index, reused)
            sequence.computed = max(reused * page, sequence.ready)
            chunk = min(sequence.known - sequence.computed, budget)
            sequence.held = self.limits.blocks_for(sequence.computed + chunk)
            self.blocks.take(sequence.held - reused)
            if math.isnan(self.met.scheduled_s[sequence.index]):
                self.met.scheduled_s[sequence.index] = now_s
                self.prompt_tokens -= sequence.prompt
            self._compute(sequence, chunk, step)
            budget -= chunk

    def _compute(self, sequence: Answer, chunk: int, step: Step) -> None:
        step.chunks.append((chunk, sequence.computed))
        sequence.computed += chunk
        done = sequence.computed == sequence.known
        self.prefilling = None if done else sequence
        if done:
            step.first_tokens.append(sequence)

    def _decode_or_finish(self, sequence: Answer, step: Step) -> None:
        """After its prompt is computed a sequence emits a token; the rest follows step by step."""
        sequence.known += 1
        if sequence.known == sequence.last:
            step.finished.append(sequence)
            return
        base = self.number - sequence.known
        sequence.base, sequence.decoding = base, True
        sequence.finish = base + sequence.last - 1
        self.finishing.setdefault(sequence.finish, []).append(sequence)
        self.decodes += 1
        self.base_sum += base
        self.bases[base] += 1
        self.lowest = None
        self.growing[(base + 1) % self.limits.block_tokens] += 1

    def _leave(self, sequence: Answer, b: int) -> None:
        """Stop decoding before step b: write down where the sequence stands."""
        base = sequence.base
        sequence.decoding = False
        sequence.known = b - base
        sequence.computed = sequence.known - 1
        sequence.held = self.limits.blocks_for(sequence.computed)
        self.decodes -= 1
        self.base_sum -= base
        self.bases[base] -= 1
        if not self.bases[base]:
            del self.bases[base]
            self.lowest = None
        self.growing[(base + 1) % self.limits.block_tokens] -= 1

    def _lowest_base(self) -> int:
        if self.lowest is None:
            self.lowest = min(self.bases)
        return self.lowest

    def complete(self, step: Step, now_s: float) -> None:
        """Hand out the tokens of a step; the finished leave with their blocks."""
        self.steps += 1
        for sequence in step.first_tokens:
            if math.isnan(self.met.first_token_s[sequence.index]):
                self.met.first_token_s[sequence.index] = now_s
        for sequence in step.finished:
            self.met.last_token_s[sequence.index] = now_s
            if sequence.held:
                self.running.remove(sequence)
                self.blocks.release(sequence.held)
            else:
                self.returned.remove(sequence)
