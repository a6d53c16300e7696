"""Continuous batching of a fleet in SimPy: how today's LLM servers serve generation.

Each server decides and computes step after step (`simulator.llm_server`); steps in which nothing
but decoding happens are taken together until the next arrival.

    schedule 0 | schedule 1     | schedule 2     |            steps_ahead = 1: the next step is
               | step 0 computes| step 1 computes| ...        decided while one computes

An arrival sees what steps that ended before it left behind; a step that ends with it comes after.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Sequence

import numpy as np
import simpy

from simulator.generations import (
    Fleet,
    Generations,
    GenerationTimes,
    Routing,
    clock_of,
    predicted_ns,
)
from simulator.llm_server import Answer, Met, Queue, Step

Process = Generator[simpy.Event, object, None]


def generate(
    requests: Generations, fleet: Fleet, sample_s: Sequence[float] = ()
) -> GenerationTimes:
    """Simulate requests on a fleet until all are served, rejected or gone.

    Ctrl-C ends the run where it is.

    Args:
        requests: in order of arrival.
        fleet: the servers.
        sample_s: clock of the samples, ascending.
    """
    run = _Run(requests, fleet, sample_s)
    run.env.process(run.arrivals())
    for number in range(len(fleet.servers)):
        run.env.process(run.serve(number))
    try:
        run.env.run()
    except KeyboardInterrupt:
        return run.times(run.env.now)
    return run.times(math.inf)


class _Run:
    """The clock, the servers, and the requests that have arrived."""

    def __init__(self, requests: Generations, fleet: Fleet, sample_s: Sequence[float]) -> None:
        num, size = len(requests.arrival_s), len(fleet.servers)
        unknown = [math.nan] * num
        self.met = Met(unknown, unknown.copy(), unknown.copy(), [False] * num)
        self.fleet, self.env = fleet, simpy.Environment()
        self.queues = [Queue(server, self.met, fleet.timeout_s) for server in fleet.servers]
        self.wakes: list[simpy.Event | None] = [None] * size
        self.arrival_s = clock_of(requests.arrival_s)
        self.tokens = [
            column.tolist()
            for column in (requests.prompt_tokens, requests.output_tokens, requests.ready_tokens)
        ]
        self.expected_ns = [column.tolist() for column in predicted_ns(fleet, requests)]
        self.delivered = 0
        self.due_s = self.arrival_s[0] if num else math.inf
        self.server = np.full(num, -1, np.int64)
        self.sample_s = [*sample_s, math.inf]
        self.samples = np.zeros((len(sample_s), size, 3), np.int64)
        self.busy_s = np.zeros(size)

    def arrivals(self) -> Process:
        """Sleep until the next request arrives."""
        for arrival_s in self.arrival_s:
            if arrival_s > self.env.now:
                yield self.env.timeout(arrival_s - self.env.now)
            self.deliver(arrival_s)

    def deliver(self, now_s: float) -> None:
        """Hand all requests that arrived by now to a server each; one that sleeps wakes up."""
        while self.due_s <= now_s:
            i = self.delivered
            if self.fleet.timeout_s is not None:
                for queue in self.queues:
                    queue.expire(self.due_s)
            self._route(i)
            self.delivered += 1
            more = self.delivered < len(self.arrival_s)
            self.due_s = self.arrival_s[self.delivered] if more else math.inf

    def _route(self, i: int) -> None:
        prompt, output, ready = (column[i] for column in self.tokens)
        able = [
            k
            for k, queue in enumerate(self.queues)
            if queue.limits.blocks_for(prompt + output) <= queue.limits.num_blocks
        ]
        if not able:
            return
        k = ROUTES[self.fleet.routing](self, able, i)
        queue = self.queues[k]
        if self.fleet.max_queue is not None and len(queue.waiting) >= self.fleet.max_queue:
            return
        queue.deliver(Answer(i, prompt, prompt + output, ready, prompt, self.arrival_s[i]))
        self.server[i] = k
        wake = self.wakes[k]
        if wake and not wake.triggered:
            wake.succeed(self.due_s)

    def serve(self, number: int) -> Process:
        """Step after step of a server; it sleeps while there is nothing to do."""
        queue, env = self.queues[number], self.env
        decided: deque[Step] = deque()
        now_s = since_s = 0.0
        sampled = 0
        while True:
            queue.expire(now_s)
            while len(decided) <= queue.limits.steps_ahead:
                step = queue.schedule(now_s)
                if step is None:
                    break
                decided.append(step)
            if not decided:
                self.busy_s[number] += now_s - since_s
                wake = self.wakes[number] = env.event()
                now_s = since_s = yield wake  # type: ignore[assignment]
                sampled = bisect_left(self.sample_s, now_s)
                continue
            step = decided[0]
            end_s = now_s + queue.times.step(step.chunks, step.decodes, step.context, step.longest)
            until_s = self.sample_s[sampled]
            now_s = queue.coast(decided, end_s, until_s if until_s < self.due_s else self.due_s)
            yield env.timeout(max(0.0, now_s - env.now))
            if self.due_s <= now_s:
                self.deliver(now_s)
            while self.sample_s[sampled] <= now_s:
                used = queue.limits.num_blocks - queue.blocks.free
                waiting = len(queue.waiting) + len(queue.returned)
                self.samples[sampled, number] = waiting, len(queue.running), used
                sampled += 1
            queue.complete(decided.popleft(), now_s)

    def times(self, until_s: float) -> GenerationTimes:
        """What was met until then."""
        return GenerationTimes(
            np.array(self.met.scheduled_s),
            np.array(self.met.first_token_s),
            np.array(self.met.last_token_s),
            self.server,
            np.array(self.met.timed_out, np.bool_),
            np.array([queue.preemptions for queue in self.queues], np.int64),
            np.array([queue.steps for queue in self.queues], np.int64),
            self.busy_s,
            np.array(self.sample_s[:-1]),
            self.samples,
            until_s,
        )

    def predicted_ns(self, k: int, i: int) -> int:
        """Until a server would have answered a request, beside what it has now."""
        queue, (prompt_ns, answer_ns) = self.queues[k], self.expected_ns
        most, beside = queue.limits.max_sequences, len(queue) + 1
        answer = answer_ns[k][min(beside, most)] * max(beside, most) // most
        prompts = queue.prompt_tokens + self.tokens[0][i]
        return int(prompts * prompt_ns[k] + answer)


Route = Callable[[_Run, list[int], int], int]


def _round_robin(run: _Run, able: list[int], i: int) -> int:
    return min(able, key=lambda k: (k - i) % len(run.queues))


def _shortest_queue(run: _Run, able: list[int], i: int) -> int:
    return min(able, key=lambda k: len(run.queues[k]))


def _fastest(run: _Run, able: list[int], i: int) -> int:
    return min(able, key=lambda k: run.predicted_ns(k, i))


ROUTES: dict[Routing, Route] = {
    "round_robin": _round_robin,
    "shortest_queue": _shortest_queue,
    "fastest": _fastest,
}
