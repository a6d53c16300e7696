"""From a scenario to a placement problem: the graph, the hardware, and the times on it.

Torch is imported inside the functions that need it, so that help and catalogs answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hardware.cluster import Cluster
from scheduler.cost_model.costs import CostTable, cost_table, rescale
from scheduler.explanation.explain import Explanation
from scheduler.generation import Generation
from scheduler.ir.coarsen import at_grain, groups_of
from scheduler.ir.graph import Graph, sharing_weights
from scheduler.ir.instances import Instance
from scheduler.ir.precision import Precision, Pruning
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.solution import Solution
from scheduler.training.accumulation import accumulating
from scheduler.training.micro_batches import Tried, best_of
from simulator.whatif import best_plan
from ui.graph_source import graph_file, instance_of
from ui.rented import rent, rented_cluster
from ui.scenario import Scenario
from ui.source import capture_graph, captured, changed, without_model
from ui.steps import Steps
from ui.this_machine import is_local, load, local_cluster, measure_op_times, start_workers
from ui.training import tried_micro_batches

if TYPE_CHECKING:
    from executor.loaded import LoadedModel
    from executor.workers import Workers
    from ui.server_kinds import Served


@dataclass(frozen=True)
class Prepared:
    """A scenario with its graph (one micro-batch), its hardware and the times on it.

    Attributes:
        solution: the plans; of the problem with operators split, where that is better.
        unsplit: the best plan without splits.
        explanation: why the chosen plan is as it is, for reports.
        tried: the numbers of micro-batches that a training step was planned with to choose one.
        served: of a generation under traffic, plans as servers run them; the best is chosen.
    """

    scenario: Scenario
    problem: Problem
    solution: Solution | None = None
    unsplit: Plan | None = None
    explanation: Explanation | None = None
    tried: tuple[Tried, ...] = ()
    served: tuple[Served, ...] = ()

    @property
    def graph(self) -> Graph:
        """The captured graph of one micro-batch."""
        return self.problem.graph


def generation_of(prepared: Prepared) -> Generation | None:
    """Both graphs of a generation, what-ifs applied and nothing split; None in other modes."""
    model = prepared.scenario.model
    found = captured(model) if model.mode == "generation" else None
    if not isinstance(found, Generation):
        return None
    return replace(
        found, prefill=changed(found.prefill, model), decode=changed(found.decode, model)
    )


def prepare(
    scenario: Scenario,
    graph: Graph,
    num_micro_batches: int,
    cluster: Cluster,
    costs: CostTable | None = None,
) -> Prepared:
    """State the placement problem; without measured `costs` the cost model predicts them.

    Steps of training and generation follow one another, so their throughput is that of one step
    at a time, in which the micro-batches of a training step are a pipeline, and their gradients add
    up; in training, what reads a weight stays with its update.

    Raises:
        ValueError: an unsupported dtype, unknown pins, or an objective without a price.
    """
    is_pipeline = graph.mode == "training" and num_micro_batches > 1
    if is_pipeline and costs is None:
        graph = accumulating(graph)
    alone = graph.is_sequential and scenario.objective == "throughput" and not is_pipeline
    problem = Problem(
        graph,
        cluster,
        costs or cost_table(graph, cluster),
        "latency" if alone else scenario.objective,
        scenario.constraints.pin,
        scenario.constraints.headroom(),
        rent(scenario)[0],
        num_micro_batches,
        scenario.constraints.forbid,
        latency_bound_s=scenario.constraints.latency_bound_s,
        replicate=scenario.constraints.replicate is not False,
        communication=scenario.communication,
        colocated=scenario.constraints.colocate
        + groups_of(at_grain(graph, scenario.grain))
        + (sharing_weights(graph) if graph.mode == "training" else ()),
        pipeline=scenario.pipeline,
    )
    return Prepared(scenario, problem)


def prepare_anywhere(scenario: Scenario, steps: Steps) -> Prepared:
    """Capture, find or measure the hardware, and state the problem, without executing.

    Raises:
        ValueError: there is no model, or it cannot be captured.
    """
    if scenario.model.is_service:
        raise ValueError(without_model(scenario.model))
    if instance := instance_of(scenario):
        return prepare_instance(scenario, instance)
    if not is_local(scenario):
        return prepare_rented(scenario, steps)
    with start_workers() as workers:
        if chooses_micro_batches(scenario):
            return prepare_training(scenario, local_cluster(workers, steps), steps)
        if graph_file(scenario) or scenario.model.mode != "inference":
            return prepare(scenario, *capture_graph(scenario), local_cluster(workers, steps))
        model = scenario.model
        plain = replace(model, precision=Precision(), pruning=Pruning())
        prepared = prepare_local(replace(scenario, model=plain), workers, steps)[0]
    return vary_measured(prepared, scenario) if model.is_what_if else prepared


def chooses_micro_batches(scenario: Scenario) -> bool:
    """Whether a training step is to be cut into as many micro-batches as give the best plan."""
    model = scenario.model
    asked = scenario.num_micro_batches != "auto" or graph_file(scenario) is not None
    return model.mode == "training" and model.batch > 1 and not asked


def prepare_training(scenario: Scenario, cluster: Cluster, steps: Steps) -> Prepared:
    """Capture a training step and cut it into the micro-batches that give the best plan."""

    def cut(m: int) -> Graph:
        return capture_graph(replace(scenario, num_micro_batches=m))[0]

    def state(graph: Graph, m: int) -> Problem:
        return prepare(scenario, graph, m, cluster).problem

    with steps("Choosing micro-batches") as tell:
        tried = tried_micro_batches(scenario.model.batch, cut, state, tell)
        m = best_of(tried)
        return replace(prepare(scenario, cut(m), m, cluster), tried=tried)


def prepare_instance(scenario: Scenario, instance: Instance) -> Prepared:
    """State the problem of a placement instance; its memory limits are taken whole by default."""
    problem = Problem(
        instance.graph,
        instance.cluster,
        instance.costs,
        scenario.objective,
        scenario.constraints.pin,
        memory_headroom=scenario.constraints.headroom(usual=0.0),
        usd_per_hour=rent(scenario)[0],
        forbidden=scenario.constraints.forbid,
        latency_bound_s=scenario.constraints.latency_bound_s,
        replicate=scenario.constraints.replicate is True,
        colocated=scenario.constraints.colocate
        + instance.colocated
        + groups_of(at_grain(instance.graph, scenario.grain)),
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
    if chooses_micro_batches(scenario):
        rent(scenario)
        return prepare_training(scenario, rented_cluster(scenario), steps)
    prepared = state_rented(scenario, steps)
    if scenario.num_micro_batches != "auto" or prepared.problem.num_micro_batches == 1:
        return prepared
    with steps("Choosing micro-batches"):
        return replace(prepared, problem=best_plan(prepared.problem)[0])


def state_rented(scenario: Scenario, steps: Steps) -> Prepared:
    """Capture the model and predict it on rented hardware, cut as often as is useful."""
    cluster = rented_cluster(scenario)
    rent(scenario)
    with steps("Capturing the model"):
        graph, m = capture_graph(scenario)
    return prepare(scenario, graph, m, cluster)


def prepare_local(
    scenario: Scenario, workers: Workers, steps: Steps, recalibrate: bool = False
) -> tuple[Prepared, LoadedModel]:
    """Capture the model and measure its operators on this machine, cut or whole.

    For throughput and cost the faster of the two on these devices; for latency always cut, so
    that the devices work at the same time.
    """
    from executor.cache import cached_choice
    from executor.loaded import uncut
    from executor.whole import whole_is_faster

    if scenario.model.mode == "training":
        return _prepare_local_training(scenario, workers, steps, recalibrate)
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


def _prepare_local_training(
    scenario: Scenario, workers: Workers, steps: Steps, recalibrate: bool
) -> tuple[Prepared, LoadedModel]:
    """Capture a training step and measure its operators on this machine.

    The number of micro-batches is chosen by the calibrated profile's times. Replicas are left out:
    no worker sums gradients with another.
    """
    cluster = local_cluster(workers, steps, recalibrate)
    alone = replace(scenario, constraints=replace(scenario.constraints, replicate=False))
    if chooses_micro_batches(scenario):
        m = prepare_training(alone, cluster, steps).problem.num_micro_batches
        alone = replace(alone, num_micro_batches=m)
    with steps("Capturing the model"):
        graph, m = capture_graph(alone)
    graph = accumulating(graph) if m > 1 else graph
    model = load(scenario, m, steps)
    costs = measure_op_times(workers, model, graph, steps, recalibrate)
    return replace(prepare(alone, graph, m, cluster, costs), scenario=scenario), model
