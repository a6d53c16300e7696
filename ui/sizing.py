"""Capacity planning of a scenario: candidates from the catalog and this machine, then fleets."""

from hardware.catalog import common_instances, find_instance, instance_cluster, load_prices
from hardware.errors import InfeasibleError
from scheduler.ir.graph import Graph
from simulator.capacity import Candidate, Fleet, size_fleets
from simulator.whatif import service_times
from ui.generation_sizing import size_fleets_of
from ui.prepare import prepare_anywhere
from ui.scenario import Scenario
from ui.source import capture_graph
from ui.steps import Steps
from ui.this_machine import is_local
from ui.traffic import one_server


def check_promise(scenario: Scenario) -> None:
    """Refuse to size a fleet for no promise.

    Raises:
        ValueError: the scenario has no traffic or no promise.
    """
    if scenario.traffic is None or scenario.traffic.slo is None:
        raise ValueError(
            "size needs traffic with a promise, e.g. traffic: {rate: 40, slo: {p95_s: 0.15}}"
        )


def size(scenario: Scenario, steps: Steps, names: list[str] | None = None) -> list[Fleet]:
    """The smallest fleet of every common instance, and of this machine, for the traffic.

    Of generations, also of the scenario's own hardware.

    Raises:
        ValueError: the scenario has no traffic or no promise.
    """
    check_promise(scenario)
    assert scenario.traffic is not None
    if scenario.model.mode == "generation":
        return size_fleets_of(scenario, steps, names)
    if scenario.model.is_service:
        server = one_server(scenario, None)
        alone = Candidate(server.name, server.times, server.usd_per_hour, "literal")
        with steps("Simulating fleets") as tell:
            return size_fleets([alone], scenario.traffic, scenario.serving, tell)
    max_batch = scenario.serving.batch.max or scenario.model.batch
    candidates = []
    if is_local(scenario):
        problem = prepare_anywhere(scenario, steps).problem
        graph = problem.graph
        times = service_times(graph, problem.cluster, max_batch, problem.costs, problem.replicate)
        usd_per_hour = scenario.prices.usd_per_hour
        candidates.append(Candidate("this machine", times, usd_per_hour, "measured"))
    else:
        with steps("Capturing the model"):
            graph, _ = capture_graph(scenario)
    return candidates_to_fleets(scenario, graph, candidates, names or common_instances(), steps)


def why_none(fleets: list[Fleet]) -> str:
    """Word that no candidate keeps the promise, and the best that can be had."""
    near = [fleet for fleet in fleets if fleet.excess is not None]
    if not near:
        return "no candidate keeps the promise; the reasons stand beside each"
    best = min(near, key=lambda fleet: fleet.excess or 0.0)
    return f"no candidate keeps the promise; the best is {best.name}, where {best.reason}"


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
        replicate = scenario.constraints.replicate is not False
        times = service_times(graph, cluster, max_batch, replicate=replicate)
        return Candidate(name, times, price.usd_per_hour, level)
    except (InfeasibleError, ValueError) as refusal:
        return Candidate(name, None, None, level, str(refusal))
