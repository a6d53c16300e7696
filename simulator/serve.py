"""Serving under traffic in SimPy: arrivals, queues, dynamic batching, replicas."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import simpy

from hardware.documents import STRICT
from scheduler.report import Quantiles, quantiles

WARM_UP = 0.1
"""Share of the requests, the first to arrive, that statistics leave out."""

NUM_BLOCKS = 10
Z_95 = 2.262
"""Student's t for 95 % with 9 degrees of freedom: the interval of the mean over 10 blocks."""


def _positive(subject: str, **values: float | None) -> None:
    for key, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{subject}: {key} must be positive, got {value}")


@dataclass(frozen=True)
class Slo:
    """What is promised: 95 % of the requests answered within `p95_s` seconds."""

    __pydantic_config__ = STRICT
    p95_s: float

    def __post_init__(self) -> None:
        """Refuse promises that are not positive."""
        _positive("slo", p95_s=self.p95_s)


@dataclass(frozen=True)
class Traffic:
    """Requests per second, how they arrive, for how long, and the promise."""

    __pydantic_config__ = STRICT
    rate: float
    arrivals: Literal["poisson", "deterministic"] = "poisson"
    duration_s: float = 600.0
    slo: Slo | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse rates and durations that are not positive."""
        _positive("traffic", rate=self.rate, duration_s=self.duration_s)


@dataclass(frozen=True)
class Batching:
    """Dynamic batching: the largest batch, and the longest wait of its first request."""

    __pydantic_config__ = STRICT
    max: int | None = None
    wait_s: float = 0.005

    def __post_init__(self) -> None:
        """Refuse empty batches and negative waits."""
        _positive("serving.batch", max=self.max)
        if not (math.isfinite(self.wait_s) and self.wait_s >= 0):
            raise ValueError(f"serving.batch: wait_s must not be negative, got {self.wait_s}")


@dataclass(frozen=True)
class Serving:
    """Replicas, batching, and how requests find a replica."""

    __pydantic_config__ = STRICT
    replicas: int = 1
    batch: Batching = field(default_factory=Batching)
    routing: Literal["round_robin", "shortest_queue", "shared_queue"] = "shortest_queue"

    def __post_init__(self) -> None:
        """Refuse a fleet of none."""
        _positive("serving", replicas=self.replicas)


@dataclass(frozen=True)
class ServiceTimes:
    """A replica: latency and period of a batch by its size, linear between the given points.

    The period is the time after which the replica takes the next batch.
    """

    sizes: tuple[int, ...]
    latency_s: tuple[float, ...]
    period_s: tuple[float, ...]

    def latency(self, size: int) -> float:
        """Seconds from the start of a batch to its answers."""
        return float(np.interp(size, self.sizes, self.latency_s))

    def period(self, size: int) -> float:
        """Seconds from the start of a batch to the start of the next."""
        return float(np.interp(size, self.sizes, self.period_s))

    def capacity_per_s(self, max_batch: int) -> float:
        """Requests per second of one replica under load, when every batch is full."""
        return max_batch / self.period(max_batch)


@dataclass(frozen=True)
class ServingReport:
    """What requests met. Latency and wait leave out the first tenth of the requests.

    Attributes:
        p95_interval_s: 95 % confidence interval of the p95, from 10 blocks of requests in order.
        queue_growth_per_s: requests per second by which the load exceeds capacity; when positive
            the queue grows without bound and there are no quantiles.
    """

    latency_s: Quantiles | None
    wait_s: Quantiles | None
    p95_interval_s: tuple[float, float] | None
    throughput_per_s: float
    utilization: float
    mean_batch: float
    requests: dict[str, int]
    queue_growth_per_s: float = 0.0


def poisson(traffic: Traffic, rng: np.random.Generator) -> Iterator[float]:
    """Gaps between requests of a Poisson process (s)."""
    while True:
        yield from rng.exponential(1 / traffic.rate, 1024).tolist()


def deterministic(traffic: Traffic, rng: np.random.Generator) -> Iterator[float]:
    """Equal gaps (s)."""
    while True:
        yield 1 / traffic.rate


ARRIVALS: dict[str, Callable[[Traffic, np.random.Generator], Iterator[float]]] = {
    "poisson": poisson,
    "deterministic": deterministic,
}


class _Replica:
    """A queue, the time at which the replica is free, and the event that wakes it."""

    def __init__(self, env: simpy.Environment, queue: deque[int]) -> None:
        self.queue = queue
        self.running = 0
        self.idle = False
        self.wake = env.event()


def serve(
    times: ServiceTimes, traffic: Traffic, serving: Serving, rng: np.random.Generator
) -> ServingReport:
    """Simulate requests that arrive for `duration_s` at replicas which batch them."""
    max_batch = serving.batch.max or times.sizes[-1]
    excess = traffic.rate - serving.replicas * times.capacity_per_s(max_batch)
    if excess >= 0:
        nothing = {"arrived": 0, "finished": 0, "rejected": 0, "timed_out": 0, "in_flight": 0}
        return ServingReport(
            None, None, None, traffic.rate - excess, 1.0, max_batch, nothing, excess
        )
    env = simpy.Environment()
    shared: deque[int] | None = deque() if serving.routing == "shared_queue" else None
    replicas = [
        _Replica(env, deque() if shared is None else shared) for _ in range(serving.replicas)
    ]
    arrived, started, finished = [], [], []  # type: list[float], list[float], list[float]
    busy_s, batches = 0.0, 0

    def source() -> Generator[simpy.Event, Any, None]:
        for number, gap_s in enumerate(ARRIVALS[traffic.arrivals](traffic, rng)):
            if env.now + gap_s > traffic.duration_s:
                return
            yield env.timeout(gap_s)
            arrived.append(env.now)
            started.append(math.nan)
            finished.append(math.inf)
            target = _route(replicas, serving.routing, number)
            target.queue.append(number)
            if target.idle and not target.wake.triggered:
                target.wake.succeed()

    def replica(self: _Replica) -> Generator[simpy.Event, Any, None]:
        nonlocal busy_s, batches
        while True:
            while not self.queue:
                self.idle, self.wake = True, env.event()
                yield self.wake
            self.idle = False
            deadline_s = arrived[self.queue[0]] + serving.batch.wait_s
            while 0 < len(self.queue) < max_batch and env.now < deadline_s:
                self.idle, self.wake = True, env.event()
                yield self.wake | env.timeout(deadline_s - env.now)
                self.idle = False
                if env.now >= deadline_s - 1e-12:
                    break
            size = min(max_batch, len(self.queue))
            if size == 0:
                continue
            batch = [self.queue.popleft() for _ in range(size)]
            end_s = env.now + times.latency(size)
            for number in batch:
                started[number], finished[number] = env.now, end_s
            self.running = size
            busy_s, batches = busy_s + times.period(size), batches + 1
            yield env.timeout(times.period(size))
            self.running = 0

    env.process(source())
    for one in replicas:
        env.process(replica(one))
    env.run(until=traffic.duration_s)
    return _summary(
        np.array(arrived), np.array(started), np.array(finished), traffic, serving, busy_s, batches
    )


def _route(replicas: list[_Replica], routing: str, number: int) -> _Replica:
    if routing == "round_robin":
        return replicas[number % len(replicas)]
    if routing == "shared_queue":
        return next((one for one in replicas if one.idle and not one.wake.triggered), replicas[0])
    return min(replicas, key=lambda one: len(one.queue) + one.running)


def _summary(
    arrived: np.ndarray,
    started: np.ndarray,
    finished: np.ndarray,
    traffic: Traffic,
    serving: Serving,
    busy_s: float,
    batches: int,
) -> ServingReport:
    done = finished <= traffic.duration_s
    requests = {
        "arrived": len(arrived),
        "finished": int(done.sum()),
        "rejected": 0,
        "timed_out": 0,
        "in_flight": int((~done).sum()),
    }
    if requests["arrived"] != requests["finished"] + requests["in_flight"]:
        raise AssertionError(f"requests vanished: {requests}")
    counted = done & (np.arange(len(arrived)) >= WARM_UP * len(arrived))
    latency = (finished - arrived)[counted]
    if len(latency) == 0:
        return ServingReport(None, None, None, 0.0, 0.0, 0.0, requests)
    blocks = [np.quantile(b, 0.95) for b in np.array_split(latency, NUM_BLOCKS) if len(b)]
    half = Z_95 * float(np.std(blocks, ddof=1)) / math.sqrt(len(blocks)) if len(blocks) > 1 else 0.0
    summary = quantiles(latency)
    return ServingReport(
        latency_s=summary,
        wait_s=quantiles((started - arrived)[counted]),
        p95_interval_s=(max(0.0, summary.p95 - half), summary.p95 + half),
        throughput_per_s=requests["finished"] / traffic.duration_s,
        utilization=min(1.0, busy_s / (serving.replicas * traffic.duration_s)),
        mean_batch=len(started[~np.isnan(started)]) / max(batches, 1),
        requests=requests,
    )
