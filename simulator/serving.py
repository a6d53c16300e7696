"""What serves the traffic: replicas, and the rules by which requests find and fill them."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hardware.documents import STRICT
from simulator.arrivals import positive
from simulator.autoscaling import Autoscaling
from simulator.availability import Failures
from simulator.boot import Boot
from simulator.generations import Continuous
from simulator.spot import Spot
from simulator.tariff import Tariff


@dataclass(frozen=True)
class Batching:
    """Dynamic batching: the largest batch, and the longest wait of its first request."""

    __pydantic_config__ = STRICT
    max: int | None = None
    wait_s: float = 0.005

    def __post_init__(self) -> None:
        """Refuse empty batches and negative waits."""
        positive("serving.batch", max=self.max)
        if not (math.isfinite(self.wait_s) and self.wait_s >= 0):
            raise ValueError(f"serving.batch: wait_s must not be negative, got {self.wait_s}")


@dataclass(frozen=True)
class Limits:
    """When requests are turned away.

    Attributes:
        queue: requests that wait at one queue at most; more are rejected.
        timeout_s: a request that is not answered by then is given up: it leaves its queue, or is
            computed in vain.
        predicted_s: admission control: a request whose predicted latency is longer is rejected.
        retries: times that a request whose server was lost is sent again; then it is rejected.
    """

    __pydantic_config__ = STRICT
    queue: int | None = None
    timeout_s: float | None = None
    predicted_s: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        """Refuse limits that are not positive."""
        positive("serving.limits", queue=self.queue, timeout_s=self.timeout_s)
        positive("serving.limits", predicted_s=self.predicted_s)
        if self.retries < 0:
            raise ValueError(f"serving.limits: retries must not be negative, got {self.retries}")

    @property
    def shed_load(self) -> bool:
        """Whether requests are turned away, so that queues stay finite under any load."""
        return any(v is not None for v in (self.queue, self.timeout_s, self.predicted_s))


@dataclass(frozen=True)
class Serving:
    """Replicas, batching, how requests find a replica, and when they are turned away.

    Attributes:
        routing: `round_robin`, `shortest_queue` (waiting and running), `shared_queue` (one for
            all), `fastest` (the replica that is predicted to answer first).
        engine: `simpy` is the reference, `fast` is compiled and gives the same times; `auto` takes
            `fast` where it can.
        replications: independent runs, from which the confidence intervals come.
        boot: what a new replica goes through before it serves.
        failures, spot: when hardware breaks, or is taken back.
        autoscaling: how the number of replicas follows the load; `replicas` is that of the start.
        continuous: continuous batching, of servers of generations.
    """

    __pydantic_config__ = STRICT
    replicas: int = 1
    batch: Batching = field(default_factory=Batching)
    routing: Literal["round_robin", "shortest_queue", "shared_queue", "fastest"] = "shortest_queue"
    limits: Limits = field(default_factory=Limits)
    engine: Literal["auto", "simpy", "fast"] = "auto"
    replications: int = 10
    boot: Boot | None = None
    failures: Failures | None = None
    spot: Spot | None = None
    autoscaling: Autoscaling | None = None
    continuous: Continuous = field(default_factory=Continuous)

    def __post_init__(self) -> None:
        """Refuse a fleet out of its bounds, and waits for company that outlast the time-out."""
        positive("serving", replicas=self.replicas, replications=self.replications)
        auto = self.autoscaling
        if auto is not None and not auto.min <= self.replicas <= auto.max:
            raise ValueError(
                f"serving: replicas must be from autoscaling.min ({auto.min}) to "
                f"autoscaling.max ({auto.max}), got {self.replicas}"
            )
        timeout_s = self.limits.timeout_s
        if timeout_s is not None and timeout_s <= self.batch.wait_s:
            raise ValueError(
                f"serving.limits: timeout_s must be longer than batch.wait_s "
                f"({self.batch.wait_s}), got {timeout_s}"
            )


@dataclass(frozen=True)
class ServiceTimes:
    """A replica: latency and period of a batch by its size, linear between the given points.

    The period is the time after which the replica takes the next batch.

    Attributes:
        spread: how the times of single batches lie about these means.
        cv: coefficient of variation of a lognormal spread.
    """

    sizes: tuple[int, ...]
    latency_s: tuple[float, ...]
    period_s: tuple[float, ...]
    spread: Literal["deterministic", "exponential", "lognormal"] = "deterministic"
    cv: float = 0.0

    def latency(self, size: int) -> float:
        """Mean seconds from the start of a batch to its answers."""
        return float(np.interp(size, self.sizes, self.latency_s))

    def period(self, size: int) -> float:
        """Mean seconds from the start of a batch to the start of the next."""
        return float(np.interp(size, self.sizes, self.period_s))

    def capacity_per_s(self, max_batch: int) -> float:
        """Requests per second of one replica under load, when every batch is full."""
        return max_batch / self.period(max_batch)

    def factors(self, num: int, rng: np.random.Generator) -> np.ndarray | None:
        """Times of single batches over their mean, (num,); None where all are 1."""
        if self.spread == "exponential":
            return rng.exponential(1.0, num)
        if self.spread == "lognormal" and self.cv > 0:
            variance = math.log1p(self.cv**2)
            return rng.lognormal(-variance / 2, math.sqrt(variance), num)
        return None


@dataclass(frozen=True)
class Replica:
    """One server of a fleet: a plan on its hardware.

    Attributes:
        name: of its kind; replicas of one kind share it.
        tariff: what it is charged for; None: only its rent while it is up is counted.
    """

    name: str
    times: ServiceTimes
    usd_per_hour: float | None = None
    provenance: str = ""
    tariff: Tariff | None = None

    def max_batch(self, serving: Serving) -> int:
        """The largest batch that it takes."""
        return serving.batch.max or self.times.sizes[-1]
