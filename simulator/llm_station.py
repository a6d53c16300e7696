"""One server of continuous batching on the clock: it computes, coasts, sleeps, and is lost.

step | 0 computes | 1 | 2 | 3 | 4 | ...    one event ends all steps in which nothing but decoding
                          ^                happens; a request that arrives cuts them short
                          arrival: 2 is the last of them
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import simpy

from simulator.coasting import coast, skip
from simulator.generations import Server
from simulator.llm_server import Answer, Queue, Step

if TYPE_CHECKING:
    from simulator.llm_fleet import LlmFleet


class Station:
    """A server that is up: what waits and runs there, and the steps it computes.

    Attributes:
        start_s, end_s: when it takes requests, until it is gone.
        up: it takes requests; a draining one is not.
        gone: it is lost, or drained and empty.
        samples: at each moment that is sampled: requests that wait, that run, pages in use.
    """

    def __init__(self, fleet: LlmFleet, replica: Server, number: int) -> None:
        self.fleet, self.replica, self.number = fleet, replica, number
        self.queue = Queue(replica, fleet.met, fleet.rules.timeout_s)
        self.start_s, self.end_s = fleet.env.now, math.inf
        self.up, self.gone, self.is_idle = True, False, True
        self.decided: deque[Step] = deque()
        self.ends: list[float] = []
        self.since_s = self.start_s
        self.computed_s = 0.0
        self.turn = 0
        self.samples: dict[int, tuple[int, int, int]] = {}

    @property
    def busy_s(self) -> float:
        """Seconds that it has computed until now."""
        now = 0.0 if self.is_idle else min(self.end_s, self.fleet.env.now) - self.since_s
        return self.computed_s + now

    def wake(self, now_s: float) -> None:
        """A request has come: compute, or come back from coasting when the step is over."""
        if self.is_idle:
            self.is_idle, self.since_s = False, now_s
            self.sampled = bisect_left(self.fleet.sample_s, now_s)
            self.ends = []
            self._sleep(0.0, self._start)
        elif len(self.ends) > 1:
            last = bisect_left(self.ends, now_s)
            if last < len(self.ends) - 1:
                del self.ends[last + 1 :]
                self._sleep(self.ends[-1] - self.fleet.env.now, self._end)

    def _sleep(self, delay_s: float, then: Callable[[int, simpy.Event], None]) -> None:
        """Be called after a delay, unless something else comes first."""
        self.turn += 1
        self.fleet.after(max(0.0, delay_s), partial(then, self.turn))

    def _start(self, turn: int, event: simpy.Event) -> None:
        if turn == self.turn:
            self._step(self.since_s)

    def _end(self, turn: int, event: simpy.Event) -> None:
        """The step is over: hand out its tokens and go on."""
        if turn != self.turn:
            return
        now_s, passed = self.ends[-1], len(self.ends) - 1
        if passed:
            skip(self.queue, self.decided, passed)
        self.ends = []
        self.fleet.deliver(now_s)
        while self.fleet.sample_s[self.sampled] <= now_s:
            self._sample()
        self.queue.complete(self.decided.popleft(), now_s)
        self._step(now_s)

    def _sample(self) -> None:
        queue = self.queue
        waiting = len(queue.waiting) + len(queue.returned)
        used = queue.limits.num_blocks - queue.blocks.free
        self.samples[self.sampled] = waiting, len(queue.running), used
        self.sampled += 1

    def _step(self, now_s: float) -> None:
        """Decide what can be decided, and compute the first of it."""
        queue, decided = self.queue, self.decided
        queue.expire(now_s)
        while len(decided) <= queue.limits.steps_ahead:
            step = queue.schedule(now_s)
            if step is None:
                break
            decided.append(step)
        if not decided:
            self.computed_s += now_s - self.since_s
            self.is_idle = True
            if not self.up:
                self.gone, self.end_s = True, self.fleet.env.now
            return
        step = decided[0]
        end_s = now_s + queue.times.step(step.chunks, step.decodes, step.context, step.longest)
        until_s = min(self.fleet.sample_s[self.sampled], self.fleet.horizon_s)
        self.ends = coast(queue, decided, end_s, until_s)
        self._sleep(self.ends[-1] - self.fleet.env.now, self._end)

    def drain(self) -> None:
        """Take no more requests; be gone once all are answered."""
        self.up = False
        if self.is_idle:
            self.gone, self.end_s = True, self.fleet.env.now

    def fail(self) -> list[Answer]:
        """Be gone at once, and all keys and values with it; returns what it had not answered."""
        now_s, queue = self.fleet.env.now, self.queue
        self.computed_s, self.is_idle = self.busy_s, True
        queue.steps += bisect_right(self.ends, now_s)
        self.up, self.gone, self.end_s = False, True, now_s
        self.turn += 1
        lost = [*queue.waiting, *queue.returned, *queue.running]
        queue.waiting.clear()
        queue.returned.clear()
        queue.running.clear()
        return sorted(lost, key=lambda answer: answer.index)
