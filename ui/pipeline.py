"""The steps of the main job, shared by the command line and the app.

Torch is imported inside the functions that need it, so that help and catalogs answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hardware.catalog import find_instance, instance_cluster, load_instances, load_prices
from hardware.cluster import Cluster, Link
from hardware.documents import nearest, read
from hardware.errors import InfeasibleError
from hardware.profile import Provenance
from scheduler.costs import CostTable, cost_table
from scheduler.graph import Graph
from scheduler.plan import Plan
from scheduler.portfolio import Solution, solve
from scheduler.problem import Problem
from scheduler.report import Report
from simulator.billing import Cost, bill
from simulator.capacity import Candidate, Fleet, size_fleets
from simulator.replay import replay
from simulator.serve import ServingReport, serve
from simulator.whatif import Outcome, best_plan, compare_instances, service_times
from ui.scenario import Rented, Scenario

if TYPE_CHECKING:
    from executor.run import Execution, LoadedModel
    from executor.workers import Workers

Tell = Callable[[float], None]
Steps = Callable[[str], AbstractContextManager[Tell]]
"""`with steps('Doing this') as tell:` shows a step; `tell(share)` moves its bar, 0 to 1."""


@dataclass(frozen=True)
class Prepared:
    """A scenario with its graph (one micro-batch), its hardware and the times on it."""

    scenario: Scenario
    problem: Problem
    solution: Solution | None = None

    @property
    def graph(self) -> Graph:
        """The captured graph of one micro-batch."""
        return self.problem.graph


@dataclass(frozen=True)
class Measured:
    """What running for real gave: the plan, and the unsplit model on each device and all cores."""

    execution: Execution
    baselines: dict[str, Report] = field(default_factory=dict)


def capture_graph(scenario: Scenario) -> tuple[Graph, int]:
    """Capture the model for one micro-batch; returns it and the micro-batches per batch.

    Raises:
        ValueError: the model cannot be found or captured, or the batch not cut as asked.
    """
    from executor.capture import capture
    from executor.run import most_micro_batches

    model = scenario.model
    asked = scenario.num_micro_batches
    if isinstance(asked, int) and (asked < 1 or model.batch % asked):
        raise ValueError(f"num_micro_batches must divide model.batch ({model.batch}), got {asked}")
    m = asked if isinstance(asked, int) else most_micro_batches(*_model_key(scenario))
    return capture(model.source, model.batch // m, model.dtype), m


def _model_key(scenario: Scenario) -> tuple[str, int, str]:
    return scenario.model.source, scenario.model.batch, scenario.model.dtype


def is_local(scenario: Scenario) -> bool:
    """Whether the scenario's hardware is this machine."""
    return scenario.hardware == "local"


def start_workers() -> Workers:
    """One worker for each device of this machine, to be used as a context manager."""
    from executor.devices import local_devices
    from executor.workers import Workers

    return Workers(local_devices())


def local_cluster(workers: Workers, steps: Steps, recalibrate: bool = False) -> Cluster:
    """This machine's devices as measured: from the cache, or now."""
    from executor.calibrate import cached_cluster, calibrate

    cluster = None if recalibrate else cached_cluster()
    if cluster is None:
        with steps("Measuring this machine's devices and links") as tell:
            cluster = calibrate(workers, tell)
    return cluster


def rented_cluster(scenario: Scenario) -> Cluster:
    """The devices of the scenario's instances, or of its cluster file.

    Raises:
        ValueError: an unknown instance, or a file that is not a cluster.
    """
    if isinstance(scenario.hardware, str):
        path = Path(scenario.hardware)
        if not path.exists():
            raise ValueError(
                f"hardware: '{scenario.hardware}' is neither 'local' nor a file"
                + nearest(scenario.hardware, ["local"])
            )
        return read(path, Cluster)
    return _joined(scenario.hardware)


def _joined(rented: Rented) -> Cluster:
    clusters = [instance_cluster(find_instance(name)) for name in rented.instances]
    if len(clusters) == 1 or rented.network is None:
        return clusters[0]
    devices = {f"{i}.{d}": p for i, c in enumerate(clusters) for d, p in c.devices.items()}
    links = [
        replace(link, src=f"{i}.{link.src}", dst=f"{i}.{link.dst}", medium=f"{i}.{link.medium}")
        for i, cluster in enumerate(clusters)
        for link in cluster.links
    ]
    source = Provenance("literal", "network of the scenario")
    for src, dst in permutations(devices, 2):
        if src.split(".")[0] != dst.split(".")[0]:
            network = rented.network
            medium = f"network {src.split('.')[0]} to {dst.split('.')[0]}"
            links.append(Link(src, dst, network.bytes_per_s, network.latency_s, source, medium))
    return Cluster(" + ".join(rented.instances), devices, tuple(links))


def rent(scenario: Scenario) -> tuple[float | None, str]:
    """USD per hour of the scenario's hardware and where the price comes from; None if unpriced.

    Raises:
        ValueError: the catalog has no price for an instance as asked.
    """
    choice = scenario.prices
    if isinstance(scenario.hardware, Rented):
        book = load_prices()
        prices = [book.find(n, choice.market, choice.region) for n in scenario.hardware.instances]
        return sum(price.usd_per_hour for price in prices), "; ".join(map(str, prices))
    if choice.usd_per_hour is not None:
        return choice.usd_per_hour, "prices.usd_per_hour of the scenario"
    return None, "this machine has no price; set prices.usd_per_hour"


def prepare(
    scenario: Scenario,
    graph: Graph,
    num_micro_batches: int,
    cluster: Cluster,
    costs: CostTable | None = None,
) -> Prepared:
    """State the placement problem; without measured `costs` the cost model predicts them.

    Raises:
        ValueError: an unsupported dtype, unknown pins, or an objective without a price.
    """
    problem = Problem(
        graph,
        cluster,
        costs or cost_table(graph, cluster),
        scenario.objective,
        scenario.constraints.pin,
        scenario.constraints.memory_headroom,
        rent(scenario)[0],
        num_micro_batches,
    )
    return Prepared(scenario, problem)


def prepare_anywhere(scenario: Scenario, steps: Steps) -> Prepared:
    """Capture, find or measure the hardware, and state the problem, without executing."""
    if not is_local(scenario):
        return prepare_rented(scenario, steps)
    with start_workers() as workers:
        return prepare_local(scenario, workers, steps)[0]


def prepare_rented(scenario: Scenario, steps: Steps) -> Prepared:
    """Capture the model and predict it on rented hardware, cut or whole, whichever plans better."""
    cluster = rented_cluster(scenario)
    rent(scenario)
    with steps("Capturing the model"):
        graph, m = capture_graph(scenario)
    prepared = prepare(scenario, graph, m, cluster)
    if scenario.num_micro_batches != "auto":
        return prepared
    with steps("Choosing micro-batches"):
        return replace(prepared, problem=best_plan(prepared.problem)[0])


def prepare_local(
    scenario: Scenario, workers: Workers, steps: Steps, recalibrate: bool = False
) -> tuple[Prepared, LoadedModel]:
    """Capture the model and measure its operators on this machine, cut or whole.

    For throughput and cost the faster of the two on these devices; for latency always cut, so
    that the devices work at the same time.
    """
    from executor.cache import cached_choice
    from executor.run import uncut, whole_is_faster

    with steps("Capturing the model"):
        graph, m = capture_graph(scenario)
    model = load(scenario, m, steps)
    cluster = local_cluster(workers, steps, recalibrate)
    if m > 1 and scenario.num_micro_batches == "auto" and scenario.objective != "latency":
        with steps("Comparing whole batches with micro-batches") as tell:
            if cached_choice(graph, lambda: whole_is_faster(workers, model, tell), recalibrate):
                model, m = uncut(model), 1
                graph, m = capture_graph(replace(scenario, num_micro_batches=1))
    costs = measure_op_times(workers, model, graph, steps, recalibrate)
    return prepare(scenario, graph, m, cluster, costs), model


def load(scenario: Scenario, num_micro_batches: int, steps: Steps) -> LoadedModel:
    """Build the model with weights."""
    from executor.run import load_model

    with steps("Building the model with weights"):
        return load_model(*_model_key(scenario), num_micro_batches)


def measure_op_times(
    workers: Workers, model: LoadedModel, graph: Graph, steps: Steps, fresh: bool = False
) -> CostTable:
    """Operator times measured on this machine's devices, or those measured before."""
    from executor.run import op_times

    with steps("Measuring the model's operators on every device") as tell:
        return op_times(workers, model, graph, tell, fresh)


def plan(prepared: Prepared, steps: Steps) -> Prepared:
    """Run the placement algorithms."""
    with steps("Planning"):
        return replace(prepared, solution=solve(prepared.problem, prepared.scenario.algorithm))


def predict(prepared: Prepared, chosen: Plan, steps: Steps) -> tuple[Report, Cost | None]:
    """Replay a plan in simulation and price it."""
    with steps("Simulating"):
        report = replay(prepared.problem, chosen)
    usd_per_hour, provenance = rent(prepared.scenario)
    cost = None
    if usd_per_hour is not None:
        cost = bill(usd_per_hour, report.throughput_per_s, provenance)
    return report, cost


def elsewhere(
    scenario: Scenario,
    graph: Graph,
    num_micro_batches: int,
    steps: Steps,
    names: list[str] | None = None,
) -> list[Outcome]:
    """The same model planned, simulated and priced on instances of the catalog."""
    instances = [find_instance(name) for name in names or load_instances()]
    with steps("What if: other instances") as tell:
        return compare_instances(
            graph,
            num_micro_batches,
            instances,
            load_prices(),
            scenario.objective,
            scenario.prices.market,
            tell,
        )


def execute(
    workers: Workers, model: LoadedModel, prepared: Prepared, chosen: Plan, steps: Steps
) -> Measured:
    """Run the unsplit model on every device and on all cores, then the plan, for real.

    Raises:
        WorkerError: a worker died or failed.
        ValueError: the plan was made for devices that this machine does not have.
    """
    from executor import run
    from executor.devices import all_cores

    for device in chosen.devices:
        if device not in workers.devices:
            raise ValueError(
                f"the plan uses device '{device}', this machine has: {', '.join(workers.devices)}"
            )
    batch = prepared.scenario.model.batch
    baselines: dict[str, Report] = {}
    for device in workers.devices:
        with steps(f"Running the unsplit model on {device}") as tell:
            baselines[device], reference = run.run_whole_in(workers, device, model, batch, tell)
    with steps("Running the plan") as tell:
        execution = run.execute(workers, model, chosen, prepared.problem, reference, tell)
    with steps("Running the unsplit model on all cores") as tell:
        baselines["all cores"], _ = run.run_whole(all_cores(), model, batch, tell)
    return Measured(execution, baselines)


def check_promise(scenario: Scenario) -> None:
    """Refuse to size a fleet for no promise.

    Raises:
        ValueError: the scenario has no traffic or no promise.
    """
    if scenario.traffic is None or scenario.traffic.slo is None:
        raise ValueError(
            "size needs traffic with a promise, e.g. traffic: {rate: 40, slo: {p95_s: 0.15}}"
        )


def serve_traffic(prepared: Prepared) -> ServingReport:
    """Simulate the scenario's traffic on its replicas.

    Raises:
        ValueError: the scenario has no traffic.
    """
    scenario, problem = prepared.scenario, prepared.problem
    if scenario.traffic is None:
        raise ValueError("traffic: the scenario has none")
    max_batch = scenario.serving.batch.max or scenario.model.batch
    times = service_times(problem.graph, problem.cluster, max_batch, problem.costs)
    rng = np.random.default_rng(scenario.traffic.seed)
    return serve(times, scenario.traffic, scenario.serving, rng)


def profile_age_s(cluster: Cluster) -> float:
    """Seconds since this machine's devices were measured."""
    from executor.cache import age_s

    return age_s(next(iter(cluster.devices.values())).provenance.date)


def size(scenario: Scenario, steps: Steps, names: list[str] | None = None) -> list[Fleet]:
    """The smallest fleet of every catalog instance, and of this machine, for the traffic.

    Raises:
        ValueError: the scenario has no traffic or no promise.
    """
    check_promise(scenario)
    max_batch = scenario.serving.batch.max or scenario.model.batch
    candidates = []
    if is_local(scenario):
        problem = prepare_anywhere(scenario, steps).problem
        graph = problem.graph
        times = service_times(graph, problem.cluster, max_batch, problem.costs)
        usd_per_hour = scenario.prices.usd_per_hour
        candidates.append(Candidate("this machine", times, usd_per_hour, "measured"))
    else:
        with steps("Capturing the model"):
            graph, _ = capture_graph(scenario)
    return candidates_to_fleets(scenario, graph, candidates, names or list(load_instances()), steps)


def candidates_to_fleets(
    scenario: Scenario, graph: Graph, candidates: list[Candidate], names: list[str], steps: Steps
) -> list[Fleet]:
    """Add catalog instances to the candidates and size them all.

    Raises:
        ValueError: the scenario has no traffic or no promise.
    """
    check_promise(scenario)
    assert scenario.traffic is not None
    max_batch = scenario.serving.batch.max or scenario.model.batch
    with steps("Planning each instance") as tell:
        for number, name in enumerate(names):
            candidates = [*candidates, _candidate(scenario, graph, name, max_batch)]
            tell((number + 1) / len(names))
    with steps("Simulating fleets") as tell:
        return size_fleets(candidates, scenario.traffic, scenario.serving, tell)


def _candidate(scenario: Scenario, graph: Graph, name: str, max_batch: int) -> Candidate:
    cluster = instance_cluster(find_instance(name))
    level = " and ".join(sorted({p.provenance.level for p in cluster.devices.values()}))
    try:
        price = load_prices().find(name, scenario.prices.market)
        return Candidate(name, service_times(graph, cluster, max_batch), price.usd_per_hour, level)
    except (InfeasibleError, ValueError) as refusal:
        return Candidate(name, None, None, level, str(refusal))
