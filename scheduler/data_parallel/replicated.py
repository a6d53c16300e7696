"""Stages on one device or on several that take turns: the best of several splits as plans.

Every replica holds all weights of its stage. Source: PipeDream (Narayanan et al., SOSP 2019,
section 3.1, doi:10.1145/3341301.3359646); see `team_splits.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Ints
from scheduler.data_parallel.all_reduce import gradients
from scheduler.data_parallel.replicas import with_replicas
from scheduler.data_parallel.team_splits import Updates, team_splits
from scheduler.evaluation.evaluate import in_flight_of, plan_value
from scheduler.evaluation.memory import memory_needs
from scheduler.list_scheduling.tasks import MEMORY_ROUNDS
from scheduler.plan import cut_stages
from scheduler.problem import Placement, Problem
from scheduler.throughput.contract import contract
from scheduler.training.folding import folded

Replicas = Mapping[str, tuple[str, ...]]
"""By first device, the devices of the further turns."""


def replicated(problem: Problem) -> tuple[Placement, Replicas]:
    """Place with replicas; returns the placement on first devices, and their replicas.

    Numbers of turns divide the micro-batches of a batch, so that each batch is shared out alike.
    Where activations do not fit, the devices' limits are lowered by what is missing and all is
    done again; the last placement is returned even so: the plan's own check words the refusal.

    Raises:
        InfeasibleError: no split fits, or the graph's runs wait for each other.
    """
    m = problem.num_micro_batches
    if problem.graph.is_sequential and not problem.trains_in_parts:
        way_out = "; cut the batch: set num_micro_batches" * (problem.graph.mode == "training")
        raise InfeasibleError(f"runs of a {problem.graph.mode} graph wait for each other{way_out}")
    arrays, found = problem.arrays, list[tuple[float, float, int, Placement, Replicas]]()
    for _ in range(MEMORY_ROUNDS):
        tried = [
            (*_valued(problem, placement, replicas), number, placement, replicas)
            for number, (placement, replicas) in enumerate(_splits(problem, arrays, m))
        ]
        found = tried or found
        if not found or min(excess for excess, *_ in found) == 0:
            break
        missing = min(excess for excess, *_ in found)
        arrays = replace(arrays, limit_bytes=arrays.limit_bytes - 1.05 * missing)
    if not found:
        raise InfeasibleError("no split with replicas fits the devices' memory, pins and links")
    return min(found, key=lambda one: one[:3])[3:]


def _valued(problem: Problem, placement: Placement, replicas: Replicas) -> tuple[float, float]:
    """Bytes that do not fit, and the value of the plan."""
    stages = with_replicas(cut_stages(problem.graph, placement), replicas)
    in_flight = in_flight_of(problem, stages)
    needs = memory_needs(problem, placement, stages, in_flight).values()
    excess = max(0.0, *(need.num_bytes - need.limit_bytes for need in needs))
    return excess, plan_value(problem, stages, in_flight)


def _splits(problem: Problem, arrays: Arrays, m: int) -> Iterator[tuple[Placement, Replicas]]:
    """The splits that promise most, of the order as given; in training, by layers."""
    names = problem.costs.devices
    trains = problem.trains_in_parts
    for last in (False, True) if trains else (False,):
        order = folded(problem, last) if trains else arrays.unit
        unit = np.unique(order, return_inverse=True)[1].astype(np.int64)
        for device, turns in team_splits(contract(arrays, unit), _updates(problem, unit), m):
            placed = device[unit]
            placement = {o.name: names[d] for o, d in zip(problem.graph.ops, placed, strict=True)}
            yield placement, {names[d]: tuple(names[e] for e in more) for d, more in turns.items()}


def _updates(problem: Problem, unit: Ints) -> Updates | None:
    """What is done once a batch, by unit; nothing but in training."""
    if not problem.trains_in_parts:
        return None
    graph = problem.graph
    shape = int(unit.max()) + 1, len(problem.costs.devices)
    spent = {phase: np.zeros(shape) for phase in ("forward", "backward", "optimizer")}
    num_bytes = np.zeros(shape[0])
    for i, op in enumerate(graph.ops):
        spent[op.phase][unit[i]] += problem.seconds[i]
        num_bytes[unit[i]] += sum(gradients(graph, [op.name]).values())
    return Updates(spent["optimizer"], spent["backward"], num_bytes, problem)
