"""A serving experiment: independent runs of one fleet under one traffic."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from simulator.arrivals import Traffic, draw
from simulator.serve import Actor, serve
from simulator.served import Served
from simulator.serving import Replica, Serving
from simulator.serving_report import ServingReport, growth_per_s, overloaded, summarize
from simulator.trace import Requests

Engine = Callable[[Sequence[Replica], Requests, Serving, np.random.Generator], Served]


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
    replicas: Sequence[Replica],
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
    if not replicas:
        raise ValueError("serving: replicas must be positive, got 0")
    engine = choose_engine(serving, actors)
    runs: list[Served] = []
    for own in rng.spawn(1 if traffic.trace else serving.replications):
        requests = draw(traffic, own)
        if not runs and not actors and not serving.limits.shed_load:
            rate = requests.rate if traffic.trace else traffic.rate or 0.0
            growth = growth_per_s(replicas, serving, rate)
            if growth >= 0:
                largest = max(replica.max_batch(serving) for replica in replicas)
                return overloaded(growth, rate - growth, largest)
        runs.append(engine(replicas, requests, serving, own))
        if runs[-1].interrupted:
            break
    return summarize(runs, traffic.slo)
