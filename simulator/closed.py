"""A closed line: a fixed number of jobs goes round through stations, as a load generator does it.

+--> station 1 --> station 2 --> ... --> station K --+
+----------------------------------------------------+
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import simpy

from simulator.fleet import Fleet
from simulator.serving import Replica, Serving
from simulator.trace import Requests


def closed_line(
    stations: Sequence[Replica],
    population: int,
    serving: Serving,
    duration_s: float,
    rng: np.random.Generator,
) -> float:
    """Jobs per second that pass each station, in SimPy; all start before the first one.

    Every station has `serving.replicas` servers under the rules of `serving`; the first tenth of
    the duration is left out.

    Raises:
        ValueError: no jobs, or rules that turn some away, which would never come back.
    """
    if population < 1 or serving.limits.shed_load:
        raise ValueError(
            f"closed line: at least one job and no limits are needed, got {population} jobs "
            f"and {serving.limits}"
        )
    env = simpy.Environment()
    # no station passes more jobs than the slowest one can; a fifth more for its luck
    most_per_s = serving.replicas * min(
        s.times.capacity_per_s(s.max_batch(serving)) for s in stations
    )
    visits = population + math.ceil(1.2 * most_per_s * duration_s) + 1000
    rooms = Requests(np.zeros(visits), duration_s)
    line = [Fleet(env, rooms, serving, rng) for _ in stations]
    done = 0

    def pass_on(station: int) -> Callable[[list[int]], None]:
        following = line[(station + 1) % len(line)]

        def answered(batch: list[int]) -> None:
            nonlocal done
            done += len(batch) * (station == len(line) - 1 and env.now > duration_s / 10)
            for _ in batch:
                following.enter()

        return answered

    for k, (fleet, replica) in enumerate(zip(line, stations, strict=True)):
        fleet.answered = pass_on(k)
        for _ in range(serving.replicas):
            fleet.add(replica)
    for _ in range(population):
        line[0].enter()
    env.run(until=duration_s)
    return done / (0.9 * duration_s)
