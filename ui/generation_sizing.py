"""Capacity planning for generations: servers of every instance, and fleets of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hardware.catalog import common_instances
from hardware.errors import InfeasibleError
from scheduler.generation import Generation
from simulator.capacity import Fleet
from simulator.generation_capacity import GenerationCandidate, load_of, size_generations
from simulator.generation_fleet import ServerKind
from ui.generation_traffic import planned_kind
from ui.rented import rent
from ui.renting import comes_and_goes
from ui.scenario import Rented, Scenario
from ui.server_kinds import best_served, servers_per_machine
from ui.source import captured
from ui.steps import Steps, Tell
from ui.this_machine import is_local


def size_fleets_of(scenario: Scenario, steps: Steps, names: list[str] | None = None) -> list[Fleet]:
    """The smallest fleet of every common instance, and of the scenario's hardware.

    Raises:
        ValueError: the scenario makes no promise, or asks for what such fleets lack.
    """
    if scenario.prefill or scenario.fleet:
        key = "prefill" if scenario.prefill else "fleet"
        raise ValueError(f"size plans fleets of one kind of server; leave out {key}")
    if comes_and_goes(scenario):
        raise ValueError(
            "size plans fleets whose servers stay up; leave out serving.failures, "
            "serving.autoscaling and prices.market: spot"
        )
    if scenario.model.batch != 1:
        raise ValueError(
            f"size of a generation needs model.batch 1, got {scenario.model.batch}; servers batch "
            "by themselves (serving.continuous.max_sequences)"
        )
    assert scenario.traffic is not None
    with steps("Capturing the model"):
        found = captured(scenario.model)
    assert isinstance(found, Generation)
    serving = scenario.serving
    rules = replace(serving, engine="fast") if serving.engine == "auto" else serving
    load = load_of(scenario.traffic, rules, (found.prompt_tokens, found.new_tokens))
    choices = _choices(scenario, names or common_instances())
    candidates: list[GenerationCandidate] = []
    with steps("Planning each instance") as tell:
        for number, (name, own) in enumerate(choices.items()):
            candidates += _candidates(name, own, steps if is_local(own) else _silent)
            tell((number + 1) / len(choices))
    with steps("Simulating fleets") as tell:
        return size_generations(candidates, load, tell)


@contextmanager
def _silent(step: str) -> Iterator[Tell]:
    yield lambda share: None


def _choices(scenario: Scenario, names: list[str]) -> dict[str, Scenario]:
    """The scenario on its own hardware, which alone has measured layers, then on instances."""
    own = scenario.hardware
    first = "this machine" if is_local(scenario) else str(own)
    if isinstance(own, Rented):
        first = " + ".join(own.instances)
    others = {
        name: replace(scenario, hardware=Rented((name,)), layer_times=None)
        for name in names
        if name != first
    }
    return {first: scenario, **others}


def _candidates(name: str, scenario: Scenario, steps: Steps) -> list[GenerationCandidate]:
    """Servers of the plan that answers soonest, and of the one that answers most for its rent."""
    try:
        kind, prepared = planned_kind(scenario, steps)
        usd_per_hour = rent(scenario)[0]
    except (InfeasibleError, ValueError) as refusal:
        return [GenerationCandidate(name, None, None, "", reason=str(refusal))]
    served = prepared.served
    kinds = [kind]
    if served:
        most = min(served, key=lambda one: one.full_s / _fit(scenario, one.kind))
        kinds = [best_served(list(served), "latency").kind]
        kinds += [most.kind] if most.kind is not kinds[0] else []
    return [
        GenerationCandidate(
            name,
            one,
            usd_per_hour,
            prepared.problem.costs.levels_of(sorted(set(one.model.placement.values()))),
            _fit(scenario, one),
        )
        for one in kinds
    ]


def _fit(scenario: Scenario, kind: ServerKind) -> int:
    return servers_per_machine(scenario, set(kind.model.placement.values()))
