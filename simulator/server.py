"""One server of a fleet, in SimPy: its queue and its batches.

queue   | 1 wait_s   |  2 3  period(1)  |    4      period(2)  |
server  |            | batch 1 computes | batches 2, 3 compute | ...
        arrival      latency(1) later: answer
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import simpy

from simulator.served import times_by_size
from simulator.serving import Replica

if TYPE_CHECKING:
    from simulator.fleet import Fleet


class Server:
    """A replica that is up: its queue, and the batch it computes.

    Attributes:
        queue: numbers of the requests that wait, in order of arrival.
        running: requests in the batch that keeps it from taking the next.
        free_s: when it takes the next batch.
        up: it takes requests; a draining one is not.
        gone: it is lost, or drained and empty.
    """

    def __init__(self, fleet: Fleet, replica: Replica) -> None:
        self.fleet, self.replica = fleet, replica
        self.index = len(fleet.servers)
        self.queue: deque[int] = deque() if fleet.shared is None else fleet.shared
        self.latency_s, self.period_s = times_by_size(replica, fleet.serving)
        self.factors = fleet.factors_of(replica)
        self.start_s = self.free_s = fleet.env.now
        self.end_s = math.inf
        self.running = 0
        self.up, self.gone, self.timed = True, False, False
        self.flying: deque[tuple[float, list[int]]] = deque()

    @property
    def max_batch(self) -> int:
        """The largest batch that it takes."""
        return len(self.period_s) - 1

    def predicted_s(self) -> float:
        """When a request that came now would be answered, if nothing waited for company.

        The batches ahead of it are full; those of a shared queue are shared out.
        """
        full, behind = divmod(len(self.queue), self.max_batch)
        if self.fleet.shared is not None:
            full //= len(self.fleet.up)
        start_s = max(self.fleet.env.now, self.free_s) + full * self.period_s[-1]
        return start_s + self.latency_s[behind + 1]

    def consider(self) -> None:
        """Start a batch if one is full or due; else come back when it is due."""
        if self.running or self.gone:
            return
        self.fleet.expire(self.queue)
        if not self.up and (self.fleet.shared is not None or not self.queue):
            self._retire()
            return
        size = min(len(self.queue), self.max_batch)
        if not size:
            return
        now = self.fleet.env.now
        due_s = self.fleet.arrival_s[self.queue[0]] + self.fleet.serving.batch.wait_s
        if size == self.max_batch or due_s <= now:
            self._start(size)
        elif not self.timed:
            self.timed = True
            self.fleet.after(due_s - now, self._due)

    def _due(self, event: simpy.Event) -> None:
        self.timed = False
        self.consider()

    def _start(self, size: int) -> None:
        fleet, now = self.fleet, self.fleet.env.now
        batch = [self.queue.popleft() for _ in range(size)]
        factor = 1.0 if self.factors is None else self.factors[batch[0]]
        end_s = now + self.latency_s[size] * factor
        for number in batch:
            fleet.start_s[number], fleet.answer_s[number] = now, end_s
        while self.flying and self.flying[0][0] <= now:
            self.flying.popleft()
        self.flying.append((end_s, batch))
        if fleet.answered is not None:
            fleet.after(end_s - now, lambda event: fleet.answer(batch))
        period_s = self.period_s[size] * factor
        fleet.batches.append((now, period_s, self.index, size))
        self.running, self.free_s = size, now + period_s
        self.last_batch = len(fleet.batches) - 1
        fleet.after(period_s, self._free)

    def _free(self, event: simpy.Event) -> None:
        self.running = 0
        self.consider()

    def _retire(self) -> None:
        """Be gone once the last batch is answered."""
        self.gone = True
        self.end_s = max(self.fleet.env.now, self.flying[-1][0] if self.flying else 0.0)

    def fail(self) -> list[int]:
        """Be gone at once; returns the requests that had no answer yet."""
        now = self.fleet.env.now
        self.up, self.gone, self.end_s = False, True, now
        lost = [number for end_s, batch in self.flying if end_s > now for number in batch]
        if self.running:
            start_s, _, index, size = self.fleet.batches[self.last_batch]
            self.fleet.batches[self.last_batch] = (start_s, now - start_s, index, size)
        if self.fleet.shared is None:
            lost += self.queue
            self.queue.clear()
        return sorted(lost)
