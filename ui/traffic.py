"""A scenario's traffic: the fleet that serves it, and what its requests meet."""

from dataclasses import replace

from hardware.power import machine_power
from simulator.experiment import study
from simulator.renting import Conditions, operate
from simulator.service import service_times as times_of_service
from simulator.serving import Replica, Serving
from simulator.serving_report import ServingReport
from simulator.whatif import reports_by_batch, times_of
from ui.prepare import Prepared, prepare_anywhere, state_rented
from ui.rented import hardware_name, rent
from ui.renting import comes_and_goes, conditions_of, tariff_of
from ui.scenario import Scenario
from ui.steps import Steps
from ui.this_machine import is_local


def serve_traffic(scenario: Scenario, prepared: Prepared | None, steps: Steps) -> ServingReport:
    """Simulate the scenario's traffic on its fleet; `prepared` is None for a service.

    Raises:
        ValueError: the scenario has no traffic, or its model no requests.
    """
    if scenario.traffic is None:
        raise ValueError("traffic: the scenario has none")
    rules = _rules(scenario)
    with steps(f"Planning {hardware_name(scenario)} for batches of every size"):
        server = one_server(scenario, prepared)
    fleet, conditions = [server] * rules.replicas, {server.name: _conditions(scenario, prepared)}
    for part in scenario.fleet:
        if prepared is None:
            raise ValueError("fleet: a service runs on no hardware; leave fleet out")
        other = replace(scenario, hardware=part.hardware, fleet=())
        elsewhere = (prepare_anywhere if is_local(other) else state_rented)(other, steps)
        with steps(f"Planning {hardware_name(other)} for batches of every size"):
            server = one_server(other, elsewhere)
        fleet += [server] * part.replicas
        conditions[server.name] = _conditions(other, elsewhere)
    actors = [operate(conditions, rules.autoscaling)] if comes_and_goes(scenario) else []
    with steps("Serving the traffic") as tell:
        report = study(fleet, scenario.traffic, rules, actors, tell)
    if not actors or report.upkeep is None:
        return report
    notes = dict.fromkeys(note for one in conditions.values() for note in one.notes)
    return replace(report, upkeep=replace(report.upkeep, notes=tuple(notes)))


def _conditions(scenario: Scenario, prepared: Prepared | None) -> Conditions:
    load_bytes = prepared.graph.totals()["param_bytes"] if prepared else 0.0
    return conditions_of(scenario, load_bytes)


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
        tariff = tariff_of(scenario)
        return Replica(scenario.model.source, times, usd_per_hour, provenance, tariff)
    problem = prepared.problem
    if problem.graph.mode != "inference":
        raise ValueError(
            f"traffic: requests are inferences, model.mode is {scenario.model.mode}; "
            "leave traffic out"
        )
    largest = scenario.serving.batch.max or scenario.model.batch
    reports = reports_by_batch(
        problem.graph, problem.cluster, 2 * largest, problem.costs, problem.replicate
    )
    full = next(report for size, report in reports.items() if size >= largest)
    power = machine_power(problem.cluster.devices, full.utilization)
    tariff = tariff_of(scenario, power)
    return Replica(hardware_name(scenario), times_of(reports), usd_per_hour, provenance, tariff)


def _rules(scenario: Scenario) -> Serving:
    """The rules of serving, with the largest batch that they leave to the model."""
    batch = scenario.serving.batch
    return replace(scenario.serving, batch=replace(batch, max=batch.max or scenario.model.batch))
