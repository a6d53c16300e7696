"""Generations under a scenario's traffic: its servers on their hardware, and what requests meet."""

from dataclasses import replace

from scheduler.generation import Generation
from scheduler.plan import Plan
from simulator.answers import Actor, Transfer
from simulator.generation_experiment import experiment_generations, study_generations
from simulator.generation_fleet import GenerationFleet, ServerKind
from simulator.generation_report import GenerationServingReport
from simulator.renting import operate
from ui import pipeline
from ui.prepare import Prepared, prepare_anywhere
from ui.rented import network_between
from ui.renting import comes_and_goes, conditions_of
from ui.scenario import FleetPart, PrefillPart, Rented, Scenario
from ui.server_kinds import kind_of, servers_per_machine
from ui.steps import Steps


def serve_generations(
    scenario: Scenario, prepared: Prepared, chosen: Plan, steps: Steps, relieve: bool = True
) -> GenerationServingReport:
    """Simulate the scenario's traffic on its servers, each of which runs the plan.

    `relieve`: also at both ends of the step times, and with what might relieve the servers.

    Raises:
        InfeasibleError: a server has no room for keys and values.
        ValueError: the scenario has no traffic, or asks for what servers of generations lack.
    """
    if scenario.traffic is None:
        raise ValueError("traffic: the scenario has none")
    own = kind_of(scenario, prepared, chosen, scenario.serving.replicas)
    kinds = [own, *(_planned(scenario, part, steps) for part in scenario.fleet)]
    actors, notes = _actors(scenario, kinds)
    fleet = GenerationFleet(tuple(kinds), scenario.serving, actors=actors)
    if first := scenario.prefill:
        fleet = replace(
            fleet,
            prefill=(_planned(scenario, first, steps),),
            transfer=_transfer(scenario, first, own.model.generation),
        )
    found = own.model.generation
    with steps("Serving the traffic") as tell:
        tokens = (found.prompt_tokens, found.new_tokens)
        if relieve:
            report = study_generations(fleet, scenario.traffic, tokens, tell)
        else:
            report = experiment_generations(fleet, scenario.traffic, tokens)
    if report.upkeep is None:
        return report
    return replace(report, upkeep=replace(report.upkeep, notes=notes))


def _actors(
    scenario: Scenario, kinds: list[ServerKind]
) -> tuple[tuple[Actor, ...], tuple[str, ...]]:
    """What lets servers come and go, if anything does, and where its figures come from."""
    if not comes_and_goes(scenario):
        return (), ()
    conditions = {}
    for kind, hardware in zip(kinds, [scenario.hardware, *_others(scenario)], strict=True):
        own = replace(scenario, hardware=hardware)
        if servers_per_machine(own, set(kind.model.placement.values())) > 1:
            raise ValueError(
                f"serving: servers that come and go take an instance each, and several fit on "
                f"{kind.name}; name one with as many accelerators as the plan uses"
            )
        load_bytes = kind.model.generation.decode.totals()["param_bytes"]
        conditions[kind.name] = conditions_of(own, load_bytes)
    notes = dict.fromkeys(note for one in conditions.values() for note in one.notes)
    return (operate(conditions, scenario.serving.autoscaling),), tuple(notes)


def _others(scenario: Scenario) -> list[Rented | str]:
    return [part.hardware for part in scenario.fleet]


def _planned(scenario: Scenario, part: FleetPart | PrefillPart, steps: Steps) -> ServerKind:
    own = replace(scenario, hardware=part.hardware, layer_times=part.layer_times)
    serving = replace(scenario.serving, replicas=part.replicas)
    return planned_kind(replace(own, serving=serving, fleet=(), prefill=None), steps)[0]


def planned_kind(scenario: Scenario, steps: Steps) -> tuple[ServerKind, Prepared]:
    """Servers on a scenario's hardware, each of which runs the best plan for it.

    Raises:
        InfeasibleError: there is none.
        ValueError: bad input.
    """
    prepared = pipeline.plan(prepare_anywhere(scenario, steps), steps)
    assert prepared.solution is not None
    chosen, replicas = prepared.solution.best, scenario.serving.replicas
    return kind_of(scenario, prepared, chosen, replicas), prepared


def _transfer(scenario: Scenario, part: PrefillPart, found: Generation) -> Transfer:
    bytes_per_s, latency_s, source = network_between(part.hardware, scenario.hardware, part.network)
    return Transfer(found.kv_bytes / found.context, bytes_per_s, latency_s, str(source))
