"""What generations meet at a fleet: the figures of independent runs, with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hardware.documents import STRICT
from scheduler.report import Quantiles
from simulator.alone import alone
from simulator.answer_figures import AnswerFigures, roles
from simulator.arrivals import Slo
from simulator.billing import Bill, bill
from simulator.estimates import CONFIDENCE, NUM_BLOCKS, Intervals, around, average
from simulator.generations import Fleet, Generations
from simulator.run_figures import WARM_UP
from simulator.upkeep import Upkeep, mean_upkeep


@dataclass(frozen=True)
class GenerationPromise:
    """A promise to `share` of the requests, and how many after the warm-up met all of it."""

    __pydantic_config__ = STRICT

    p95_s: float | None
    p99_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    share: float
    kept: bool
    share_within: float


@dataclass(frozen=True)
class GenerationKind:
    """Servers of one kind.

    Attributes:
        servers: that are up, on average.
        role: `all`, or `prefill` or `decode` where these are apart.
        utilization: share of the time from the first arrival to the last that a step computes.
        share: of all requests.
        kv_mean, kv_peak: share of the pages of KV cache in use, as sampled.
        running: sequences that run, on average.
        preemptions: per 1,000 requests.
        alone_ttft_s, alone_tpot_s: of one request that has such a server for itself, with the
            model's tokens of prompt and answer; None where the server does not do that part.
    """

    __pydantic_config__ = STRICT

    name: str
    role: str
    servers: float
    utilization: float
    share: float
    kv_mean: float
    kv_peak: float
    running: float
    preemptions: float
    num_blocks: int
    usd_per_hour: float | None
    provenance: str
    alone_ttft_s: float | None = None
    alone_tpot_s: float | None = None


@dataclass(frozen=True)
class GenerationRelief:
    """What one change would give; None where the queue grows without bound."""

    __pydantic_config__ = STRICT

    change: str
    latency_p95_s: float | None
    ttft_p95_s: float | None
    tpot_p95_s: float | None
    queue_growth_per_s: float
    usd_per_hour: float | None


@dataclass(frozen=True)
class GenerationServingReport:
    """What generations meet under traffic; means over the runs.

    Attributes:
        status: complete, or partial where the user stopped it.
        ttft_s: from arrival to the first token; tpot_s: mean gap between the tokens of an answer;
            latency_s: from arrival to the last token; wait_s: from arrival to the first step. Of
            requests that came after the warm-up, also those answered after the traffic ended; None
            where the queue grows without bound.
        ttft_band_s, tpot_band_s, latency_band_s: means where all step times lie at the low and
            at the high end of their 90 % interval.
        throughput_per_s: requests answered per second; tokens_per_s: tokens given.
        goodput_per_s: requests answered per second that met the whole promise.
        requests: counts over all runs.
        queue_growth_per_s: requests by which the queues grow each second, if the load is above
            capacity; else 0.
        usd_per_hour, usd_per_1k, usd_per_million_tokens: rent, and per 1,000 answers and per
            million tokens given; None without a price.
        series: by name, averaged over servers; `time_s` is the clock of the samples.
        bottleneck, relief: what holds requests up, and what changes would give.
        method: how many runs, what was left out, and where the intervals come from.
        retries: requests that were sent again because their server was lost, over all runs.
        upkeep, bill: of machines that came and went; None where all stayed.
    """

    __pydantic_config__ = STRICT

    status: str
    ttft_s: Quantiles | None
    ttft_interval_s: Intervals | None
    tpot_s: Quantiles | None
    tpot_interval_s: Intervals | None
    latency_s: Quantiles | None
    latency_interval_s: Intervals | None
    wait_s: Quantiles | None
    wait_interval_s: Intervals | None
    throughput_per_s: float
    tokens_per_s: float
    goodput_per_s: float | None
    promise: GenerationPromise | None
    requests: dict[str, int]
    queue_growth_per_s: float
    usd_per_hour: float | None
    usd_per_1k: float | None
    usd_per_million_tokens: float | None
    kinds: tuple[GenerationKind, ...]
    method: str
    ttft_band_s: tuple[float, float] | None = None
    tpot_band_s: tuple[float, float] | None = None
    latency_band_s: tuple[float, float] | None = None
    series: dict[str, list[float]] = field(default_factory=dict, repr=False)
    bottleneck: str = ""
    relief: tuple[GenerationRelief, ...] = ()
    retries: int = 0
    upkeep: Upkeep | None = None
    bill: Bill | None = None


def summarize_answers(
    runs: Sequence[AnswerFigures],
    fleets: Sequence[Fleet],
    usd_per_hour: Sequence[Sequence[float | None]],
    slo: Slo | None,
    tokens: tuple[int, int],
) -> GenerationServingReport:
    """Summarize independent runs.

    `usd_per_hour` is by fleet and server; `tokens` are those of the model's prompt and answer.
    """
    seconds = sum(run.duration_s for run in runs)
    growths = [run.growth_per_s for run in runs]
    growth = float(np.mean(growths)) if all(growths) else 0.0
    ttft, tpot, latency, wait = (
        _estimate(runs, name) if not growth else (None, None)
        for name in ("ttft", "tpot", "latency", "wait")
    )
    totals = {key: sum(run.counts[key] for run in runs) for key in runs[0].counts}
    rents = [price for prices in usd_per_hour for price in prices]
    rent = None if None in rents else math.fsum(price for price in rents if price is not None)
    came = [run.upkeep for run in runs if run.upkeep is not None]
    paid = _bill(runs, fleets) if came else None
    rent = rent if paid is None or rent is None else paid.cost.usd_per_hour
    per_s = totals["finished"] / seconds
    tokens_per_s = sum(run.tokens for run in runs) / seconds
    counted = sum(run.counted for run in runs)
    within = sum(run.within for run in runs)
    share_within = within / counted if counted else 0.0
    promise = goodput = None
    if slo is not None:
        kept = share_within >= slo.promised_share and not growth
        promise = GenerationPromise(
            slo.p95_s, slo.p99_s, slo.ttft_s, slo.tpot_s, slo.promised_share, kept, share_within
        )
        goodput = sum(run.good for run in runs) / seconds
    return GenerationServingReport(
        "partial" if any(run.interrupted for run in runs) else "complete",
        *ttft,
        *tpot,
        *latency,
        *wait,
        per_s,
        tokens_per_s,
        goodput,
        promise,
        totals,
        growth,
        rent,
        rent / 3.6 / per_s if rent is not None and per_s else None,
        rent / 3600 / tokens_per_s * 1e6 if rent is not None and tokens_per_s else None,
        tuple(
            kind
            for k, (role, fleet) in enumerate(zip(roles(fleets), fleets, strict=True))
            for kind in _kinds(
                [run.servers[k] for run in runs], role, fleet, usd_per_hour[k], tokens
            )
        ),
        _method(runs),
        series={
            name: np.mean([run.series[name] for run in runs], axis=0).tolist()
            for name in runs[0].series
            if all(len(run.series[name]) == len(runs[0].series[name]) for run in runs)
        },
        retries=sum(run.retries for run in runs),
        upkeep=mean_upkeep(came, seconds) if came else None,
        bill=paid,
    )


def _bill(runs: Sequence[AnswerFigures], fleets: Sequence[Fleet]) -> Bill:
    """The mean bill of machines that came and went."""
    paid = bill(
        [run.upkeep.items for run in runs if run.upkeep is not None],
        math.fsum(run.duration_s for run in runs) / len(runs),
        sum(run.counts["finished"] for run in runs) / len(runs),
    )
    tariffs = dict.fromkeys(s.tariff for fleet in fleets for s in fleet.servers if s.tariff)
    notes = dict.fromkeys(note for tariff in tariffs for note in tariff.notes())
    return replace(paid, notes=tuple(notes))


def _estimate(
    runs: Sequence[AnswerFigures], name: str
) -> tuple[Quantiles | None, Intervals | None]:
    """Means over runs with their intervals; a single run's from its parts."""
    each = [figures for run in runs if (figures := run.whole[name]) is not None]
    if not each:
        return None, None
    center = average(each)
    return center, around(center, each if len(each) > 1 else runs[0].parts[name])


def _kinds(
    runs: Sequence[dict[str, dict[str, float]]],
    role: str,
    fleet: Fleet,
    usd: Sequence[float | None],
    tokens: tuple[int, int],
) -> list[GenerationKind]:
    names = [server.name for server in fleet.servers]
    total = max(sum(kind["requests"] for run in runs for kind in run.values()), 1.0) / len(runs)
    kinds = []
    for name in dict.fromkeys(names):
        mean = {key: float(np.mean([run[name][key] for run in runs])) for key in runs[0][name]}
        prices = [price for price, other in zip(usd, names, strict=True) if other == name]
        server = fleet.servers[names.index(name)]
        met = alone(server, Generations(np.zeros(1), *np.array(tokens)[:, None]))
        kinds.append(
            GenerationKind(
                name,
                role,
                mean["servers"],
                mean["busy"],
                mean["requests"] / total,
                mean["kv_mean"],
                mean["kv_peak"],
                mean["running"],
                mean["preemptions"] / max(mean["requests"], 1.0) * 1000,
                server.limits.num_blocks,
                None if None in prices else math.fsum(p for p in prices if p is not None),
                server.times.provenance,
                None if role == "decode" else float(met.ttft_s[0]),
                None if role == "prefill" or tokens[1] == 1 else float(met.tpot_s[0]),
            )
        )
    return kinds


def _method(runs: Sequence[AnswerFigures]) -> str:
    source = f"{len(runs)} independent runs" if len(runs) > 1 else f"{NUM_BLOCKS} parts of one run"
    return (
        f"{source} of {runs[0].duration_s:g} s; the first {WARM_UP:.0%} of each left out; "
        f"{CONFIDENCE:.0%} intervals (Student)"
    )
