"""From a scenario, or from a graph and a cluster, to a plan: `apportion plan`."""

import argparse
from dataclasses import replace
from typing import Any

from hardware.cluster_file import read_cluster
from hardware.documents import to_plain, write_json
from scheduler.ir.graph_file import read_graph
from scheduler.ir.instances import is_instance
from scheduler.ir.precision import unsupported
from scheduler.plan import Plan
from ui import files, pipeline, prepare, terminal
from ui.emit import emit
from ui.exits import DONE, INTERRUPTED
from ui.explained import show_explanation
from ui.model_spec import ModelSpec
from ui.prepare import Prepared
from ui.replication import replication_document
from ui.scenario import Scenario, read_scenario
from ui.terminal_plans import show_plans, value_unit


def plan(arguments: argparse.Namespace) -> int:
    """Scenario, or graph and cluster, to plan file."""
    scenario, prepared = _prepare(arguments)
    for note in unsupported(prepared.graph, prepared.problem.cluster):
        terminal.notes.print(f"Note: {note}")
    with terminal.interruptions() as pressed:
        prepared = pipeline.plan(prepared, terminal.steps, arguments.time_limit, terminal.improved)
    assert prepared.solution is not None
    if pressed:
        terminal.note("stopped by Ctrl-C; this is the best plan until then.")
    best = prepared.solution.best
    document = _document(scenario, prepared, best)
    explanation = None
    if arguments.explain:
        explanation = pipeline.explained(prepared, best, terminal.steps).explanation
        document["explanation"] = to_plain(explanation)
    if arguments.output:
        write_json(arguments.output, document)
    if not emit(arguments, document):
        show_plans(prepared)
        if explanation:
            show_explanation(prepared.problem, best, explanation)
        terminal.show_provenance(prepared)
        if not arguments.output:
            terminal.out.print("Add -o plan.json to keep the plan, --json to print it.")
    return INTERRUPTED if pressed else DONE


def _prepare(arguments: argparse.Namespace) -> tuple[Scenario, Prepared]:
    """The scenario that was asked for, and its problem."""
    if not arguments.time_limit >= 0:
        raise ValueError(f"--time-limit must be seconds from 0, got {arguments.time_limit}")
    if arguments.graph and arguments.scenario:
        raise ValueError("plan takes a SCENARIO or --graph FILE, got both")
    if arguments.graph:
        prepared = _prepare_files(arguments)
        return prepared.scenario, prepared
    if arguments.scenario:
        scenario = _as_asked(read_scenario(arguments.scenario), arguments)
        return scenario, prepare.prepare_anywhere(scenario, terminal.steps)
    raise ValueError("plan needs a SCENARIO, or --graph FILE with --cluster FILE")


def _document(scenario: Scenario, prepared: Prepared, best: Plan) -> dict[str, Any]:
    """The plan file, and what else `--json` says of the plan."""
    problem = prepared.problem
    return {
        **files.plan_document(best, scenario),
        "provenance": files.provenance(prepared),
        "value_unit": value_unit(problem),
        "left_out": [d for d in problem.costs.devices if d not in best.devices],
        "pipeline": files.pipeline_document(prepared, best),
        "replication": replication_document(problem, best),
    }


def _as_asked(scenario: Scenario, arguments: argparse.Namespace) -> Scenario:
    """The scenario with what the command line changes."""
    changed = {k: getattr(arguments, k) for k in ("objective", "grain", "algorithm")}
    if arguments.usd_per_hour is not None:
        changed["prices"] = replace(scenario.prices, usd_per_hour=arguments.usd_per_hour)
    if arguments.latency_bound is not None:
        bound_s = arguments.latency_bound
        changed["constraints"] = replace(scenario.constraints, latency_bound_s=bound_s)
    return replace(scenario, **{k: v for k, v in changed.items() if v is not None})


def _prepare_files(arguments: argparse.Namespace) -> Prepared:
    """State the problem of a graph file and a cluster file, or of a placement instance."""
    is_whole = is_instance(arguments.graph)
    if not (arguments.cluster or is_whole):
        raise ValueError("plan --graph needs --cluster FILE: the devices and links to plan for")
    graph = None if is_whole else read_graph(arguments.graph)
    scenario = Scenario(
        ModelSpec(f"graph:{arguments.graph}", graph.samples if graph else 1),
        str(arguments.cluster or "local"),
        name=arguments.graph.stem,
    )
    scenario = _as_asked(scenario, arguments)
    if graph is None:
        return prepare.prepare_anywhere(scenario, terminal.steps)
    return prepare.prepare(scenario, graph, 1, read_cluster(arguments.cluster))
