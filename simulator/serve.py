"""Serving under traffic in SimPy: the reference engine.

At one instant things happen in the order in which they were scheduled, as SimPy does it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import simpy

from simulator.fleet import Fleet, Process
from simulator.served import Batches, Served, Uptime, draw_factors, settle
from simulator.serving import Replica, Serving
from simulator.trace import Requests

Actor = Callable[[Fleet], Process]
"""Something that adds, drains or loses servers while requests are served."""


def serve(
    replicas: Sequence[Replica],
    requests: Requests,
    serving: Serving,
    rng: np.random.Generator,
    actors: Sequence[Actor] = (),
) -> Served:
    """Simulate requests at replicas that batch them, until the traffic's duration is over.

    Ctrl-C ends the run where it is.
    """
    env = simpy.Environment()
    fleet = Fleet(env, requests, serving, rng)
    fleet.factors = draw_factors(replicas, len(requests.arrival_s), rng)
    for replica in replicas:
        fleet.add(replica)
    env.process(fleet.source())
    for actor in actors:
        env.process(actor(fleet))
    until_s, interrupted = requests.duration_s, False
    try:
        env.run(until=until_s)
    except KeyboardInterrupt:
        until_s, interrupted = env.now, True
    return _outcome(fleet, until_s, interrupted)


def _outcome(fleet: Fleet, until_s: float, interrupted: bool) -> Served:
    num = fleet.arrived
    arrival_s = np.array(fleet.arrival_s[:num])
    end_s, state = settle(
        arrival_s,
        np.array(fleet.answer_s[:num]),
        fleet.rejected[:num],
        until_s,
        fleet.serving.limits.timeout_s,
    )
    columns = zip(*fleet.batches, strict=True) if fleet.batches else ((), (), (), ())
    starts, busy, servers, sizes = columns
    return Served(
        arrival_s,
        np.array(fleet.start_s[:num]),
        end_s,
        state,
        Batches(
            np.array(starts, dtype=np.float64),
            np.array(busy, dtype=np.float64),
            np.array(servers, dtype=np.int32),
            np.array(sizes, dtype=np.int32),
        ),
        tuple(Uptime(s.replica, s.start_s, min(s.end_s, until_s)) for s in fleet.servers),
        until_s,
        tuple(machine.rental(until_s) for machine in fleet.machines),
        fleet.retries,
        interrupted,
    )
