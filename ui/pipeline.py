"""The steps of the main job, shared by the command line and the app.

Torch is imported inside the functions that need it, so that help and catalogs answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hardware.catalog import common_instances, find_instance, load_prices
from hardware.cluster import Cluster
from hardware.units import format_seconds
from scheduler.coarsen import at_grain, groups_of
from scheduler.costs import CostTable, cost_table, rescale
from scheduler.generation import Generation
from scheduler.graph import Graph, sharing_weights
from scheduler.instances import Instance
from scheduler.plan import Plan
from scheduler.portfolio import Solution, solve
from scheduler.precision import Precision, Pruning, pruned, with_precision
from scheduler.problem import Problem
from scheduler.report import Report
from simulator.billing import Cost, bill
from simulator.generation import GenerationReport, predict_generation
from simulator.replay import replay
from simulator.serve import ServingReport, serve
from simulator.whatif import Outcome, best_plan, compare_instances, service_times
from ui.graph_source import graph_file, instance_of, stored_graph
from ui.rented import rent, rented_cluster
from ui.scenario import ModelSpec, Scenario
from ui.source import captured

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
    """The graph of one micro-batch, what-ifs applied, and the micro-batches per batch.

    Raises:
        ValueError: the model cannot be found or captured, or the batch not cut as asked.
    """
    model = scenario.model
    asked = scenario.num_micro_batches
    if isinstance(asked, int) and (asked < 1 or model.batch % asked):
        raise ValueError(f"num_micro_batches must divide model.batch ({model.batch}), got {asked}")
    path = graph_file(scenario)
    if path:
        m = asked if isinstance(asked, int) else 1
        return changed(stored_graph(path, model.batch // m), model), m
    if model.mode != "inference":
        if asked not in ("auto", 1):
            raise ValueError(
                f"num_micro_batches must be 1 for mode {model.mode}, got {asked}: "
                "each step needs what the one before left"
            )
        found = captured(model)
        return changed(found.decode if isinstance(found, Generation) else found, model), 1
    m = asked if isinstance(asked, int) else _most_micro_batches(model)
    part = captured(replace(model, batch=model.batch // m))
    assert isinstance(part, Graph)
    return changed(part, model), m


def _most_micro_batches(model: ModelSpec) -> int:
    from executor.run import most_micro_batches

    return most_micro_batches(*_model_key(model), tokens=model.tokens)


def changed(graph: Graph, model: ModelSpec) -> Graph:
    """The graph with the model's what-ifs applied."""
    graph = with_precision(graph, model.precision)
    return pruned(graph, model.pruning, model.precision.weights)


def _model_key(model: ModelSpec) -> tuple[str, int, str]:
    return model.source, model.batch, model.dtype


def is_local(scenario: Scenario) -> bool:
    """Whether the scenario's hardware is this machine."""
    return scenario.hardware == "local"


def why_not_here(scenario: Scenario) -> str:
    """Why a scenario can be predicted only, not executed; empty where it runs on this machine."""
    model = scenario.model
    if not is_local(scenario):
        return "its hardware is not this machine; set hardware: local"
    if graph_file(scenario):
        return f"{model.source} holds no weights to run; name the model itself as model.source"
    if model.mode != "inference":
        return f"mode {model.mode} is predicted only; apportion simulate predicts it"
    if model.precision.is_what_if:
        return (
            "model.precision is predicted only; "
            "set model.dtype to float32, bfloat16 or float16 in its place"
        )
    if model.pruning.ratio:
        return (
            "model.pruning is predicted only; leave it out, or prune the module of a python: source"
        )
    return ""


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
            return calibrate(workers, tell, recalibrate)
    age_s = profile_age_s(cluster)
    age = "on an unknown date" if age_s is None else f"{format_seconds(age_s)} ago"
    with steps(f"This machine's profile was measured {age}"):
        return cluster


def prepare(
    scenario: Scenario,
    graph: Graph,
    num_micro_batches: int,
    cluster: Cluster,
    costs: CostTable | None = None,
) -> Prepared:
    """State the placement problem; without measured `costs` the cost model predicts them.

    Steps of training and generation follow one another, so their throughput is that of one step
    at a time; in training, what reads a weight stays with its update.

    Raises:
        ValueError: an unsupported dtype, unknown pins, or an objective without a price.
    """
    alone = graph.is_sequential and scenario.objective == "throughput"
    problem = Problem(
        graph,
        cluster,
        costs or cost_table(graph, cluster),
        "latency" if alone else scenario.objective,
        scenario.constraints.pin,
        scenario.constraints.memory_headroom,
        rent(scenario)[0],
        num_micro_batches,
        colocated=groups_of(at_grain(graph, scenario.grain))
        + (sharing_weights(graph) if graph.mode == "training" else ()),
    )
    return Prepared(scenario, problem)


def prepare_anywhere(scenario: Scenario, steps: Steps) -> Prepared:
    """Capture, find or measure the hardware, and state the problem, without executing."""
    if instance := instance_of(scenario):
        return prepare_instance(scenario, instance)
    if not is_local(scenario):
        return prepare_rented(scenario, steps)
    with start_workers() as workers:
        if graph_file(scenario) or scenario.model.mode != "inference":
            return prepare(scenario, *capture_graph(scenario), local_cluster(workers, steps))
        model = scenario.model
        plain = replace(model, precision=Precision(), pruning=Pruning())
        prepared = prepare_local(replace(scenario, model=plain), workers, steps)[0]
    return vary_measured(prepared, scenario) if model.is_what_if else prepared


def prepare_instance(scenario: Scenario, instance: Instance) -> Prepared:
    """State the problem of a placement instance; its memory limits are taken whole."""
    problem = Problem(
        instance.graph,
        instance.cluster,
        instance.costs,
        scenario.objective,
        scenario.constraints.pin,
        memory_headroom=0.0,
        usd_per_hour=rent(scenario)[0],
        colocated=instance.colocated + groups_of(at_grain(instance.graph, scenario.grain)),
        communication="serialised" if instance.costs.ends else "overlapped",
    )
    return Prepared(scenario, problem)


def vary_measured(prepared: Prepared, scenario: Scenario) -> Prepared:
    """Apply a scenario's what-ifs to a problem with measured times.

    Each time changes as the cost model says that it would: measured * predicted / predicted.
    """
    problem = prepared.problem
    graph = changed(problem.graph, scenario.model)
    predicted = [cost_table(g, problem.cluster) for g in (problem.graph, graph)]
    costs = rescale(problem.costs, *predicted)
    return prepare(scenario, graph, problem.num_micro_batches, problem.cluster, costs)


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
        return load_model(
            *_model_key(scenario.model), num_micro_batches, tokens=scenario.model.tokens
        )


def measure_op_times(
    workers: Workers, model: LoadedModel, graph: Graph, steps: Steps, fresh: bool = False
) -> CostTable:
    """Operator times measured on this machine's devices, or those measured before."""
    from executor.run import op_times

    with steps("Measuring the model's operators on every device") as tell:
        return op_times(workers, model, graph, tell, fresh)


def plan(
    prepared: Prepared,
    steps: Steps,
    time_limit_s: float = 0.0,
    improved: Callable[[float, float], None] = lambda value, bound: None,
) -> Prepared:
    """Run the placement algorithms; search within the time limit, telling value and bound."""
    algorithm = prepared.scenario.algorithm
    with steps("Planning"):
        solution = solve(prepared.problem, algorithm, time_limit_s, improved)
        return replace(prepared, solution=solution)


def predict(prepared: Prepared, chosen: Plan, steps: Steps) -> tuple[Report, Cost | None]:
    """Replay a plan in simulation and price it; a generation by its tokens, prefill included."""
    with steps("Simulating"):
        report = replay(prepared.problem, chosen)
        answer = generation_report(prepared, chosen, report)
    usd_per_hour, provenance = rent(prepared.scenario)
    cost = None
    if usd_per_hour is not None:
        per_s = answer.tokens_per_s if answer else report.throughput_per_s
        cost = bill(usd_per_hour, per_s, provenance)
    return report, cost


def generation_report(
    prepared: Prepared, chosen: Plan, predicted: Report
) -> GenerationReport | None:
    """What the plan of a decode step means for the generation; None in other modes.

    Raises:
        InfeasibleError: the prefill does not fit.
    """
    if prepared.scenario.model.mode != "generation":
        return None
    found = captured(prepared.scenario.model)
    if not isinstance(found, Generation):
        return None
    return predict_generation(prepared.problem, chosen, found, predicted)


def elsewhere(
    scenario: Scenario,
    graph: Graph,
    num_micro_batches: int,
    steps: Steps,
    names: list[str] | None = None,
) -> list[Outcome]:
    """The same model planned, simulated and priced on instances of the catalog."""
    instances = [find_instance(name) for name in names or common_instances()]
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


def serve_traffic(prepared: Prepared) -> ServingReport:
    """Simulate the scenario's traffic on its replicas.

    Raises:
        ValueError: the scenario has no traffic.
    """
    scenario, problem = prepared.scenario, prepared.problem
    if problem.graph.mode != "inference":
        raise ValueError(
            f"traffic: requests are inferences, model.mode is {scenario.model.mode}; "
            "leave traffic out"
        )
    if scenario.traffic is None:
        raise ValueError("traffic: the scenario has none")
    max_batch = scenario.serving.batch.max or scenario.model.batch
    times = service_times(problem.graph, problem.cluster, max_batch, problem.costs)
    rng = np.random.default_rng(scenario.traffic.seed)
    return serve(times, scenario.traffic, scenario.serving, rng)


def profile_age_s(cluster: Cluster) -> float | None:
    """Seconds since this machine's devices were measured; None where the profile does not say."""
    from executor.cache import age_s

    return age_s(next(iter(cluster.devices.values())).provenance.date)
