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
from collections.abc import Callable, Generator

import numpy as np
import simpy

from simulator.generations import (
    Fleet,
    Generations,
    GenerationTimes,
    Routing,
    clock_of,
    predicted_work_ns,
    sample_times,
)
from simulator.llm_server import Met, Queue, Sequence, Step

Process = Generator[simpy.Event, object, None]


def generate(requests: Generations, fleet: Fleet, num_samples: int = 0) -> GenerationTimes:
    """Simulate requests on a fleet until all are served, rejected or gone."""
    run = _Run(requests, fleet, num_samples)
    run.env.process(run.arrivals())
    for number in range(len(fleet.servers)):
        run.env.process(run.serve(number))
    run.env.run()
    return run.times()


class _Run:
    """The clock, the servers, and the requests that have arrived."""

    def __init__(self, requests: Generations, fleet: Fleet, num_samples: int) -> None:
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
        self.work_ns = [column.tolist() for column in predicted_work_ns(fleet, requests)]
        self.delivered = 0
        self.due_s = self.arrival_s[0] if num else math.inf
        self.server = np.full(num, -1, np.int64)
        self.sample_s = [*sample_times(requests, num_samples).tolist(), math.inf]
        self.samples = np.zeros((num_samples, size, 3), np.int64)
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
        work_ns = [prompt * a + b for a, b in zip(*self.work_ns, strict=True)]
        k = ROUTES[self.fleet.routing](self.queues, able, i, work_ns)
        queue = self.queues[k]
        if self.fleet.max_queue is not None and len(queue.waiting) >= self.fleet.max_queue:
            return
        queue.waiting.append(
            Sequence(i, prompt, prompt + output, ready, work_ns[k], self.arrival_s[i])
        )
        queue.work_ns += work_ns[k]
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

    def times(self) -> GenerationTimes:
        """What was met, when all is done."""
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
        )


Route = Callable[[list[Queue], list[int], int, list[int]], int]


def _round_robin(queues: list[Queue], able: list[int], i: int, work_ns: list[int]) -> int:
    return min(able, key=lambda k: (k - i) % len(queues))


def _shortest_queue(queues: list[Queue], able: list[int], i: int, work_ns: list[int]) -> int:
    return min(able, key=lambda k: len(queues[k]))


def _fastest(queues: list[Queue], able: list[int], i: int, work_ns: list[int]) -> int:
    return min(able, key=lambda k: queues[k].work_ns + work_ns[k])


ROUTES: dict[Routing, Route] = {
    "round_robin": _round_robin,
    "shortest_queue": _shortest_queue,
    "fastest": _fastest,
}
