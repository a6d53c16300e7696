"""A serving experiment with generations: independent runs of one fleet under one traffic."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from scheduler.report import Quantiles
from simulator.answer_figures import AnswerFigures, measure_answers
from simulator.answers import answer
from simulator.arrivals import Traffic, draw
from simulator.generation_fleet import GenerationFleet
from simulator.generation_relief import changes, relieve_generations
from simulator.generation_report import GenerationServingReport, summarize_answers
from simulator.generations import Generations
from simulator.lengths import Lengths, draw_lengths
from simulator.trace import Counts, Requests

NUM_SAMPLES = 60
"""Of queues, running sequences and KV cache over the duration."""


Tell = Callable[[float], None]


def _silent(share: float) -> None:
    pass


def study_generations(
    fleet: GenerationFleet, traffic: Traffic, tokens: tuple[int, int], tell: Tell = _silent
) -> GenerationServingReport:
    """An experiment, its figures at both ends of the step times, and what changes would give.

    Args:
        fleet: the servers and their rules.
        traffic: when requests come.
        tokens: of prompt and answer where the traffic does not say.
        tell: called with the share that is done.

    Raises:
        InfeasibleError: a server has no room for keys and values.
        ValueError: the trace cannot be read, or has no tokens.
    """
    done, runs = 0, num_runs(fleet, traffic)
    total = runs + len(("low", "high", "now", *changes(fleet)))

    def attempt(changed: GenerationFleet) -> GenerationServingReport:
        nonlocal done
        found = experiment_generations(changed, traffic, tokens)
        done += 1 if done else runs
        tell(min(1.0, done / total))
        return found

    report = attempt(fleet)
    if report.status == "partial":
        return report
    fast = replace(fleet.serving, engine="auto", replications=1)
    once = replace(fleet, serving=fast)
    try:
        low, high = (attempt(replace(once, end=end)) for end in ("low", "high"))
        report = replace(
            report,
            ttft_band_s=_means(low.ttft_s, high.ttft_s),
            tpot_band_s=_means(low.tpot_s, high.tpot_s),
            latency_band_s=_means(low.latency_s, high.latency_s),
        )
        return relieve_generations(report, once, attempt)
    except KeyboardInterrupt:
        return replace(report, status="partial")


def _means(low: Quantiles | None, high: Quantiles | None) -> tuple[float, float] | None:
    """Means, as a quantile may jump between kinds of servers."""
    return (min(low.mean, high.mean), max(low.mean, high.mean)) if low and high else None


def num_runs(fleet: GenerationFleet, traffic: Traffic) -> int:
    """Runs that differ: one where nothing is drawn at random."""
    return 1 if traffic.trace and not fleet.actors else fleet.serving.replications


def experiment_generations(
    fleet: GenerationFleet, traffic: Traffic, tokens: tuple[int, int]
) -> GenerationServingReport:
    """Simulate a fleet under traffic, `serving.replications` times, and summarize.

    Ctrl-C ends it with what is known, marked partial.

    Raises:
        KeyboardInterrupt: nothing is known yet.
    """
    deployment = fleet.deployment()
    rng = np.random.default_rng(traffic.seed)
    runs: list[AnswerFigures] = []
    try:
        for own in rng.spawn(num_runs(fleet, traffic)):
            drawn = draw(traffic, own)
            requests = generations(drawn, traffic, tokens, own)
            sample_s = np.linspace(0, drawn.duration_s, NUM_SAMPLES + 1)[1:].tolist()
            deployment = replace(deployment, rng=own)
            done = answer(requests, deployment, drawn.duration_s, fleet.serving.engine, sample_s)
            runs.append(measure_answers(done, deployment.pools, traffic.slo))
            if runs[-1].interrupted:
                break
    except KeyboardInterrupt:
        if not runs:
            raise
        runs[-1] = replace(runs[-1], interrupted=True)
    return summarize_answers(runs, deployment.pools, fleet.usd_per_hour, traffic.slo, tokens)


def generations(
    drawn: Requests, traffic: Traffic, tokens: tuple[int, int], rng: np.random.Generator
) -> Generations:
    """Requests with their tokens: of the trace, of the traffic, or of the model.

    Raises:
        ValueError: a trace without tokens, and nothing in the traffic says how many.
    """
    if not len(drawn.arrival_s):
        raise ValueError("traffic: no request came within its duration; take a longer duration_s")
    columns: list[Counts] = []
    for recorded, asked, usual in (
        (drawn.prompt_tokens, traffic.prompt_tokens, tokens[0]),
        (drawn.output_tokens, traffic.output_tokens, tokens[1]),
    ):
        if asked is None and recorded is not None:
            columns.append(recorded)
            continue
        lengths = asked if isinstance(asked, Lengths) else Lengths(asked or usual)
        columns.append(draw_lengths(lengths, len(drawn.arrival_s), rng))
    return Generations(drawn.arrival_s, *columns)
