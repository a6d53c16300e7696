"""Simulated queues against their closed forms.

Mean wait of M/M/1, M/M/4, M/D/1 and M/G/1 (lognormal, coefficient of variation 2) at utilisation
0.5, 0.8 and 0.95 from 20 independent runs, beside the closed form and whether it lies inside the
99 % interval; then the throughput of a closed tandem line beside mean value analysis; then the
requests of M/M/1 that each engine simulates per second, compiled before.

Sources: Kleinrock, "Queueing Systems", vol. 1, 1975 (Erlang C, Pollaczek-Khinchine); Reiser and
Lavenberg, "Mean-value analysis of closed multichain queuing networks", JACM 27(2), 1980,
doi:10.1145/322186.322195.

Usage: python -m benchmarks.simulator_queueing [--requests N] [--json]
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass

import numpy as np

from simulator.arrivals import Traffic, draw
from simulator.closed import closed_line
from simulator.estimates import student
from simulator.experiment import Engine
from simulator.fast_serve import serve_fast
from simulator.serve import serve
from simulator.service import service_times
from simulator.serving import Batching, Replica, Serving

QUEUES = {
    "M/M/1": ("exponential", None, 1),
    "M/M/4": ("exponential", None, 4),
    "M/D/1": ("deterministic", None, 1),
    "M/G/1": ("lognormal", 2.0, 1),
}
UTILIZATIONS = (0.5, 0.8, 0.95)
RUNS = 20
CONFIDENCE = 0.99
WARM_UP = 0.2
ALONE = Batching(1, 0.0)
ENGINES: dict[str, Engine] = {"simpy": serve, "fast": serve_fast}


@dataclass(frozen=True)
class Row:
    """A simulated figure beside its closed form."""

    name: str
    simulated: float
    interval: tuple[float, float]
    exact: float
    inside: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=300_000, help="per run (default 3e5)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    rows = [wait_row(name, load, arguments.requests) for name in QUEUES for load in UTILIZATIONS]
    rows += [line_row(population, arguments.requests // 50) for population in (1, 4, 16)]
    speeds = {name: speed(engine, arguments.requests) for name, engine in ENGINES.items()}
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "requests_per_s": speeds}))
        return
    print(f"{'':34} {'simulated':>9} {'99 % interval':>20} {'exact':>9}  inside")
    for row in rows:
        interval = f"{row.interval[0]:9.4f} to {row.interval[1]:7.4f}"
        inside = "yes" if row.inside else "NO"
        print(f"{row.name:34} {row.simulated:9.4f} {interval} {row.exact:9.4f}  {inside}")
    for name, per_s in speeds.items():
        print(f"{name}: {per_s:,.0f} requests simulated per second")


def speed(engine: Engine, num_requests: int) -> float:
    """Requests of an M/M/1 queue at 0.8 that an engine simulates per second."""
    fleet = [Replica("M/M/1", service_times("exponential", 1.0, None))]
    serving = Serving(batch=ALONE)
    for num in (100, num_requests):
        rng = np.random.default_rng(0)
        requests = draw(Traffic(0.8, duration_s=num / 0.8), rng)
        started_s = time.perf_counter()
        run = engine(fleet, requests, serving, rng)
    return len(run.arrival_s) / (time.perf_counter() - started_s)


def wait_row(name: str, load: float, num_requests: int) -> Row:
    """Mean wait, in units of the mean service time."""
    spread, cv, servers = QUEUES[name]
    fleet = [Replica(name, service_times(spread, 1.0, cv))] * servers
    rate = load * servers
    traffic = Traffic(rate, duration_s=num_requests / rate)
    serving = Serving(servers, ALONE, "shared_queue")
    waits = []
    for rng in np.random.default_rng(0).spawn(RUNS):
        run = serve_fast(fleet, draw(traffic, rng), serving, rng)
        late = run.arrival_s >= WARM_UP * run.duration_s
        waits.append(float(np.nanmean((run.start_s - run.arrival_s)[late])))
    return beside(
        f"{name} at {load:g}, mean wait", waits, mean_wait(load, servers, squared_cv(name))
    )


def line_row(population: int, num_requests: int) -> Row:
    """Throughput of a closed line of four exponential stations."""
    means_s = [0.5, 1.0, 0.8, 0.3]
    line = [Replica("station", service_times("exponential", mean_s, None)) for mean_s in means_s]
    seconds = float(num_requests)
    rates = [
        closed_line(line, population, Serving(batch=ALONE), seconds, rng)
        for rng in np.random.default_rng(1).spawn(RUNS)
    ]
    exact = mean_value_analysis(means_s, population)
    return beside(f"closed line of 4, {population} jobs, 1/s", rates, exact)


def beside(name: str, values: list[float], exact: float) -> Row:
    mean = float(np.mean(values))
    low, high = student(mean, values, CONFIDENCE)
    return Row(name, mean, (low, high), exact, low <= exact <= high)


def squared_cv(name: str) -> float:
    """Of the service times."""
    spread, cv, _ = QUEUES[name]
    return {"exponential": 1.0, "deterministic": 0.0}.get(spread, (cv or 0.0) ** 2)


def mean_wait(load: float, servers: int, squared_cv: float) -> float:
    """Mean wait in mean service times: Pollaczek-Khinchine, or Erlang C for several servers.

    One server: load (1 + cv^2) / (2 (1 - load)). Several (exponential only):
    C(c, c load) / (c (1 - load)), C being the chance that a request waits.
    """
    if servers == 1:
        return load * (1 + squared_cv) / (2 * (1 - load))
    offered = load * servers
    blocked = offered**servers / math.factorial(servers) / (1 - load)
    free = sum(offered**k / math.factorial(k) for k in range(servers))
    return blocked / (free + blocked) / (servers * (1 - load))


def mean_value_analysis(means_s: list[float], population: int) -> float:
    """Throughput (1/s) of a closed line of exponential single servers.

    With n jobs: R_k = s_k (1 + Q_k(n - 1)), X = n / sum R_k, Q_k = X R_k.
    """
    queue = [0.0] * len(means_s)
    per_s = 0.0
    for n in range(1, population + 1):
        response_s = [s * (1 + q) for s, q in zip(means_s, queue, strict=True)]
        per_s = n / sum(response_s)
        queue = [per_s * r for r in response_s]
    return per_s


if __name__ == "__main__":
    main()
