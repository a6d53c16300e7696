"""A serving experiment: independent runs of one fleet under one traffic."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from simulator.arrivals import Slo, Traffic, draw
from simulator.overload import excess_per_s, growth_per_s, overloaded, without_bound
from simulator.relief import num_attempts, relieve
from simulator.run_figures import RunFigures, measure
from simulator.serve import Actor, serve
from simulator.served import Served
from simulator.serving import Replica, Serving
from simulator.serving_report import ServingReport, summarize
from simulator.trace import Requests

REQUESTS_PER_RELIEF = {"fast": 1_000_000, "simpy": 100_000}
RUNS_PER_RELIEF = 3
"""At most, of each change that might relieve, by engine; all see the same requests."""

Tell = Callable[[float], None]
Engine = Callable[[Sequence[Replica], Requests, Serving, np.random.Generator], Served]


def _silent(share: float) -> None:
    pass


def choose_engine(serving: Serving, actors: Sequence[Actor] = ()) -> Engine:
    """The engine asked for; `auto` is the compiled one unless servers come and go.

    Raises:
        ValueError: the compiled engine is asked for what it cannot do.
    """
    if serving.engine == "fast" and actors:
        raise ValueError(
            "serving: engine fast has no servers that come and go; set engine: auto or simpy"
        )
    if serving.engine == "simpy" or actors:
        return partial(serve, actors=actors)
    from simulator.fast_serve import serve_fast

    return serve_fast


def experiment(
    fleet: Sequence[Replica],
    traffic: Traffic,
    serving: Serving,
    rng: np.random.Generator,
    actors: Sequence[Actor] = (),
) -> ServingReport:
    """Simulate a fleet under traffic, `serving.replications` times, and summarize.

    Ctrl-C ends it with what is known, marked partial.

    Raises:
        KeyboardInterrupt: nothing is known yet.
        ValueError: there are no replicas, or the trace cannot be read.
    """
    if not fleet:
        raise ValueError("serving: replicas must be positive, got 0")
    engine = choose_engine(serving, actors)
    runs: list[RunFigures] = []
    growths: list[float] = []
    try:
        for own in rng.spawn(num_runs(fleet, traffic, serving, actors)):
            requests = draw(traffic, own)
            if not runs and not serving.limits.shed_load:
                rate = requests.rate if traffic.rate is None else traffic.rate
                growth = growth_per_s(largest(fleet, serving), serving, rate)
                if growth >= 0:
                    return overloaded(growth, rate, largest(fleet, serving), serving, traffic.slo)
            served = engine(fleet, requests, serving, own)
            runs.append(_figures(served, traffic.slo))
            growths.append(excess_per_s(served, serving))
            if runs[-1].interrupted:
                break
    except KeyboardInterrupt:
        if not runs:
            raise
        runs[-1] = replace(runs[-1], interrupted=True)
    report = summarize(runs, fleet, traffic.slo)
    stays = not actors or serving.autoscaling is not None
    return report if stays or serving.limits.shed_load else without_bound(report, growths)


def _figures(run: Served, slo: Slo | None) -> RunFigures:
    """The figures of a run; Ctrl-C while they are made ends the experiment, not the run."""
    try:
        return measure(run, slo)
    except KeyboardInterrupt:
        return replace(measure(run, slo), interrupted=True)


def largest(fleet: Sequence[Replica], serving: Serving) -> Sequence[Replica]:
    """The fleet as large as autoscaling makes it; further replicas take its kinds in turn."""
    auto = serving.autoscaling
    return [fleet[i % len(fleet)] for i in range(max(len(fleet), auto.max if auto else 0))]


def num_runs(
    fleet: Sequence[Replica], traffic: Traffic, serving: Serving, actors: Sequence[Actor]
) -> int:
    """Runs that differ: one where nothing is drawn at random."""
    is_drawn = actors or any(replica.times.spread != "deterministic" for replica in fleet)
    fixed = traffic.trace is not None or traffic.arrivals == "deterministic"
    return 1 if fixed and not is_drawn else serving.replications


def study(
    fleet: Sequence[Replica],
    traffic: Traffic,
    serving: Serving,
    actors: Sequence[Actor] = (),
    tell: Tell = _silent,
) -> ServingReport:
    """An experiment, and what single changes of the fleet or its rules would give.

    `tell` is called with the share that is done.

    Raises:
        ValueError: there are no replicas, or the trace cannot be read.
    """
    all_runs = serving.replications
    done, total = 0, all_runs

    def attempt(changed: Sequence[Replica], rules: Serving) -> ServingReport:
        nonlocal done
        random = np.random.default_rng(traffic.seed)
        report = experiment(changed, traffic, rules, random, actors)
        done += rules.replications
        tell(done / total)
        return report

    total += RUNS_PER_RELIEF * num_attempts(fleet, serving)
    report = attempt(fleet, serving)
    if report.status == "partial":
        return report
    most = REQUESTS_PER_RELIEF["simpy" if serving.engine == "simpy" or actors else "fast"]
    affordable = all_runs * most // max(report.requests["arrived"], 1)
    few = replace(serving, replications=max(1, min(all_runs, RUNS_PER_RELIEF, affordable)))
    total = all_runs + few.replications * num_attempts(fleet, serving)
    try:
        return relieve(report, fleet, few, attempt)
    except KeyboardInterrupt:
        return replace(report, status="partial")
