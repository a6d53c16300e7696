"""The files of a run: graph, plan and report, written as soon as they are known."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardware.documents import parse, read_raw, to_plain
from scheduler.plan import Plan
from scheduler.report import Report, relative_error
from scheduler.training.micro_batches import bubble
from simulator.billing import Cost
from simulator.capacity import Fleet
from simulator.generation_report import GenerationServingReport
from simulator.memory import overflows
from simulator.serving_report import ServingReport
from simulator.whatif import Outcome
from ui.pipeline import Measured, generation_report
from ui.prepare import Prepared
from ui.rented import rent
from ui.replication import replication_document
from ui.scenario import Scenario, parse_scenario

_BATCHES = {
    "latency_s": "s per batch",
    "throughput_per_s": "inferences/s",
    "busy_s": "s per micro-batch",
}
UNITS = {
    "inference": _BATCHES,
    "prefill": _BATCHES,
    "training": {
        "latency_s": "s per training step",
        "throughput_per_s": "samples/s",
        "busy_s": "s per micro-batch",
    },
    "decode": {
        "latency_s": "s per decode step",
        "throughput_per_s": "tokens/s",
        "busy_s": "s per decode step",
    },
}
"""Units of a report's figures by the mode of its graph."""


def new_run_folder(name: str, root: Path = Path("runs")) -> Path:
    """Make `runs/<time>-<name>/`."""
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def provenance(prepared: Prepared) -> dict[str, str]:
    """Where the operator times come from, by device."""
    costs = prepared.problem.costs
    return {device: costs.origin(device) for device in costs.devices}


def pipeline_document(prepared: Prepared, chosen: Plan) -> dict[str, Any] | None:
    """How a training step fills its devices, and what other numbers of micro-batches give."""
    if prepared.graph.mode != "training":
        return None
    return {
        "order": prepared.problem.pipeline if prepared.problem.trains_in_parts else None,
        "num_micro_batches": chosen.num_micro_batches,
        "bubble": bubble(prepared.problem, chosen),
        "memory_bytes": {device: need.num_bytes for device, need in chosen.memory.items()},
        "tried": [to_plain(one) for one in prepared.tried],
    }


def plan_document(chosen: Plan, scenario: Scenario | None) -> dict[str, Any]:
    """The plan file: the plan, and the scenario that it answers."""
    return {**to_plain(chosen), "scenario": to_plain(scenario) if scenario else None}


def read_plan(path: Path) -> tuple[Plan, Scenario]:
    """Read a plan file that was made from a scenario.

    Raises:
        ValueError: it is none.
    """
    raw = read_raw(path)
    scenario = raw.pop("scenario", None)
    for key in (
        "provenance", "left_out", "explanation", "pipeline", "value_unit", "replication",
    ):  # fmt: skip
        raw.pop(key, None)
    if not scenario:
        raise ValueError(f"{path}: this plan has no scenario; plan again, with -o")
    return parse(raw, Plan, str(path)), parse_scenario(scenario, str(path), path.stem)


def is_plan(path: Path) -> bool:
    """Whether a file is a plan rather than a scenario."""
    raw = read_raw(path)
    return isinstance(raw, dict) and raw.get("schema") == "apportion.plan/1"


def report_document(
    prepared: Prepared,
    chosen: Plan,
    predicted: Report,
    cost: Cost | None,
    measured: Measured | None = None,
    what_if: list[Outcome] | None = None,
    status: str = "complete",
) -> dict[str, Any]:
    """The report file: prediction, measurement, their error, cost, and provenance."""
    execution = measured.execution if measured else None
    generation = generation_report(prepared, chosen, predicted)
    return {
        "schema": "apportion.report/1",
        "name": prepared.scenario.name,
        "status": status,
        "scenario": to_plain(prepared.scenario),
        "batch": prepared.problem.batch,
        "mode": prepared.graph.mode,
        "units": UNITS[prepared.graph.mode],
        "predicted": to_plain(predicted),
        "out_of_memory": {d: to_plain(moment) for d, moment in overflows(predicted.memory).items()},
        "measured": to_plain(execution.report) if execution else None,
        "generation": to_plain(generation) if generation else None,
        "explanation": to_plain(prepared.explanation) if prepared.explanation else None,
        "error": errors(predicted, execution.report) if execution else None,
        "output": execution
        and {
            "difference": execution.output_difference,
            "tolerance": execution.tolerance,
            "agrees": execution.outputs_agree,
            "of": execution.compared,
        },
        "baselines": {name: to_plain(r) for name, r in measured.baselines.items()}
        if measured
        else None,
        "cost": to_plain(cost) if cost else None,
        "what_if": [outcome_document(outcome) for outcome in what_if or []],
        "algorithms": algorithms_document(prepared),
        "plan": {
            "algorithm": chosen.algorithm,
            "objective": chosen.objective,
            "value": chosen.value,
            "lower_bound": chosen.lower_bound,
            "bound_by": chosen.bound_by,
            "gap": chosen.gap,
            "num_micro_batches": chosen.num_micro_batches,
            "in_flight": chosen.in_flight,
            "pipeline": prepared.problem.pipeline if prepared.problem.trains_in_parts else None,
            "memory": {d: to_plain(need) for d, need in chosen.memory.items()},
        },
        "pipeline": pipeline_document(prepared, chosen),
        "replication": replication_document(prepared.problem, chosen),
        "provenance": provenance(prepared),
        "assumptions": [
            "inputs and outputs lie in the memory of the device that reads or writes them",
            "a measured transfer lasts from its sending until its receiver takes it",
            "intervals are the 90 % band of the times' provenance; of a measurement, its range",
        ],
    }


def with_serving(
    document: dict[str, Any], scenario: Scenario, serving: ServingReport | GenerationServingReport
) -> dict[str, Any]:
    """The report file with what requests meet under the scenario's traffic, and what they cost."""
    plain = to_plain(serving)
    cost = document["cost"]
    if serving.usd_per_hour is not None:
        hardware = [scenario.hardware, *(part.hardware for part in scenario.fleet)]
        if scenario.prefill:
            hardware.append(scenario.prefill.hardware)
        rents = [rent(replace(scenario, hardware=one))[1] for one in hardware]
        source = f"{'; '.join(dict.fromkeys(rents))}; the fleet under this traffic"
        cost = {
            "usd_per_hour": serving.usd_per_hour,
            "usd_per_1k": serving.usd_per_1k,
            "provenance": source,
        }
    partial = serving.status == "partial"
    return {
        **document,
        "status": "partial: interrupted" if partial else document["status"],
        "serving": plain,
        **{key: plain[key] for key in ("wait_s", "ttft_s", "tpot_s") if key in plain},
        "requests": plain["requests"],
        "cost": cost,
    }


def service_document(scenario: Scenario, serving: ServingReport) -> dict[str, Any]:
    """The report file of a service, which has no plan: its prediction is what requests meet."""
    predicted = {
        "latency_s": to_plain(serving.latency_s) if serving.latency_s else None,
        "throughput_per_s": serving.throughput_per_s,
        "utilization": {kind.name: kind.utilization for kind in serving.kinds},
    }
    document = {
        "schema": "apportion.report/1",
        "name": scenario.name,
        "status": "complete",
        "scenario": to_plain(scenario),
        "mode": "service",
        "units": {"latency_s": "s per request", "throughput_per_s": "requests/s"},
        "predicted": predicted,
        "measured": None,
        "error": None,
        "cost": None,
        "provenance": {scenario.model.source: "literal: mean_s and cv of the scenario"},
    }
    return with_serving(document, scenario, serving)


def errors(predicted: Report, measured: Report) -> dict[str, Any]:
    """(predicted - measured) / measured of latency, throughput and busy time by device."""
    return {
        "latency": relative_error(predicted.latency_s.p50, measured.latency_s.p50),
        "throughput": relative_error(predicted.throughput_per_s, measured.throughput_per_s),
        "busy": {
            device: relative_error(seconds, measured.busy_s[device])
            for device, seconds in predicted.busy_s.items()
            if device in measured.busy_s
        },
    }


def algorithms_document(prepared: Prepared) -> list[dict[str, Any]]:
    """Every algorithm's value, gap and time, the best first; then the refusals."""
    if prepared.solution is None:
        return []
    rows: list[dict[str, Any]] = [
        {
            "algorithm": p.algorithm,
            "value": p.value,
            "gap": p.gap,
            "solve_s": p.solve_s,
            "devices": p.devices,
            "stages": len(p.stages),
        }
        for p in prepared.solution.plans
    ]
    refused = prepared.solution.refusals.items()
    return rows + [{"algorithm": name, "refused": reason} for name, reason in refused]


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """One what-if row."""
    if outcome.report is None or outcome.plan is None or outcome.cost is None:
        return {"instance": outcome.name, "reason": outcome.reason}
    return {
        "instance": outcome.name,
        "usd_per_hour": outcome.cost.usd_per_hour,
        "usd_per_1k": outcome.cost.usd_per_1k,
        "latency_s": outcome.report.latency_s.p50,
        "latency_band_s": list(outcome.report.latency_band_s),
        "throughput_per_s": outcome.report.throughput_per_s,
        "throughput_band_per_s": list(outcome.report.throughput_band_per_s),
        "algorithm": outcome.plan.algorithm,
        "devices": outcome.plan.devices,
        "num_micro_batches": outcome.plan.num_micro_batches,
        "provenance": outcome.provenance,
        "price": outcome.cost.provenance,
    }


def size_document(scenario: Scenario, fleets: list[Fleet]) -> dict[str, Any]:
    """The sizing report: the cheapest fleet that has a price, its bound, and every candidate."""
    priced = [f for f in fleets if f.replicas and f.usd_per_hour is not None]
    best = priced[0] if priced else None
    bounds = [f.lower_bound_usd_per_hour for f in priced]
    bound = min((usd for usd in bounds if usd), default=None)
    gap = None
    if best and best.usd_per_hour and bound:
        gap = (best.usd_per_hour - bound) / best.usd_per_hour
    return {
        "schema": "apportion.size/1",
        "name": scenario.name,
        "traffic": to_plain(scenario.traffic),
        "fleet": best
        and {
            "instance": best.name,
            "replicas": best.replicas,
            "instances": best.instances,
            "usd_per_hour": best.usd_per_hour,
        },
        "lower_bound_usd_per_hour": bound,
        "gap": gap,
        "candidates": [to_plain(fleet) for fleet in fleets],
    }


def as_json(document: Any) -> str:
    """A document as indented JSON text."""
    return json.dumps(document, indent=1)
