"""From a placement to a checked plan with its value and its gap."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import ceil
from types import MappingProxyType

import numpy as np

from hardware.errors import InfeasibleError
from hardware.units import format_seconds
from scheduler.arrays import Floats
from scheduler.bounds.lower_bound import usd_per_1k
from scheduler.data_parallel.replicas import copies, with_replicas
from scheduler.evaluation.dispatch import in_pipeline
from scheduler.evaluation.memory import check_memory, memory_needs, surely_fits
from scheduler.evaluation.memory_timeline import peak_bytes
from scheduler.evaluation.stage_work import stage_work
from scheduler.evaluation.timeline import loads, stage_makespan
from scheduler.plan import MemoryNeed, Plan, Stage, cut_runs, cut_stages
from scheduler.problem import Placement, Problem


def finish_plan(
    problem: Problem,
    algorithm: str,
    placement: Placement,
    started_s: float,
    bound: float,
    replicas: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Plan:
    """Cut a placement into stages, check it, and value it.

    `replicas`: further devices that do what a device does, for other micro-batches.

    Raises:
        InfeasibleError: memory, a missing link, a pin or the bound on latency forbids it.
    """
    _check_times(problem, placement)
    stages = cut_stages(problem.graph, placement)
    if replicas:
        stages = with_replicas(stages, replicas)
    _check_links(problem, stages)
    several = len({stage.device for stage in stages}) > 1
    if problem.objective == "latency" and several and not problem.trains_in_parts:
        stages = min(stages, cut_runs(problem.graph, placement), key=partial(_makespan, problem))
    in_flight = in_flight_of(problem, stages)
    memory = planned_memory(problem, placement, stages, in_flight)
    check_memory(memory)
    check_latency(problem, stages)
    value = plan_value(problem, stages, in_flight)
    return Plan(
        model=problem.graph.name,
        algorithm=algorithm,
        objective=problem.objective,
        value=value,
        lower_bound=min(bound, value),
        gap=max(0.0, (value - bound) / value) if value > 0 else 0.0,
        solve_s=time.perf_counter() - started_s,
        placement=placement,
        stages=stages,
        num_micro_batches=problem.num_micro_batches,
        in_flight=in_flight,
        memory=memory,
    )


def with_bound(plan: Plan, bound: float, by: str) -> Plan:
    """The plan with a lower bound, what that comes from, and the gap to it."""
    bound = min(bound, plan.value)
    gap = (plan.value - bound) / plan.value if plan.value > 0 else 0.0
    return replace(plan, lower_bound=bound, gap=gap, bound_by=by)


def plan_value(problem: Problem, stages: tuple[Stage, ...], in_flight: int) -> float:
    """Value of the objective: makespan (s), largest load (s), or USD per 1,000, of one batch."""
    if problem.objective == "latency" or problem.graph.is_sequential:
        batch_s = stage_makespan(problem, stages, in_flight, problem.num_micro_batches)
    if problem.objective == "latency":
        return batch_s
    period_s = max(loads(problem, stages).values()) * problem.num_micro_batches
    if problem.graph.is_sequential:
        period_s = batch_s
    return usd_per_1k(problem, period_s) if problem.objective == "cost" else period_s


def in_flight_of(problem: Problem, stages: tuple[Stage, ...]) -> int:
    """Micro-batches in the pipeline at once; those of one batch where no other follows it.

    Twice what keeps the fullest resource busy by Little's law: a micro-batch alone takes at most
    the sum of all loads, and one leaves in the time of the largest. A replica has one that it works
    on and one that waits for it: what others send comes in bursts.
    """
    if problem.trains_in_parts:
        return in_pipeline(problem, stage_work(problem, stages))
    num_devices = sum(len(stage.devices) for stage in stages)
    if num_devices == 1 or problem.graph.is_sequential:
        return 1
    load_s = loads(problem, stages).values()
    enough = 2 * ceil(sum(load_s) / max(load_s)) + 2 if 0 < max(load_s) < np.inf else 1
    waits = num_devices if any(stage.replicas for stage in stages) else 1
    most = min(num_devices + waits, enough)
    return min(most, problem.num_micro_batches) if problem.objective == "latency" else most


def planned_memory(
    problem: Problem, placement: Placement, stages: tuple[Stage, ...], in_flight: int
) -> dict[str, MemoryNeed]:
    """Bytes needed on every device, and no less than its timeline holds.

    `memory_needs` assumes that what is received is not there long before it is read, and that a
    device runs the backward passes of what it ran forward. A batch that runs alone is followed.
    """
    needs = memory_needs(problem, placement, stages, in_flight)
    alone = problem.objective == "latency" or problem.graph.is_sequential
    if not alone or len(needs) == 1:
        return needs
    peaks = peak_bytes(problem, stages, in_flight)
    return {
        device: replace(need, activation_bytes=max(need.activation_bytes, peaks[device]))
        for device, need in needs.items()
    }


def excess_bytes(problem: Problem, placement: Placement) -> Floats:
    """(num_devices,) bytes by which a placement in steady state exceeds the devices' limits."""
    excess = np.zeros(len(problem.costs.devices))
    if surely_fits(problem, placement, max(len(excess) + 2, problem.num_micro_batches)):
        return excess
    stages = cut_stages(problem.graph, placement)
    for name, need in planned_memory(
        problem, placement, stages, in_flight_of(problem, stages)
    ).items():
        excess[problem.device_index[name]] = max(0.0, need.num_bytes - need.limit_bytes)
    return excess


def check_latency(problem: Problem, stages: tuple[Stage, ...]) -> None:
    """Refuse what is slower than the bound that the objective `cost` has on latency."""
    bound_s, m = problem.latency_bound_s, problem.num_micro_batches
    if problem.objective != "cost" or bound_s is None:
        return
    batch_s = stage_makespan(problem, stages, min(in_flight_of(problem, stages), m), m)
    if batch_s > bound_s * (1 + 1e-9):
        raise InfeasibleError(
            f"a batch takes {format_seconds(batch_s)}, latency_bound_s is {format_seconds(bound_s)}"
        )


def _makespan(problem: Problem, stages: tuple[Stage, ...]) -> float:
    """Seconds of one batch alone."""
    in_flight = in_flight_of(problem, stages)
    return stage_makespan(problem, stages, in_flight, problem.num_micro_batches)


def _check_times(problem: Problem, placement: Placement) -> None:
    for i, op in enumerate(problem.graph.ops):
        device = placement[op.name]
        if np.isfinite(problem.seconds[i, problem.device_index[device]]):
            continue
        profile = problem.cluster.devices[device]
        reason = "the device cannot run it"
        if op.name in problem.pinned:
            reason = f"it is pinned to '{problem.pinned[op.name]}'"
        elif op.dtype not in profile.peak_flops_per_s:
            has = ", ".join(profile.peak_flops_per_s)
            reason = f"{profile.name} has no figure for {op.dtype}, it has {has}"
        raise InfeasibleError(f"operator '{op.name}' on '{device}': {reason}")


def _check_links(problem: Problem, stages: tuple[Stage, ...]) -> None:
    for stage in (stage for copy in copies(stages) for stage in copy):
        for sent in stage.sends:
            problem.medium(sent.src, sent.dst)
