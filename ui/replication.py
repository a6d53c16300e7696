"""Stages on several devices, in words and as a document."""

from collections.abc import Mapping
from typing import Any

from hardware.units import format_bytes, format_seconds
from scheduler.data_parallel.all_reduce import gradients
from scheduler.data_parallel.replicas import teams
from scheduler.evaluation.stage_work import stage_work
from scheduler.ir.graph import Graph
from scheduler.plan import Plan
from scheduler.problem import Problem


def device_words(plan: Plan) -> str:
    """'cpu0, (gpu0 1/3 + gpu1 2/3)': the devices, replicas with their share of micro-batches."""
    named = named_devices(plan)
    firsts = dict.fromkeys(stage.device for stage in plan.stages)
    return ", ".join(named[device] for device in firsts)


def named_devices(plan: Plan) -> Mapping[str, str]:
    """By the device that a placement names: itself, or it and its replicas with their shares."""
    shared = teams(plan.stages)
    return {
        stage.device: f"({_shares(shared[stage.device])})" if stage.replicas else stage.device
        for stage in plan.stages
    }


def seats(plan: Plan) -> dict[str, str]:
    """By operator, its device or its replicas with their shares."""
    named = named_devices(plan)
    return {name: named[device] for name, device in plan.placement.items()}


def shares(plan: Plan) -> list[dict[str, float]]:
    """Of every team of replicas, the share of the micro-batches that each device runs."""
    found = teams(plan.stages).values()
    return [{d: n / sum(turns.values()) for d, n in turns.items()} for turns in found]


def _shares(turns: Mapping[str, int]) -> str:
    total = sum(turns.values())
    return " + ".join(f"{device} {n}/{total}" for device, n in turns.items())


def replication_document(problem: Problem, plan: Plan) -> dict[str, Any]:
    """The teams of a plan: shares of micro-batches, gradients, and the wait for their sum."""
    work, found = stage_work(problem, plan.stages), []
    for first, shared in zip(teams(plan.stages), shares(plan), strict=True):
        ops = [name for stage in plan.stages if stage.device == first for name in stage.ops]
        summed = sum(gradients(problem.graph, ops).values()) if problem.trains_in_parts else 0
        wait_s = float(work.sum_s[problem.device_index[first]])
        found.append(
            {
                "shares": shared,
                "gradient_bytes": summed,
                "awaited_sum_s": wait_s,
            }
        )
    notes = replication_notes(problem.graph) if found and problem.trains_in_parts else []
    return {"teams": found, "notes": notes}


def replication_notes(graph: Graph) -> list[str]:
    """What replicas do not share though the model on one device would."""
    if any(op.kind == "norm" and "batch_norm" in op.target for op in graph.ops):
        return [
            "batch normalization: each replica keeps running statistics of its own micro-batches; "
            "average them, or take those of one replica"
        ]
    return []


def replication_lines(problem: Problem, plan: Plan) -> list[str]:
    """Sentences on the plan's replicas; none where it has none."""
    document = replication_document(problem, plan)
    lines = []
    for turns, team in zip(teams(plan.stages).values(), document["teams"], strict=True):
        words = f"{_shares(turns)}: replicas, which take micro-batches in turn."
        if team["gradient_bytes"]:
            words = (
                f"{words[:-1]} and sum {format_bytes(team['gradient_bytes'])} of gradients in a "
                f"ring once a batch, {format_seconds(team['awaited_sum_s'])} of it awaited."
            )
        lines.append(words)
    return lines + [f"Note: {note}." for note in document["notes"]]
