"""Continuous batching of a fleet in SimPy: how today's LLM servers serve generation.

Each server decides and computes step after step (`simulator.llm_server`); steps in which nothing
but decoding happens are taken together until a request arrives there (`simulator.llm_station`).

    schedule 0 | schedule 1     | schedule 2     |            steps_ahead = 1: the next step is
               | step 0 computes| step 1 computes| ...        decided while one computes

An arrival sees what steps that ended before it left behind; a step that ends with it comes after.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simulator.answers import Actor
from simulator.generations import Fleet, Generations, GenerationTimes, Turnover
from simulator.llm_fleet import LlmFleet

TIE_S = 1e-9
"""What arrives with the end of a run has arrived; the clock sums up differences."""


def generate(
    requests: Generations, fleet: Fleet, sample_s: Sequence[float] = ()
) -> GenerationTimes:
    """Simulate requests on a fleet until all are served, rejected or gone.

    Ctrl-C ends the run where it is.

    Args:
        requests: in order of arrival.
        fleet: the servers.
        sample_s: clock of the samples, ascending.
    """
    run = LlmFleet(requests, fleet, sample_s, math.inf, np.random.default_rng(0))
    run.env.process(run.arrivals())
    try:
        run.env.run()
    except KeyboardInterrupt:
        return _times(run, run.env.now)
    return _times(run, math.inf)


def generate_while(
    requests: Generations,
    fleet: Fleet,
    sample_s: Sequence[float],
    actors: Sequence[Actor],
    end: tuple[float, np.random.Generator],
) -> GenerationTimes:
    """Simulate requests while actors add, drain and lose servers, for the seconds of `end`.

    What has no answer then is in flight. Ctrl-C ends the run where it is.
    """
    run = LlmFleet(requests, fleet, sample_s, *end)
    run.env.process(run.arrivals())
    for actor in actors:
        run.env.process(actor(run))
    until_s = math.inf
    try:
        run.env.run(until=run.duration_s)
    except KeyboardInterrupt:
        until_s = run.env.now
    now_s = run.env.now
    run.deliver(now_s + TIE_S)
    present = run.present()
    turnover = Turnover(
        tuple(station.replica for station in run.servers),
        np.array([(s.start_s, min(s.end_s, now_s)) for s in run.servers]),
        tuple(machine.rental(now_s) for machine in run.machines),
        run.rejected,
        run.retries,
        present,
    )
    return replace(_times(run, until_s), turnover=turnover)


def _times(run: LlmFleet, until_s: float) -> GenerationTimes:
    """What was met until then."""
    samples = np.zeros((len(run.sample_s) - 1, len(run.servers), 3), np.int64)
    for station in run.servers:
        for k, sample in station.samples.items():
            samples[k, station.number] = sample
    return GenerationTimes(
        np.array(run.met.scheduled_s),
        np.array(run.met.first_token_s),
        np.array(run.met.last_token_s),
        run.server,
        np.array(run.met.timed_out, np.bool_),
        np.array([station.queue.preemptions for station in run.servers], np.int64),
        np.array([station.queue.steps for station in run.servers], np.int64),
        np.array([station.busy_s for station in run.servers]),
        np.array(run.sample_s[:-1]),
        samples,
        until_s,
    )
