"""Capacity planning for generations: the fewest servers of each candidate that keep a promise."""

import math
from dataclasses import dataclass, replace

import numpy as np

from hardware.errors import InfeasibleError
from hardware.units import format_seconds
from simulator.alone import Alone, alone, least_server_s, mean_tokens
from simulator.arrivals import Slo, Traffic, draw
from simulator.capacity import Fleet, Tell, by_cost, fewest
from simulator.generation_experiment import experiment_generations, generations
from simulator.generation_fleet import GenerationFleet, ServerKind
from simulator.generation_report import GenerationServingReport
from simulator.generations import Generations
from simulator.serving import Serving
from simulator.step_times import Array

MAX_REQUESTS = 60_000
"""Requests simulated per fleet; the duration is shortened to it."""
LEAST_ANSWERS = 20
"""The duration is not shortened below so many mean answers, which fill the servers."""
REPLICATIONS = 3
PROBED = 4_000
"""Requests whose times alone say what can be promised at all."""


@dataclass(frozen=True)
class GenerationCandidate:
    """Hardware that servers would run on; `kind` is None where they cannot, with the reason.

    Attributes:
        usd_per_hour: of an instance.
        per_instance: servers that fit on one.
    """

    name: str
    kind: ServerKind | None
    usd_per_hour: float | None
    provenance: str
    per_instance: int = 1
    reason: str = ""


@dataclass(frozen=True)
class Load:
    """The traffic, as it is simulated, and requests drawn from it."""

    traffic: Traffic
    serving: Serving
    tokens: tuple[int, int]
    requests: Generations
    duration_s: float
    slo: Slo

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.requests.arrival_s) / self.duration_s


def load_of(traffic: Traffic, serving: Serving, tokens: tuple[int, int]) -> Load:
    """Draw the traffic once.

    Raises:
        ValueError: it makes no promise, or no request comes.
    """
    if traffic.slo is None:
        raise ValueError("traffic: a promise is needed to size a fleet, e.g. slo: {ttft_s: 0.5}")
    rng = np.random.default_rng(traffic.seed)
    drawn = draw(traffic, rng)
    requests = generations(drawn, traffic, tokens, rng)
    rules = replace(serving, replications=min(REPLICATIONS, serving.replications))
    return Load(traffic, rules, tokens, requests, drawn.duration_s, traffic.slo)


def size_generations(candidates: list[GenerationCandidate], load: Load, tell: Tell) -> list[Fleet]:
    """The cheapest fleet of each name, by cost per hour; unpriced, then impossible last."""
    fleets = []
    for number, candidate in enumerate(candidates):
        try:
            fleets.append(size_candidate(candidate, load))
        except InfeasibleError as refusal:
            refused = Fleet(candidate.name, candidate.provenance, reason=str(refusal))
            fleets.append(refused)
        tell((number + 1) / len(candidates))
    best: dict[str, Fleet] = {}
    for found in by_cost(fleets):
        best.setdefault(found.name, found)
    return by_cost(list(best.values()))


def size_candidate(candidate: GenerationCandidate, load: Load) -> Fleet:
    """The fewest servers with which the promise is kept.

    What even a request alone misses is impossible. Otherwise servers are added from the load bound
    until the promise is kept, and then the interval is halved: times fall with servers. Every
    simulation uses the same random numbers.

    Raises:
        InfeasibleError: a server has no room, or no number of servers keeps the promise.
    """
    refused = Fleet(candidate.name, candidate.provenance, reason=candidate.reason)
    one = candidate.kind
    if one is None:
        return refused
    fleet = GenerationFleet((one,), load.serving)
    server = fleet.deployment().fleet.servers[0]
    met = alone(server, _some(load.requests))
    excess = excess_of(met, load.slo)
    if excess > 1:
        reason = f"a request alone takes {excess:.3g} times what is promised: {_words(met, load)}"
        return replace(refused, reason=reason, excess=excess)
    least_s = least_server_s(server, *mean_tokens(load.requests))
    bound = max(1, math.ceil(load.rate * least_s * (1 - 1e-9)))
    traffic = _shortened(load, met)

    def run(servers: int) -> GenerationServingReport:
        rented = _rent(candidate, servers)
        each = None if rented is None else rented / servers
        alike = replace(fleet, kinds=(replace(one, replicas=servers, usd_per_hour=each),))
        return experiment_generations(alike, traffic, load.tokens)

    def kept(report: GenerationServingReport) -> bool:
        if report.status == "partial":
            raise KeyboardInterrupt
        return report.promise is not None and report.promise.kept

    servers, report = fewest(bound, run, kept)
    return Fleet(
        candidate.name, candidate.provenance, servers, bound, _rent(candidate, servers), report,
        instances=math.ceil(servers / candidate.per_instance),
        lower_bound_usd_per_hour=_rent(candidate, bound), excess=excess,
    )  # fmt: skip


def excess_of(met: Alone, slo: Slo) -> float:
    """Factor by which the promise is missed, or undercut, in the share that it covers."""
    pairs = ((met.ttft_s, slo.ttft_s), (met.tpot_s, slo.tpot_s), (met.latency_s, slo.whole_s))
    worst = np.max([times / limit for times, limit in pairs if limit is not None], axis=0)
    return _covered(worst, slo)


def _covered(values: Array, slo: Slo) -> float:
    return float(np.quantile(values, slo.promised_share, method="higher"))


def _words(met: Alone, load: Load) -> str:
    """What the promised share of the requests has at best."""
    slo = load.slo
    named = (
        ("first token", met.ttft_s, slo.ttft_s),
        ("further token", met.tpot_s, slo.tpot_s),
        ("answer", met.latency_s, slo.whole_s),
    )
    words = [
        f"{name} within {format_seconds(_covered(times, slo))} (promised {format_seconds(limit)})"
        for name, times, limit in named
        if limit is not None
    ]
    return f"{slo.promised_share:.4g} of them have {', '.join(words)}"


def _some(requests: Generations) -> Generations:
    """Every nth request, PROBED of them at most."""
    every = slice(None, None, -(-len(requests.arrival_s) // PROBED))
    return Generations(
        requests.arrival_s[every], requests.prompt_tokens[every], requests.output_tokens[every]
    )


def _shortened(load: Load, met: Alone) -> Traffic:
    """The traffic, no longer than it takes to say what servers do under it; all of a day."""
    if load.traffic.arrivals == "diurnal":
        return load.traffic
    runs = 1 if load.traffic.trace else load.serving.replications
    long_s = max(MAX_REQUESTS / runs / load.rate, LEAST_ANSWERS * float(met.latency_s.mean()))
    return replace(load.traffic, duration_s=min(load.duration_s, long_s))


def _rent(candidate: GenerationCandidate, servers: int) -> float | None:
    if candidate.usd_per_hour is None:
        return None
    return math.ceil(servers / candidate.per_instance) * candidate.usd_per_hour
