"""Whether a plan keeps every rule of its problem: ours, or anybody's."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isclose

import numpy as np

from hardware.errors import InfeasibleError
from hardware.units import format_bytes
from scheduler.data_parallel.replicas import copies, cycle
from scheduler.evaluation.evaluate import check_latency, plan_value, planned_memory
from scheduler.evaluation.timeline import Span
from scheduler.plan import Plan, Transfer
from scheduler.problem import Problem

SLACK = 1e-9
"""Relative slack on times, for sums in another order."""


def check_plan(problem: Problem, plan: Plan, spans: Sequence[Span] = ()) -> list[str]:
    """List the rules that a plan breaks; none if it is valid.

    Placement: every operator once, on a device that may run it (pins, forbidden devices), groups
    together, links where tensors cross, memory. Stages: every operator once and on its device,
    after what it reads; every crossing tensor sent and received once. What the plan says that it
    is worth, and its bound. Spans, where given: one thing at a time on a device or link, transfers
    and operators after what they wait for.
    """
    broken = check_stages(problem, plan)
    if broken:
        return broken
    return [
        *_check_memory(problem, plan),
        *_check_value(problem, plan),
        *_check_spans(plan, spans),
    ]


def check_stages(problem: Problem, plan: Plan) -> list[str]:
    """List the rules of placement, stages and replicas that a plan breaks, whatever it is worth."""
    broken = _check_placement(problem, plan) or _check_replicas(problem, plan)
    return broken or _check_order(problem, plan)


def _check_placement(problem: Problem, plan: Plan) -> list[str]:
    names, devices = problem.op_index, problem.device_index
    broken = [f"operator '{n}' is not placed" for n in names if n not in plan.placement]
    for name, device in plan.placement.items():
        if name not in names:
            broken.append(f"the graph has no operator '{name}'")
        elif device not in devices:
            broken.append(f"operator '{name}': there is no device '{device}'")
        elif not np.isfinite(problem.seconds[names[name], devices[device]]):
            why = "a pin, a colocation or the device forbids it"
            broken.append(f"operator '{name}' on '{device}': {why}")
    if broken:
        return broken
    for group in problem.colocated:
        places = {plan.placement[name] for name in group}
        if len(places) > 1:
            broken.append(
                f"operators {', '.join(group[:3])} must share a device, are on "
                f"{', '.join(sorted(places))}"
            )
    return broken


def _check_replicas(problem: Problem, plan: Plan) -> list[str]:
    """One set of replicas a device, none in two sets, each able to run all; whole cycles."""
    broken = []
    team: dict[str, tuple[str, ...]] = {}
    for stage in plan.stages:
        if team.setdefault(stage.device, stage.devices) != stage.devices:
            broken.append(f"stages of device '{stage.device}' have different replicas")
    everyone = [device for devices in team.values() for device in dict.fromkeys(devices)]
    for device in everyone:
        if device not in problem.device_index:
            broken.append(f"there is no device '{device}'")
        elif everyone.count(device) > 1:
            broken.append(f"device '{device}' is a replica of two")
    if broken or len(everyone) == len(team):
        return broken
    if problem.graph.is_sequential and not problem.trains_in_parts:
        broken.append(f"a {problem.graph.mode} graph has no replicas: a step needs the one before")
    for stage in plan.stages:
        rows = [problem.op_index[name] for name in stage.ops if name in problem.op_index]
        broken += [
            f"device '{d}' cannot run all that it is a replica for"
            for d in dict.fromkeys(stage.replicas)
            if not np.isfinite(problem.seconds[rows, problem.device_index[d]]).all()
        ]
    if plan.num_micro_batches > 1 and plan.num_micro_batches % cycle(plan.stages):
        broken.append(
            f"{plan.num_micro_batches} micro-batches are no multiple of the "
            f"{cycle(plan.stages)} after which replicas take turns anew"
        )
    links = {(t.src, t.dst) for copy in copies(plan.stages) for s in copy for t in s.sends}
    broken += [
        f"no link between '{src}' and '{dst}', which replicas need"
        for src, dst in sorted(links)
        if problem.arrays.medium[problem.device_index[src], problem.device_index[dst]] < 0
    ]
    return broken


def crossing(problem: Problem, plan: Plan) -> set[tuple[str, str, str]]:
    """(tensor, src, dst) of every tensor that is read on another device than it is made on."""
    graph, place = problem.graph, plan.placement
    return {
        (tensor, place[producer], place[consumer])
        for tensor, producer in graph.producer.items()
        for consumer in graph.consumers.get(tensor, ())
        if place[consumer] != place[producer]
    }


def _check_order(problem: Problem, plan: Plan) -> list[str]:
    graph, broken = problem.graph, []
    must_cross = crossing(problem, plan)
    broken += [
        f"no link between '{src}' and '{dst}' for tensor '{tensor}'"
        for tensor, src, dst in sorted(must_cross)
        if problem.arrays.medium[problem.device_index[src], problem.device_index[dst]] < 0
    ]
    sent = _keys(t for stage in plan.stages for t in stage.sends)
    received = _keys(t for stage in plan.stages for t in stage.receives)
    for way, keys in (("sent", sent), ("received", received)):
        if sorted(keys) != sorted(must_cross):
            wrong = sorted(set(keys) ^ must_cross) or sorted(keys)
            broken.append(f"tensor '{wrong[0][0]}' is not {way} exactly once")
    done: set[str] = set()
    here: dict[str, set[str]] = defaultdict(set)
    for number, stage in enumerate(plan.stages):
        here[stage.device] |= {t.tensor for t in stage.receives}
        for name in stage.ops:
            if plan.placement.get(name) != stage.device or name in done:
                broken.append(f"stage {number}: operator '{name}' is placed elsewhere, or twice")
                continue
            for tensor in graph.by_name[name].inputs:
                producer = graph.producer.get(tensor)
                if producer and producer not in done:
                    broken.append(f"operator '{name}' runs before '{producer}', which it reads")
                elif (
                    producer
                    and plan.placement[producer] != stage.device
                    and tensor not in here[stage.device]
                ):
                    broken.append(f"operator '{name}' uses '{tensor}' before it has arrived")
            done.add(name)
    broken += [f"operator '{name}' is in no stage" for name in graph.by_name if name not in done]
    return broken


def _keys(transfers: Iterable[Transfer]) -> list[tuple[str, str, str]]:
    return [(t.tensor, t.src, t.dst) for t in transfers]


def _check_memory(problem: Problem, plan: Plan) -> list[str]:
    needs = planned_memory(problem, plan.placement, plan.stages, plan.in_flight)
    return [
        f"device '{device}' needs {format_bytes(need.num_bytes)}, "
        f"its limit is {format_bytes(need.limit_bytes)}"
        for device, need in needs.items()
        if need.num_bytes > need.limit_bytes * (1 + SLACK)
    ]


def _check_value(problem: Problem, plan: Plan) -> list[str]:
    """Value, bound and latency, computed anew from stages and times."""
    for what in ("objective", "num_micro_batches"):
        said, asked = getattr(plan, what), getattr(problem, what)
        if said != asked:
            return [f"the plan has {what} {said}, the problem {asked}"]
    step, broken = plan_value(problem, plan.stages, plan.in_flight), []
    value = plan.prefill_value + plan.num_steps * step
    if not isclose(plan.value, value, rel_tol=SLACK):
        broken.append(f"the plan says that its value is {plan.value:.6g}, it is {value:.6g}")
    if not plan.lower_bound <= value * (1 + SLACK):
        broken.append(f"the lower bound {plan.lower_bound:.6g} is above the value {value:.6g}")
    try:
        check_latency(problem, plan.stages)
    except InfeasibleError as slow:
        broken.append(str(slow))
    return broken


def _check_spans(plan: Plan, spans: Sequence[Span]) -> list[str]:
    broken: list[str] = []
    by_resource: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_resource[span.resource].append(span)
    slack_s = SLACK * max((span.end_s for span in spans), default=0.0)
    for resource, mine in by_resource.items():
        mine.sort(key=lambda s: (s.start_s, s.end_s))
        for one, other in pairwise(mine):
            if one.end_s > other.start_s + slack_s:
                broken.append(f"'{resource}' does '{one.name}' and '{other.name}' at once")
    stage = {(s.micro_batch, s.name): s for s in spans if s.kind == "stage"}
    alike = copies(plan.stages)
    moved = {(s.micro_batch, s.name, s.resource): s for s in spans if s.kind == "transfer"}
    for (k, name), span in stage.items():
        for transfer in alike[k % len(alike)][int(name.split()[1])].receives:
            arrival = moved.get((k, transfer.tensor, f"{transfer.src}->{transfer.dst}"))
            if arrival is None or arrival.end_s > span.start_s + slack_s:
                broken.append(f"{name} starts before tensor '{transfer.tensor}' has arrived")
    return broken
