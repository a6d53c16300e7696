"""Generations under a scenario's traffic: its servers on their hardware, and what requests meet."""

import math
from dataclasses import replace

from hardware.catalog import find_instance
from scheduler.generation import Generation
from scheduler.plan import Plan
from simulator.answers import Transfer
from simulator.generation_experiment import study_generations
from simulator.generation_fleet import GenerationFleet, ServerKind
from simulator.generation_report import GenerationServingReport
from simulator.modelled_steps import ServerModel, with_cache_only
from ui import pipeline
from ui.prepare import Prepared, Steps, changed, prepare_anywhere
from ui.rented import hardware_name, network_between, rent
from ui.scenario import FleetPart, PrefillPart, Rented, Scenario
from ui.source import captured


def serve_generations(
    scenario: Scenario, prepared: Prepared, chosen: Plan, steps: Steps
) -> GenerationServingReport:
    """Simulate the scenario's traffic on its servers, each of which runs the plan.

    Raises:
        InfeasibleError: a server has no room for keys and values.
        ValueError: the scenario has no traffic, or asks for what servers of generations lack.
    """
    if scenario.traffic is None:
        raise ValueError("traffic: the scenario has none")
    _check(scenario)
    own = _kind(scenario, prepared, chosen, scenario.serving.replicas)
    kinds = [own, *(_planned(scenario, part, steps) for part in scenario.fleet)]
    fleet = GenerationFleet(tuple(kinds), scenario.serving)
    if first := scenario.prefill:
        fleet = replace(
            fleet,
            prefill=(_planned(scenario, first, steps),),
            transfer=_transfer(scenario, first, own.model.generation),
        )
    found = own.model.generation
    with steps("Serving the traffic"):
        tokens = (found.prompt_tokens, found.new_tokens)
        return study_generations(fleet, scenario.traffic, tokens)


def _check(scenario: Scenario) -> None:
    """Refuse rules that are for servers of batches."""
    for key in ("failures", "spot", "autoscaling", "boot"):
        if getattr(scenario.serving, key, None) is not None:
            raise ValueError(
                f"serving: {key} is for inferences; servers of generations are always up"
            )


def _planned(scenario: Scenario, part: FleetPart | PrefillPart, steps: Steps) -> ServerKind:
    scenario = replace(scenario, hardware=part.hardware, fleet=(), prefill=None)
    prepared = pipeline.plan(prepare_anywhere(scenario, steps), steps)
    assert prepared.solution is not None
    return _kind(scenario, prepared, prepared.solution.best, part.replicas)


def _kind(scenario: Scenario, prepared: Prepared, chosen: Plan, replicas: int) -> ServerKind:
    found = captured(scenario.model)
    assert isinstance(found, Generation)
    prefill = changed(found.prefill, scenario.model)
    model = ServerModel(
        replace(found, prefill=prefill, decode=prepared.graph),
        prepared.problem.cluster,
        with_cache_only(prepared.graph, chosen.placement),
        scenario.constraints.memory_headroom,
    )
    usd_per_hour, provenance = rent(scenario)
    per_machine = _servers_per_machine(scenario, set(model.placement.values()))
    if usd_per_hour is not None and per_machine > 1:
        usd_per_hour *= math.ceil(replicas / per_machine) / replicas
        provenance += f"; {per_machine} servers fit on one"
    return ServerKind(hardware_name(scenario), model, replicas, usd_per_hour, provenance)


def _servers_per_machine(scenario: Scenario, devices: set[str]) -> int:
    """How many servers share a rented instance: each takes the accelerators that it runs on."""
    if not isinstance(scenario.hardware, Rented) or len(scenario.hardware.instances) > 1:
        return 1
    accelerators = find_instance(scenario.hardware.instances[0]).num_accelerators
    return 1 if "cpu0" in devices else accelerators // len(devices)


def _transfer(scenario: Scenario, part: PrefillPart, found: Generation) -> Transfer:
    bytes_per_s, latency_s, source = network_between(part.hardware, scenario.hardware, part.network)
    return Transfer(found.kv_bytes / found.context, bytes_per_s, latency_s, str(source))
