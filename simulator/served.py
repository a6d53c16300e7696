"""What became of every request, and what every replica computed: the outcome of one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.serving import Replica, Serving
from simulator.tariff import Tariff
from simulator.trace import Array

IN_FLIGHT, FINISHED, REJECTED, TIMED_OUT = range(4)
STATES = ("in_flight", "finished", "rejected", "timed_out")


@dataclass(frozen=True)
class Batches:
    """Batches in order of their start, (num_batches,) each; a lost one is busy until its loss."""

    start_s: Array
    busy_s: Array
    server: NDArray[np.int32]
    size: NDArray[np.int32]


@dataclass(frozen=True)
class Uptime:
    """A server from when it takes requests until it is gone."""

    replica: Replica
    start_s: float
    end_s: float


class Kind(Protocol):
    """A kind of server, as its bill sees it."""

    @property
    def name(self) -> str:
        """Of the kind."""

    @property
    def tariff(self) -> Tariff | None:
        """What it is charged for."""


class Up(Protocol):
    """A server that a machine became."""

    start_s: float
    end_s: float
    gone: bool


@dataclass(frozen=True)
class Rental:
    """A machine from when it is rented until it is not.

    Attributes:
        market: `spot` or `on_demand` of a fleet that has both; empty for that of its tariff.
        up_s: when it began to serve; None where it never did.
        ended_by: `kept` to the end of the run, `given_back`, `failed` or `preempted`.
    """

    replica: Kind
    market: str
    booked_s: float
    up_s: float | None
    end_s: float
    ended_by: str


@dataclass
class Machine:
    """A rented machine while the run goes on.

    Attributes:
        server: once it serves.
        leaving: it takes no more requests, or never will.
        end_s: when it was lost or given up; a drained one ends with its server.
    """

    replica: Kind
    market: str
    booked_s: float
    server: Up | None = None
    leaving: bool = False
    end_s: float = math.inf
    ended_by: str = "kept"

    @property
    def is_over(self) -> bool:
        """Whether it is rented no more."""
        drained = self.ended_by == "given_back" and self.server is not None and self.server.gone
        return drained or self.end_s < math.inf

    def rental(self, until_s: float) -> Rental:
        """What is known of it at the end of the run."""
        end_s = self.end_s
        if self.ended_by == "given_back" and self.server is not None:
            end_s = min(end_s, self.server.end_s)
        ended_by = self.ended_by if end_s <= until_s else "kept"
        up_s = None if self.server is None else self.server.start_s
        return Rental(self.replica, self.market, self.booked_s, up_s, min(end_s, until_s), ended_by)


@dataclass(frozen=True)
class Served:
    """One run.

    Attributes:
        arrival_s, start_s, end_s: (num_requests,); the end is the answer, the rejection or the
            time-out; NaN for what had not come by `duration_s`.
        state: (num_requests,) IN_FLIGHT, FINISHED, REJECTED or TIMED_OUT.
        rentals: machines in the order in which they were rented; empty where every server was
            there from the start to the end.
        retries: requests that were sent again because their server was lost.
        interrupted: the run ended early, at `duration_s`.
    """

    arrival_s: Array
    start_s: Array
    end_s: Array
    state: NDArray[np.int8]
    batches: Batches
    servers: tuple[Uptime, ...]
    duration_s: float
    rentals: tuple[Rental, ...] = ()
    retries: int = 0
    interrupted: bool = False
    requests: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Count the requests; none may vanish."""
        counts = np.bincount(self.state, minlength=len(STATES))
        counted = dict(zip(STATES, counts.tolist(), strict=True))
        requests = {"arrived": len(self.arrival_s), **dict(sorted(counted.items()))}
        answered = np.isfinite(self.end_s)
        if (
            sum(counted.values()) != len(self.arrival_s)
            or (answered != (self.state != IN_FLIGHT)).any()
        ):
            raise AssertionError(f"requests vanished: {requests}")
        object.__setattr__(self, "requests", requests)

    def busy_within(self) -> Array:
        """Seconds of every batch that lie within the run, (num_batches,)."""
        return np.minimum(self.batches.busy_s, self.duration_s - self.batches.start_s)


def settle(
    arrival_s: Array,
    end_s: Array,
    rejected: NDArray[np.bool_],
    until_s: float,
    timeout_s: float | None,
) -> tuple[Array, NDArray[np.int8]]:
    """When every request ended, as known at the end of a run, and its state then.

    Args:
        arrival_s: (num_requests,).
        end_s: the answers of what was started, also later than the run; of the rejected, when it
            was not on arrival; NaN otherwise.
        rejected: turned away.
        until_s: the end of the run.
        timeout_s: after which a request is given up; None: never.
    """
    end_s = np.where(rejected & np.isnan(end_s), arrival_s, end_s)
    state = np.where(end_s <= until_s, FINISHED, IN_FLIGHT).astype(np.int8)
    state[rejected] = REJECTED
    if timeout_s is not None:
        given_up_s = arrival_s + timeout_s
        late = (given_up_s <= until_s) & ~(end_s <= given_up_s)
        state[late] = TIMED_OUT
        end_s = np.where(late, given_up_s, end_s)
    return np.where(state == IN_FLIGHT, np.nan, end_s), state


def draw_factors(
    replicas: Iterable[Replica], num: int, rng: np.random.Generator
) -> dict[Replica, Array | None]:
    """For each kind of replica, how much longer than its mean a batch takes, by first request."""
    return {kind: kind.times.factors(num, rng) for kind in dict.fromkeys(replicas)}


def times_by_size(replica: Replica, serving: Serving) -> tuple[Sequence[float], Sequence[float]]:
    """Latency and period (s) of batches of 0, 1, 2, ... requests."""
    sizes = range(replica.max_batch(serving) + 1)
    return [replica.times.latency(n) for n in sizes], [replica.times.period(n) for n in sizes]
