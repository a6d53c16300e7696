"""Figures of one run of generations: all that its summary needs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scheduler.report import Quantiles, quantiles
from simulator.answers import Answers
from simulator.arrivals import Slo
from simulator.billing import charges_of
from simulator.estimates import blocks
from simulator.generations import (
    BLOCKS,
    RUNNING,
    WAITING,
    Flags,
    Fleet,
    GenerationTimes,
    Server,
    Turnover,
)
from simulator.run_figures import WARM_UP
from simulator.served import FINISHED, IN_FLIGHT
from simulator.step_times import Array
from simulator.upkeep import RunUpkeep, upkeep_of

GROWING_SHARE = 0.01
"""Of the arrivals, what the queue must grow by to count as overload."""


@dataclass(frozen=True)
class AnswerFigures:
    """One run.

    Attributes:
        whole, parts: quantiles by measure (ttft, tpot, latency, wait) of the requests that came
            after the warm-up, and of 10 parts of them in order.
        tokens: given by the end of the traffic.
        good: answers by the end of the traffic that met the promise.
        within: of `counted` requests after the warm-up, those that met the promise.
        servers: by fleet and kind of server, figures by name.
        series: (num_samples,) by name.
        retries: requests that were sent again because their server was lost.
        upkeep: of machines that came and went; None where all stayed.
    """

    whole: dict[str, Quantiles | None]
    parts: dict[str, tuple[Quantiles, ...]]
    counts: dict[str, int]
    duration_s: float
    tokens: int
    good: int
    within: int
    counted: int
    growth_per_s: float
    interrupted: bool
    servers: tuple[dict[str, dict[str, float]], ...]
    series: dict[str, Array]
    retries: int = 0
    upkeep: RunUpkeep | None = None


def measure_answers(run: Answers, fleets: Sequence[Fleet], slo: Slo | None) -> AnswerFigures:
    """The figures of a run."""
    requests = run.requests
    arrival_s, output = requests.arrival_s, requests.output_tokens
    after = arrival_s >= WARM_UP * run.duration_s
    done = after & np.isfinite(run.last_token_s)
    several = done & (output > 1)
    turnover = run.pools[-1].turnover
    counted = after & (np.isfinite(run.last_token_s) | (run.state != IN_FLIGHT))
    values = {
        "ttft": (run.first_token_s - arrival_s)[done],
        "tpot": ((run.last_token_s - run.first_token_s)[several] / (output[several] - 1)),
        "latency": (run.last_token_s - arrival_s)[done],
        "wait": (run.scheduled_s - arrival_s)[done],
    }
    finished = run.state == FINISHED
    return AnswerFigures(
        {name: quantiles(v) if len(v) else None for name, v in values.items()},
        {name: blocks(v) for name, v in values.items()},
        run.counts,
        run.duration_s,
        int(output[finished].sum()),
        int(_within(run, finished, slo).sum()),
        int(_within(run, done, slo).sum()),
        int(counted.sum()),
        queue_growth_per_s(run),
        bool(np.isfinite(run.until_s)),
        tuple(_servers(run, k, fleet) for k, fleet in enumerate(fleets)),
        _series(run, fleets),
        turnover.retries if turnover else 0,
        _upkeep(run, turnover) if turnover else None,
    )


def _upkeep(run: Answers, turnover: Turnover) -> RunUpkeep:
    """What became of the machines of a run, and what they were charged for."""
    busy_s: dict[str, float] = defaultdict(float)
    for server, seconds in zip(turnover.servers, run.pools[-1].busy_s, strict=True):
        busy_s[server.name] += float(seconds)
    items = charges_of(turnover.rentals, busy_s, run.duration_s, run.counts["finished"])
    return upkeep_of(turnover.rentals, items)


def _within(run: Answers, done: Flags, slo: Slo | None) -> Flags:
    """Requests that met all that is promised (num_requests,)."""
    if slo is None:
        return np.zeros(len(done), np.bool_)
    kept = done.copy()
    latency_s = run.last_token_s - run.requests.arrival_s
    gaps = np.maximum(run.requests.output_tokens - 1, 1)
    for promised_s, met_s in (
        (slo.whole_s, latency_s),
        (slo.ttft_s, run.first_token_s - run.requests.arrival_s),
        (slo.tpot_s, (run.last_token_s - run.first_token_s) / gaps),
    ):
        if promised_s is not None:
            kept &= met_s <= promised_s
    return kept


def queue_growth_per_s(run: Answers) -> float:
    """Requests that the queues grow by each second in the second half of the traffic; 0 if bounded.

    Slope of the mean queue in 20 equal parts by least squares, where it is positive beyond its 99 %
    interval, more than a hundredth of the arrivals, and what came at the end waited for longest.
    """
    edges = np.linspace(run.duration_s / 2, run.duration_s, 21)
    arrival_s = run.requests.arrival_s
    never_s = np.where(run.state == IN_FLIGHT, np.inf, arrival_s)
    left_s = np.where(np.isnan(run.scheduled_s), never_s, run.scheduled_s)
    waiting = np.searchsorted(arrival_s, edges) - np.searchsorted(np.sort(left_s), edges)
    if not waiting.any():
        return 0.0
    fit = stats.linregress(edges, waiting)
    rate = len(arrival_s) / run.duration_s
    sure = fit.slope - stats.t.ppf(0.995, len(edges) - 2) * fit.stderr > GROWING_SHARE * rate
    most_at_the_end = waiting[-1] >= 0.9 * waiting.max() and waiting[-1] > 2 * waiting[0]
    return float(fit.slope) if sure and most_at_the_end else 0.0


def _up(met: GenerationTimes, fleet: Fleet, duration_s: float) -> tuple[tuple[Server, ...], Array]:
    """The servers that ever were, and (num_servers, 2) from when to when each took requests."""
    if met.turnover is not None:
        return met.turnover.servers, met.turnover.up_s
    return fleet.servers, np.tile([0.0, duration_s], (len(fleet.servers), 1))


def _servers(run: Answers, pool: int, fleet: Fleet) -> dict[str, dict[str, float]]:
    """Figures of each kind of server, over the time that they are up."""
    met = run.pools[pool]
    servers, up_s = _up(met, fleet, run.duration_s)
    num_blocks = np.array([server.limits.num_blocks for server in servers])
    samples = met.samples if len(met.samples) else np.zeros((1, len(servers), 3), np.int64)
    at_s = met.sample_s if len(met.sample_s) else np.zeros(1)
    is_up = (up_s[:, 0] <= at_s[:, None]) & (at_s[:, None] <= up_s[:, 1])
    seconds = up_s[:, 1] - up_s[:, 0]
    busy_s = np.minimum(met.busy_s, seconds)
    requests = np.bincount(met.server[met.server >= 0], minlength=len(servers))
    kinds = {}
    for name in dict.fromkeys(server.name for server in fleet.servers):
        own = np.array([server.name == name for server in servers])
        times_up = max(int(is_up[:, own].sum()), 1)
        kv = samples[:, own, BLOCKS] / num_blocks[own]
        kinds[name] = {
            "servers": float(seconds[own].sum() / run.duration_s),
            "busy": float(busy_s[own].sum() / max(seconds[own].sum(), 1e-9)),
            "requests": float(requests[own].sum()),
            "kv_mean": float(kv.sum() / times_up),
            "kv_peak": float(kv.max()),
            "running": float(samples[:, own, RUNNING].sum() / times_up),
            "preemptions": float(met.preemptions[own].sum()),
        }
    return kinds


def _series(run: Answers, fleets: Sequence[Fleet]) -> dict[str, Array]:
    """Samples over time: sums over servers, or the mean share of KV cache, by pool."""
    time_s = run.pools[0].sample_s
    series: dict[str, Array] = {"time_s": time_s}
    if len(time_s):
        series["time_s"] = time_s - time_s[0] / 2
        edges = np.array([0.0, *time_s])
        arrived = np.histogram(run.requests.arrival_s, edges)[0]
        series["arrivals_per_s"] = arrived / np.diff(edges)
    for prefix, met, fleet in zip(roles(fleets), run.pools, fleets, strict=True):
        before = "" if prefix == "all" else f"{prefix}_"
        servers, up_s = _up(met, fleet, run.duration_s)
        is_up = (up_s[:, 0] <= time_s[:, None]) & (time_s[:, None] <= up_s[:, 1])
        num_blocks = is_up @ np.array([server.limits.num_blocks for server in servers])
        series[f"{before}waiting"] = met.samples[:, :, WAITING].sum(axis=1).astype(float)
        series[f"{before}running"] = met.samples[:, :, RUNNING].sum(axis=1).astype(float)
        used = met.samples[:, :, BLOCKS].sum(axis=1)
        series[f"{before}kv_used"] = used / np.maximum(num_blocks, 1)
        computing = (met.samples[:, :, RUNNING] > 0).sum(axis=1)
        series[f"{before}utilization"] = computing / np.maximum(is_up.sum(axis=1), 1)
        if met.turnover is not None:
            series["servers_up"] = is_up.sum(axis=1).astype(float)
    return series


def roles(fleets: Sequence[Fleet]) -> tuple[str, ...]:
    """What the servers of each fleet do."""
    return ("all",) if len(fleets) == 1 else ("prefill", "decode")
