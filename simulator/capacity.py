"""Capacity planning: the fewest replicas of each candidate that keep a promise."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hardware.errors import InfeasibleError
from hardware.units import format_seconds
from simulator.arrivals import Traffic, draw
from simulator.experiment import experiment
from simulator.generation_report import GenerationServingReport
from simulator.serving import Replica, ServiceTimes, Serving
from simulator.serving_report import ServingReport

Tell = Callable[[float], None]
Met = TypeVar("Met")
MAX_REPLICAS = 10_000
MAX_REQUESTS = 20_000
"""Requests simulated per fleet at most; the duration is shortened to it."""
REPLICATIONS = 5


@dataclass(frozen=True)
class Candidate:
    """Hardware that one replica would run on; `times` is None where it cannot, with the reason."""

    name: str
    times: ServiceTimes | None
    usd_per_hour: float | None
    provenance: str
    reason: str = ""


@dataclass(frozen=True)
class Fleet:
    """The smallest fleet of one candidate, or the reason why there is none.

    Attributes:
        lower_bound_replicas: fewer cannot carry the load, whatever the promise.
        lower_bound_usd_per_hour: their rent.
        instances: rented, where several replicas may fit on one.
        excess: of generations, what a request alone takes over what is promised; the promise can be
            kept where it is 1 at most.
    """

    name: str
    provenance: str
    replicas: int | None = None
    lower_bound_replicas: int | None = None
    usd_per_hour: float | None = None
    report: ServingReport | GenerationServingReport | None = None
    reason: str = ""
    instances: int | None = None
    lower_bound_usd_per_hour: float | None = None
    excess: float | None = None


def size_fleets(
    candidates: list[Candidate], traffic: Traffic, serving: Serving, tell: Tell
) -> list[Fleet]:
    """The smallest fleet of every candidate, by cost per hour; unpriced, then impossible last."""
    fleets = []
    for number, candidate in enumerate(candidates):
        fleets.append(size_fleet(candidate, traffic, serving))
        tell((number + 1) / len(candidates))
    return by_cost(fleets)


def by_cost(fleets: Sequence[Fleet]) -> list[Fleet]:
    """Fleets by cost per hour; unpriced, then impossible last."""
    return sorted(
        fleets,
        key=lambda f: (
            f.replicas is None, f.usd_per_hour is None, f.usd_per_hour or f.excess or math.inf
        ),
    )  # fmt: skip


def fewest(bound: int, run: Callable[[int], Met], kept: Callable[[Met], bool]) -> tuple[int, Met]:
    """The fewest replicas whose run keeps the promise, and that run.

    Adds replicas from the bound until it is kept, then halves the interval.

    Raises:
        InfeasibleError: so many miss it that more would not help.
    """
    failing, replicas = bound - 1, bound
    while not kept(report := run(replicas)):
        failing, replicas = replicas, max(replicas + 1, int(replicas * 1.5))
        if replicas > MAX_REPLICAS:
            raise InfeasibleError(f"{failing} replicas still miss the promise")
    while replicas - failing > 1:
        middle = (replicas + failing) // 2
        if kept(attempt := run(middle)):
            replicas, report = middle, attempt
        else:
            failing = middle
    return replicas, report


def size_fleet(candidate: Candidate, traffic: Traffic, serving: Serving) -> Fleet:
    """The fewest replicas whose simulated p95 keeps `traffic.slo`.

    Doubles from the load bound until the promise holds, then halves the interval: the p95 falls
    with replicas. Every simulation uses the same random numbers.

    Raises:
        ValueError: the traffic has no promise.
    """
    if traffic.slo is None:
        raise ValueError("traffic: a promise is needed to size a fleet, e.g. slo: {p95_s: 0.2}")
    refused = Fleet(candidate.name, candidate.provenance, reason=candidate.reason)
    if candidate.times is None:
        return refused
    promise_s, times = traffic.slo.answer_s, candidate.times
    alone_s = times.latency(1)
    if alone_s > promise_s:
        reason = (
            f"one request alone takes {format_seconds(alone_s)}, "
            f"above the promise of {format_seconds(promise_s)}"
        )
        return replace(refused, reason=reason)
    once = draw(traffic, np.random.default_rng(traffic.seed))
    runs = 1 if traffic.trace else REPLICATIONS
    shortest_s = min(once.duration_s, MAX_REQUESTS / runs / once.rate)
    shorter = replace(traffic, duration_s=shortest_s)
    max_batch = _largest_batch(times, serving.batch.max or times.sizes[-1], promise_s)
    batch = replace(serving.batch, max=max_batch)
    bound = max(1, math.ceil(once.rate / times.capacity_per_s(max_batch)))

    def run(replicas: int) -> ServingReport:
        rules = replace(serving, batch=batch, replications=runs)
        fleet = [Replica(candidate.name, times, candidate.usd_per_hour)] * replicas
        return experiment(fleet, shorter, rules, np.random.default_rng(traffic.seed))

    def kept(report: ServingReport) -> bool:
        return report.promise is not None and report.promise.kept

    try:
        replicas, report = fewest(bound, run, kept)
    except InfeasibleError as refusal:
        reason = f"{refusal} of {format_seconds(promise_s)}"
        return replace(refused, reason=reason, lower_bound_replicas=bound)
    usd = candidate.usd_per_hour
    return Fleet(
        candidate.name, candidate.provenance, replicas, bound,
        None if usd is None else replicas * usd, report, instances=replicas,
        lower_bound_usd_per_hour=None if usd is None else bound * usd,
    )  # fmt: skip


def _largest_batch(times: ServiceTimes, limit: int, promise_s: float) -> int:
    """The largest batch that, started at once, still answers within the promise."""
    return max(size for size in range(1, limit + 1) if times.latency(size) <= promise_s)
