"""Servers of continuous batching behind one door, in SimPy; they may be added, drained and lost."""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Sequence

import numpy as np
import simpy

from simulator.generations import Fleet, Generations, Routing, Server, clock_of, predicted_ns
from simulator.llm_server import Answer, Met
from simulator.llm_station import Station
from simulator.served import Machine

Process = Generator[simpy.Event, object, None]


class LlmFleet:
    """The clock, the servers, and the requests that have arrived.

    Attributes:
        servers: all that ever were, in order.
        up: those that take requests.
        held: requests that found no server up.
        machines: what was rented; empty where every server stays.
        due_s: when the next request arrives.
        server: (num_requests,) that took a request last; -1: none, or rejected.
    """

    def __init__(
        self,
        requests: Generations,
        rules: Fleet,
        sample_s: Sequence[float],
        duration_s: float,
        rng: np.random.Generator,
    ) -> None:
        num = len(requests.arrival_s)
        unknown = [math.nan] * num
        self.met = Met(unknown, unknown.copy(), unknown.copy(), [False] * num)
        self.rules, self.env = rules, simpy.Environment()
        self.duration_s, self.rng = duration_s, rng
        self.arrival_s = clock_of(requests.arrival_s)
        self.tokens = [
            column.tolist()
            for column in (requests.prompt_tokens, requests.output_tokens, requests.ready_tokens)
        ]
        prompt_ns, answer_ns = (column.tolist() for column in predicted_ns(rules, requests))
        self.expected_ns = {
            id(server): (prompt_ns[k], answer_ns[k]) for k, server in enumerate(rules.servers)
        }
        self.sample_s = [*sample_s, math.inf]
        self.delivered = self.retries = 0
        self.due_s = self.arrival_s[0] if num else math.inf
        self.server = np.full(num, -1, np.int64)
        self.rejected = np.zeros(num, np.bool_)
        self.tries = np.zeros(num, np.int32)
        self.held: deque[int] = deque()
        self.machines: list[Machine] = []
        self.servers: list[Station] = []
        self.up: list[Station] = []
        self.route = ROUTES[rules.routing]
        for server in rules.servers:
            self.add(server)

    @property
    def horizon_s(self) -> float:
        """How far a server coasts: a quarter of the way to the request that is its own on average.

        To go farther would compute steps that an arrival makes void.
        """
        ahead = self.delivered + max(0, len(self.up) // 4 - 1)
        return self.arrival_s[ahead] if ahead < len(self.arrival_s) else math.inf

    def after(self, delay_s: float, call: Callable[[simpy.Event], None]) -> None:
        """Call back after a delay."""
        event = self.env.timeout(delay_s)
        assert event.callbacks is not None
        event.callbacks.append(call)

    def arrivals(self) -> Process:
        """Sleep until the next request arrives."""
        for arrival_s in self.arrival_s:
            if arrival_s > self.env.now:
                yield self.env.timeout(arrival_s - self.env.now)
            self.deliver(arrival_s)

    def deliver(self, now_s: float) -> None:
        """Hand all requests that arrived by now to a server each; one that sleeps wakes up."""
        while self.due_s <= now_s:
            i, due_s = self.delivered, self.due_s
            if self.rules.timeout_s is not None:
                self._expire(due_s)
            self.delivered += 1
            more = self.delivered < len(self.arrival_s)
            self.due_s = self.arrival_s[self.delivered] if more else math.inf
            self._place(i, due_s, self.rules.max_queue)

    def _expire(self, now_s: float) -> None:
        for station in self.up:
            station.queue.expire(now_s)
        timeout_s = self.rules.timeout_s or math.inf
        while self.held and self.arrival_s[self.held[0]] + timeout_s <= now_s:
            self.met.timed_out[self.held.popleft()] = True

    def _place(self, i: int, now_s: float, max_queue: int | None = None) -> None:
        """Route a request; hold it where no server is up, reject it where none can ever hold it."""
        prompt, output, ready = (column[i] for column in self.tokens)
        tokens = prompt + output
        able = [station for station in self.up if _holds(station.replica, tokens)]
        if not able:
            self._hold(i, tokens, max_queue)
            return
        station = self.route(self, able, i)
        if max_queue is not None and len(station.queue.waiting) >= max_queue:
            self.rejected[i] = True
            return
        answer = Answer(i, prompt, tokens, ready, prompt, self.arrival_s[i])
        station.queue.deliver(answer)
        self.server[i] = station.number
        station.wake(now_s)

    def _hold(self, i: int, tokens: int, max_queue: int | None) -> None:
        """Hold a request until a server comes, if one that may come has room for it."""
        gone = (server for server in self.rules.servers if len(self.up) < len(self.servers))
        full = max_queue is not None and len(self.held) >= max_queue
        if full or not any(_holds(server, tokens) for server in gone):
            self.rejected[i] = True
        else:
            insort(self.held, i)

    def add(self, replica: Server) -> Station:
        """A server that takes requests from now on."""
        station = Station(self, replica, len(self.servers))
        self.servers.append(station)
        self.up.append(station)
        held, self.held = self.held, deque()
        for i in held:
            self._place(i, self.env.now)
        return station

    def drain(self, station: Station) -> None:
        """Send a server no more requests; it is gone once all of its own are answered."""
        if station.up:
            self.up.remove(station)
            station.drain()

    def lose(self, station: Station) -> None:
        """A server is gone at once; what it had not answered is sent again, from the start."""
        if station.gone:
            return
        if station.up:
            self.up.remove(station)
        for answer in station.fail():
            i = answer.index
            self.met.scheduled_s[i] = self.met.first_token_s[i] = math.nan
            self.server[i] = -1
            if self.tries[i] < self.rules.retries:
                self.tries[i] += 1
                self.retries += 1
                self._place(i, self.env.now)
            else:
                self.rejected[i] = True

    def present(self) -> int:
        """Requests that wait or run now."""
        for station in self.servers:
            station.queue.expire(self.env.now)
        self._expire(self.env.now)
        return len(self.held) + sum(len(s.queue) for s in self.servers if not s.gone)

    def busy_s(self) -> float:
        """Seconds that all servers together have computed until now."""
        return sum(station.busy_s for station in self.servers)


def _holds(server: Server, tokens: int) -> bool:
    """Whether the keys and values of a whole answer fit on a server."""
    return server.limits.blocks_for(tokens) <= server.limits.num_blocks


Route = Callable[[LlmFleet, list[Station], int], Station]


def _round_robin(fleet: LlmFleet, able: list[Station], i: int) -> Station:
    first = i % len(fleet.up)
    return next(s for s in fleet.up[first:] + fleet.up[:first] if s in able)


def _shortest_queue(fleet: LlmFleet, able: list[Station], i: int) -> Station:
    return min(able, key=lambda station: len(station.queue))


def _fastest(fleet: LlmFleet, able: list[Station], i: int) -> Station:
    prompt = fleet.tokens[0][i]

    def finish_ns(station: Station) -> int:
        """Until a server would have answered the request, beside what it has now."""
        queue, (prompt_ns, answer_ns) = station.queue, fleet.expected_ns[id(station.replica)]
        most, beside = queue.limits.max_sequences, len(queue) + 1
        answer = answer_ns[min(beside, most)] * max(beside, most) // most
        return int((queue.prompt_tokens + prompt) * prompt_ns + answer)

    return min(able, key=finish_ns)


ROUTES: dict[Routing, Route] = {
    "round_robin": _round_robin,
    "shortest_queue": _shortest_queue,
    "fastest": _fastest,
}
