"""Servers of generations from plans, and the plan that serves best."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hardware.catalog import find_instance
from hardware.errors import InfeasibleError
from hardware.power import machine_power
from scheduler.plan import Plan
from simulator.alone import alone, full_server_s, mean_tokens
from simulator.arrivals import draw
from simulator.generation_experiment import generations
from simulator.generation_fleet import GenerationFleet, ServerKind
from simulator.generations import Generations
from simulator.modelled_steps import ServerModel, with_cache_only
from ui.prepare import Prepared, generation_of
from ui.rented import hardware_name, rent
from ui.renting import tariff_of
from ui.scenario import Rented, Scenario

MOST_SERVED = 8
"""Plans whose servers are valued: those that differ, the best for one batch first."""


@dataclass(frozen=True)
class Served:
    """A plan as servers run it.

    Attributes:
        alone_s: of the mean answer, where a request has the server for itself.
        full_s: seconds of a full server that the mean answer takes.
    """

    plan: Plan
    kind: ServerKind
    alone_s: float
    full_s: float


def served_plans(scenario: Scenario, prepared: Prepared, plans: tuple[Plan, ...]) -> list[Served]:
    """Plans that differ as servers run them, with what the scenario's mean request meets there.

    Raises:
        InfeasibleError: none has room for keys and values.
        ValueError: the traffic or the model is none that servers answer.
    """
    found: list[Served] = []
    prompt, output = _tokens(scenario, prepared)
    refusals: list[InfeasibleError] = []
    for plan in _unlike(prepared, plans):
        kind = kind_of(scenario, prepared, plan, scenario.serving.replicas)
        try:
            server = GenerationFleet((kind,), scenario.serving).deployment().fleet.servers[0]
        except InfeasibleError as refusal:
            refusals.append(refusal)
            continue
        one = Generations(np.zeros(1), *np.array([[round(prompt)], [round(output)]]))
        alone_s = float(alone(server, one).latency_s[0])
        found.append(Served(plan, kind, alone_s, full_server_s(server, prompt, output)))
    if not found:
        raise refusals[0]
    return found


def _tokens(scenario: Scenario, prepared: Prepared) -> tuple[float, float]:
    """Mean tokens of prompt and answer under the scenario's traffic."""
    traffic, found = scenario.traffic, generation_of(prepared)
    assert traffic is not None
    assert found is not None
    rng = np.random.default_rng(traffic.seed)
    usual = (found.prompt_tokens, found.new_tokens)
    return mean_tokens(generations(draw(traffic, rng), traffic, usual, rng))


def _unlike(prepared: Prepared, plans: tuple[Plan, ...]) -> Iterator[Plan]:
    """Plans whose servers differ by more than the names of equal devices."""
    devices = prepared.problem.cluster.devices
    seen: set[tuple[tuple[int, str], ...]] = set()
    for plan in plans:
        placement = with_cache_only(prepared.graph, plan.placement)
        number = {device: k for k, device in enumerate(dict.fromkeys(placement.values()))}
        alike = tuple((number[d], devices[d].name) for d in placement.values())
        if alike not in seen and len(seen) < MOST_SERVED:
            seen.add(alike)
            yield plan


def kind_of(scenario: Scenario, prepared: Prepared, plan: Plan, replicas: int) -> ServerKind:
    """Servers that run a plan of the decode step."""
    found = generation_of(prepared)
    assert found is not None
    model = ServerModel(
        replace(found, decode=prepared.graph),
        prepared.problem.cluster,
        with_cache_only(prepared.graph, plan.placement),
        scenario.constraints.headroom(),
    )
    usd_per_hour, provenance = rent(scenario)
    per_machine = servers_per_machine(scenario, set(model.placement.values()))
    if usd_per_hour is not None and per_machine > 1:
        usd_per_hour *= math.ceil(replicas / per_machine) / replicas
        provenance += f"; {per_machine} servers fit on one"
    at_work = dict.fromkeys(model.placement.values(), 1.0)
    tariff = tariff_of(scenario, machine_power(model.cluster.devices, at_work))
    name, times = hardware_name(scenario), scenario.layer_times
    return ServerKind(
        name, model, replicas, usd_per_hour, provenance, tariff=tariff, layer_times=times
    )


def servers_per_machine(scenario: Scenario, devices: set[str]) -> int:
    """How many servers share a rented instance: each takes the accelerators that it runs on."""
    if not isinstance(scenario.hardware, Rented) or len(scenario.hardware.instances) > 1:
        return 1
    accelerators = find_instance(scenario.hardware.instances[0]).num_accelerators
    return 1 if "cpu0" in devices else accelerators // len(devices)


def best_served(served: list[Served], objective: str) -> Served:
    """The plan that serves best: soonest, most, or at the least rent per answer."""

    def value(one: Served) -> float:
        if objective == "latency":
            return one.alone_s
        return one.full_s * (one.kind.usd_per_hour or 1.0 if objective == "cost" else 1.0)

    least = min(map(value, served))
    close = [one for one in served if value(one) <= least * (1 + 1e-9)]
    return min(close, key=lambda one: len(set(one.kind.model.placement.values())))
