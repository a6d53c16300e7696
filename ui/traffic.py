"""A scenario's traffic: the fleet that serves it, and what its requests meet."""

from dataclasses import replace

from simulator.experiment import study
from simulator.service import service_times as times_of_service
from simulator.serving import Replica, Serving
from simulator.serving_report import ServingReport
from simulator.whatif import service_times
from ui.prepare import Prepared, Steps, prepare_anywhere
from ui.rented import hardware_name, rent
from ui.scenario import Scenario


def serve_traffic(scenario: Scenario, prepared: Prepared | None, steps: Steps) -> ServingReport:
    """Simulate the scenario's traffic on its fleet; `prepared` is None for a service.

    Raises:
        ValueError: the scenario has no traffic, or its model no requests.
    """
    if scenario.traffic is None:
        raise ValueError("traffic: the scenario has none")
    rules = _rules(scenario)
    fleet = [one_server(scenario, prepared)] * rules.replicas
    for part in scenario.fleet:
        if prepared is None:
            raise ValueError("fleet: a service runs on no hardware; leave fleet out")
        other = replace(scenario, hardware=part.hardware, fleet=())
        fleet += [one_server(other, prepare_anywhere(other, steps))] * part.replicas
    with steps("Serving the traffic"):
        return study(fleet, scenario.traffic, rules)


def one_server(scenario: Scenario, prepared: Prepared | None) -> Replica:
    """A server of the scenario's hardware, with its times for batches up to twice the largest.

    Raises:
        ValueError: the model has no requests, or nothing is known of the service.
    """
    usd_per_hour, provenance = rent(scenario)
    if prepared is None:
        kind, mean_s = scenario.model.source.partition(":")[2], scenario.model.mean_s
        assert mean_s is not None
        times = times_of_service(kind, mean_s, scenario.model.cv)
        return Replica(scenario.model.source, times, usd_per_hour, provenance)
    problem = prepared.problem
    if problem.graph.mode != "inference":
        raise ValueError(
            f"traffic: requests are inferences, model.mode is {scenario.model.mode}; "
            "leave traffic out"
        )
    largest = scenario.serving.batch.max or scenario.model.batch
    times = service_times(problem.graph, problem.cluster, 2 * largest, problem.costs)
    return Replica(hardware_name(scenario), times, usd_per_hour, provenance)


def _rules(scenario: Scenario) -> Serving:
    """The rules of serving, with the largest batch that they leave to the model."""
    batch = scenario.serving.batch
    return replace(scenario.serving, batch=replace(batch, max=batch.max or scenario.model.batch))
