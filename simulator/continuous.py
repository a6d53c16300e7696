"""Continuous batching: how today's LLM servers serve generation, in SimPy.

A step decodes one token of every running sequence and fills the rest of its token budget with
prompt chunks, first come first served. Sequences hold pages of KV cache; where none is free the
sequence admitted last is preempted: it gives up its pages, keeps its place at the head of the
queue, and recomputes what is no longer cached when it is admitted again.

Sources: Yu et al., "Orca", OSDI 2022 (iteration-level scheduling); Kwon et al., "Efficient memory
management for large language model serving with PagedAttention", SOSP 2023,
doi:10.1145/3600006.3613165; Agrawal et al., "Sarathi-Serve", OSDI 2024 (chunked prefill); the
order of decisions is that of vLLM's V1 scheduler.

    schedule 0 | schedule 1     | schedule 2     |            steps_ahead = 1: the next step is
               | step 0 computes| step 1 computes| ...        decided while one computes
"""

from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import simpy

from simulator.generations import ContinuousBatching, Generations, GenerationTimes
from simulator.kv_blocks import Blocks
from simulator.step_times import Array, Chunk, StepTimes

Process = Generator[simpy.Event, object, None]


@dataclass(slots=True)
class _Sequence:
    """A request on a replica.

    `base`: while it decodes, its context in step b is b - base. `computed` and `held` count
    tokens and blocks; both are behind while it decodes.
    """

    index: int
    prompt: int
    known: int
    last: int
    computed: int = 0
    held: int = 0
    base: int = 0
    finish: int = -1
    decoding: bool = False


@dataclass(slots=True)
class _Step:
    chunks: list[Chunk]
    decodes: int
    context: int
    longest: int
    first_tokens: list[_Sequence]
    finished: list[_Sequence]


class _Replica:
    """One server: its queue, its running sequences in order of admission, and its blocks."""

    def __init__(self, limits: ContinuousBatching, times: StepTimes, result: "_Result") -> None:
        self.limits, self.times, self.result = limits, times, result
        self.waiting: deque[_Sequence] = deque()
        self.running: list[_Sequence] = []
        self.blocks = Blocks(limits.num_blocks)
        self.prefilling: _Sequence | None = None
        self.number = 0
        self.decodes = self.base_sum = 0
        self.bases: Counter[int] = Counter()
        self.lowest: int | None = None
        self.finishing: dict[int, list[_Sequence]] = {}
        self.growing = [0] * limits.block_tokens
        self.wake: simpy.Event | None = None

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def schedule(self, now_s: float) -> _Step | None:
        """Decide the next step; None if there is nothing to compute."""
        b = self.number
        if not (self.decodes or self.prefilling or self.waiting):
            return None
        chunk = growth = 0
        if self.prefilling:
            left = self.limits.token_budget - self.decodes
            chunk = min(self.prefilling.known - self.prefilling.computed, left)
            growth = self._blocks_for(self.prefilling.computed + chunk) - self.prefilling.held
        need = self.growing[b % self.limits.block_tokens] + growth
        preempted = need > self.blocks.free
        if preempted:
            self._allocate_in_order(b, chunk)
            chunk = chunk if self.prefilling else 0
        elif need:
            self.blocks.take(need)
            if self.prefilling:
                self.prefilling.held += growth
        step = _Step([], self.decodes, self.decodes * b - self.base_sum, 0, [], [])
        if self.decodes and self.times.skew:
            step.longest = b - self._lowest_base()
        if self.prefilling and chunk:
            self._compute(self.prefilling, chunk, step)
        if self.waiting and not preempted:
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
                need = self._blocks_for(sequence.computed + chunk) - sequence.held
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

    def _preempt(self, sequence: _Sequence, b: int) -> None:
        if sequence.decoding:
            self._leave(sequence, b)
        full = sequence.computed // self.limits.block_tokens
        cached = full if self.limits.prefix_caching else 0
        self.blocks.release(sequence.held, sequence.index, min(cached, sequence.held))
        sequence.computed = sequence.held = 0
        if sequence is self.prefilling:
            self.prefilling = None
        self.waiting.appendleft(sequence)
        self.result.preemptions += 1

    def _admit(self, budget: int, step: _Step, now_s: float) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_sequences:
            sequence = self.waiting[0]
            reused = min(
                self.blocks.cached(sequence.index), (sequence.known - 1) // self.limits.block_tokens
            )
            if self._blocks_for(sequence.known) > self.blocks.free:
                return
            self.waiting.popleft()
            self.running.append(sequence)
            if reused:
                self.blocks.reuse(sequence.index, reused)
            sequence.computed = reused * self.limits.block_tokens
            chunk = min(sequence.known - sequence.computed, budget)
            sequence.held = self._blocks_for(sequence.computed + chunk)
            self.blocks.take(sequence.held - reused)
            if np.isnan(self.result.scheduled_s[sequence.index]):
                self.result.scheduled_s[sequence.index] = now_s
            self._compute(sequence, chunk, step)
            budget -= chunk

    def _compute(self, sequence: _Sequence, chunk: int, step: _Step) -> None:
        step.chunks.append((chunk, sequence.computed))
        sequence.computed += chunk
        done = sequence.computed == sequence.known
        self.prefilling = None if done else sequence
        if done:
            step.first_tokens.append(sequence)

    def _decode_or_finish(self, sequence: _Sequence, step: _Step) -> None:
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

    def _leave(self, sequence: _Sequence, b: int) -> None:
        """Stop decoding before step b: write down where the sequence stands."""
        base = sequence.base
        sequence.decoding = False
        sequence.known = b - base
        sequence.computed = sequence.known - 1
        sequence.held = self._blocks_for(sequence.computed)
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

    def complete(self, step: _Step, now_s: float) -> None:
        """Hand out the tokens of a step; the finished leave with their blocks."""
        for sequence in step.first_tokens:
            if np.isnan(self.result.first_token_s[sequence.index]):
                self.result.first_token_s[sequence.index] = now_s
        for sequence in step.finished:
            self.result.last_token_s[sequence.index] = now_s
            if sequence.held:
                self.running.remove(sequence)
                self.blocks.release(sequence.held)
            else:
                self.waiting.remove(sequence)

    def serve(self, env: simpy.Environment, source: "_Source") -> Process:
        """Step after step; sleeps while there is nothing to do."""
        decided: deque[_Step] = deque()
        while True:
            if source.due_s <= env.now:
                source.deliver(env.now)
            while len(decided) <= self.limits.steps_ahead:
                step = self.schedule(env.now)
                if step is None:
                    break
                decided.append(step)
            if decided:
                step = decided.popleft()
                seconds = self.times.step(step.chunks, step.decodes, step.context, step.longest)
                yield env.timeout(seconds)
                self.result.steps += 1
                if step.first_tokens or step.finished:
                    self.complete(step, env.now)
            else:
                self.wake = env.event()
                yield self.wake


@dataclass(slots=True)
class _Result:
    scheduled_s: Array
    first_token_s: Array
    last_token_s: Array
    preemptions: int = 0
    steps: int = 0


class _Source:
    """Hands requests that have arrived to the replicas in turn; a sleeping one wakes up."""

    def __init__(self, requests: Generations, replicas: list[_Replica]) -> None:
        self.arrival_s = requests.arrival_s.tolist()
        self.tokens = zip(
            requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True
        )
        self.replicas = replicas
        self.delivered = 0
        self.due_s = self.arrival_s[0] if self.arrival_s else np.inf

    def deliver(self, now_s: float) -> None:
        """Deliver all that arrived by now."""
        while self.due_s <= now_s:
            i = self.delivered
            replica = self.replicas[i % len(self.replicas)]
            prompt, output = next(self.tokens)
            if replica._blocks_for(prompt + output) <= replica.limits.num_blocks:
                replica.waiting.append(_Sequence(i, prompt, prompt, prompt + output))
            self.delivered += 1
            more = self.delivered < len(self.arrival_s)
            self.due_s = self.arrival_s[self.delivered] if more else np.inf
            if replica.wake and not replica.wake.triggered:
                replica.wake.succeed()

    def arrivals(self, env: simpy.Environment) -> Process:
        """Sleep until the next request arrives."""
        for arrival_s in self.arrival_s:
            if arrival_s > env.now:
                yield env.timeout(arrival_s - env.now)
            self.deliver(arrival_s)


def generate(
    requests: Generations, limits: ContinuousBatching, times: StepTimes, replicas: int = 1
) -> GenerationTimes:
    """Simulate requests on equal replicas, in turn, until all are served.

    Raises:
        ValueError: there are no replicas.
    """
    if replicas < 1:
        raise ValueError(f"serving: replicas must be at least 1, got {replicas}")
    unknown = np.full(len(requests.arrival_s), np.nan)
    result = _Result(unknown, unknown.copy(), unknown.copy())
    env = simpy.Environment()
    servers = [_Replica(limits, times, result) for _ in range(replicas)]
    source = _Source(requests, servers)
    env.process(source.arrivals(env))
    for server in servers:
        env.process(server.serve(env, source))
    env.run()
    return GenerationTimes(
        result.scheduled_s,
        result.first_token_s,
        result.last_token_s,
        result.preemptions,
        result.steps,
    )
