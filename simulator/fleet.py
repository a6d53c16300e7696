"""Servers behind one door, in SimPy: requests are routed, turned away, and sent again."""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from simulator.routing import ROUTING
from simulator.served import Machine, draw_factors
from simulator.server import Server
from simulator.serving import Replica, Serving
from simulator.trace import Array, Requests

Process = Generator[simpy.Event, Any, None]


class Fleet:
    """Servers behind one door. Actors may add, drain and lose servers while it runs.

    Attributes:
        servers: all that ever were, in order.
        up: those that take requests.
        held: requests that found no server up.
        answered: called with the requests of every batch that is answered; None: nobody asks.
        machines: what was rented; empty where every server stays.
    """

    def __init__(
        self, env: simpy.Environment, requests: Requests, serving: Serving, rng: np.random.Generator
    ) -> None:
        self.env, self.serving, self.rng = env, serving, rng
        num = len(requests.arrival_s)
        self.gaps_s = np.diff(requests.arrival_s, prepend=0.0).tolist()
        self.arrival_s: list[float] = np.cumsum(self.gaps_s).tolist()
        self.start_s, self.answer_s = [math.nan] * num, [math.nan] * num
        self.rejected = np.zeros(num, dtype=bool)
        self.batches: list[tuple[float, float, int, int]] = []
        self.shared: deque[int] | None = deque() if serving.routing == "shared_queue" else None
        self.held: deque[int] = deque() if self.shared is None else self.shared
        self.route = ROUTING[serving.routing]
        self.servers: list[Server] = []
        self.up: list[Server] = []
        self.arrived = self.retries = 0
        self.tries = np.zeros(num, dtype=np.int32)
        self.duration_s = requests.duration_s
        self.machines: list[Machine] = []
        self.factors: dict[Replica, Array | None] = {}
        self.computing: list[int] = []
        self.counted, self.computed_s = 0, 0.0
        self.answered: Callable[[list[int]], None] | None = None

    def after(self, delay_s: float, call: Callable[[simpy.Event], None]) -> None:
        """Call back after a delay."""
        event = self.env.timeout(delay_s)
        assert event.callbacks is not None
        event.callbacks.append(call)

    def factors_of(self, replica: Replica) -> Array | None:
        """The spread of a kind of replica's times, drawn once."""
        if replica not in self.factors:
            self.factors |= draw_factors([replica], len(self.arrival_s), self.rng)
        return self.factors[replica]

    def expire(self, queue: deque[int]) -> None:
        """Take those out of a queue that were given up while they waited."""
        timeout_s = self.serving.limits.timeout_s
        if timeout_s is not None:
            while queue and self.arrival_s[queue[0]] + timeout_s <= self.env.now:
                queue.popleft()

    def waiting(self) -> int:
        """Requests that wait now, at all queues."""
        queues = [self.held, *(server.queue for server in self.servers if not server.gone)]
        for queue in queues:
            self.expire(queue)
        return len(self.held) if self.shared is not None else sum(map(len, queues))

    def present(self) -> int:
        """Requests that wait or run now."""
        return self.waiting() + sum(server.running for server in self.servers if not server.gone)

    def busy_s(self) -> float:
        """Seconds that all servers together have computed until now."""
        now, going, part_s = self.env.now, [], 0.0
        self.computing += range(self.counted, len(self.batches))
        self.counted = len(self.batches)
        for number in self.computing:
            start_s, seconds, _, _ = self.batches[number]
            if start_s + seconds <= now:
                self.computed_s += seconds
            else:
                going.append(number)
                part_s += now - start_s
        self.computing = going
        return self.computed_s + part_s

    def add(self, replica: Replica) -> Server:
        """A server that takes requests from now on."""
        server = Server(self, replica)
        self.servers.append(server)
        self.up.append(server)
        if self.shared is None:
            held, self.held = self.held, deque()
            for number in held:
                self._place(number)
        else:
            server.consider()
        return server

    def drain(self, server: Server) -> None:
        """Send a server no more requests; it is gone once its queue is answered."""
        if server.up:
            self.up.remove(server)
            server.up = False
            server.consider()
            self._consider_shared()

    def lose(self, server: Server) -> None:
        """A server is gone at once; what it had not answered is sent again."""
        if server.gone:
            return
        if server.up:
            self.up.remove(server)
        for number in server.fail():
            self.start_s[number] = self.answer_s[number] = math.nan
            self._retry(number)
        self._consider_shared()

    def _retry(self, number: int) -> None:
        """Send a lost request again, unless it was lost too often."""
        if self.tries[number] >= self.serving.limits.retries:
            self.rejected[number], self.answer_s[number] = True, self.env.now
        else:
            self.tries[number] += 1
            self.retries += 1
            self._place(number)

    def _consider_shared(self) -> None:
        """Somebody must mind a shared queue whose minder has left."""
        if self.shared is not None:
            for server in self.up:
                server.consider()

    def arrive(self, number: int) -> None:
        """A new request: route it, or turn it away."""
        limits = self.serving.limits
        if limits.timeout_s is not None:
            for one in self.up:
                self.expire(one.queue)
        server = self.route(self, number) if self.up else None
        queue = self.held if server is None else server.queue
        if limits.queue is not None and len(queue) >= limits.queue:
            self.rejected[number] = True
        elif server is None:
            self.held.append(number)
        elif limits.predicted_s and server.predicted_s() - self.env.now > limits.predicted_s:
            self.rejected[number] = True
        else:
            queue.append(number)
            server.consider()

    def _place(self, number: int) -> None:
        """Queue a request that was admitted before; it keeps its place by arrival."""
        server = self.route(self, number) if self.up else None
        insort(self.held if server is None else server.queue, number)
        if server is not None:
            server.consider()

    def source(self) -> Process:
        """Let the requests arrive."""
        for number, gap_s in enumerate(self.gaps_s):
            yield self.env.timeout(gap_s)
            self.arrived = number + 1
            self.arrive(number)

    def answer(self, batch: list[int]) -> None:
        """Tell who asked that a batch is answered."""
        assert self.answered is not None
        self.answered(batch)

    def enter(self) -> None:
        """Let the next request arrive now, whenever it was to arrive."""
        number = self.arrived
        self.arrival_s[number] = self.env.now
        self.arrived = number + 1
        self.arrive(number)
