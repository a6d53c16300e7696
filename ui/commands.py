"""The commands: each reads its files, calls the pipeline, and shows or prints the result."""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardware.documents import write_json
from hardware.errors import InfeasibleError
from hardware.units import format_usd
from scheduler.evaluation.evaluate import in_flight_of
from scheduler.ir.coarsen import at_grain
from scheduler.ir.graph import Graph
from scheduler.plan import Plan
from scheduler.report import Report
from ui import files, pipeline, prepare, sizing, terminal, this_machine
from ui.calibration import calibrate as calibrate
from ui.comparing import compare as compare
from ui.emit import emit
from ui.exits import DONE, INFEASIBLE, INTERRUPTED, RUN_FAILED
from ui.inventory import devices as devices
from ui.inventory import prices as prices
from ui.model_spec import ModelSpec
from ui.planning import plan as plan
from ui.prepare import Prepared
from ui.rented import rent
from ui.scenario import Scenario, read_scenario
from ui.serving import serve
from ui.source import capture_document, captured
from ui.terminal_fleets import show_fleets
from ui.terminal_generations import show_generations
from ui.terminal_plans import overflow_words, show_memory_use, show_plans
from ui.terminal_serving import show_serving
from ui.trace import sides_of, write_trace
from ui.traffic import serve_traffic


def run(arguments: argparse.Namespace) -> int:
    """The main job."""
    from ui.job import run_scenario

    scenario = read_scenario(arguments.scenario)
    result = run_scenario(scenario, terminal.steps, arguments.recalibrate)
    if not emit(arguments, result.document):
        show_plans(result.prepared)
        if result.measured:
            terminal.show_comparison(result.predicted, result.measured)
            terminal.show_provenance(result.prepared)
        else:
            terminal.show_prediction(result.predicted, result.prepared)
        if result.cost:
            hourly, per_1k = (
                format_usd(result.cost.usd_per_hour),
                format_usd(result.cost.usd_per_1k),
            )
            terminal.out.print(
                f"Cost: {hourly}/h, {per_1k} per 1,000 inferences; {result.cost.provenance}\n"
            )
        else:
            terminal.out.print(f"Cost: {rent(scenario)[1]}\n")
        if result.serving:
            show = show_generations if result.document["generation"] else show_serving
            show(result.document["serving"], str(scenario.traffic))
        terminal.show_outcomes(result.what_if)
        terminal.out.print(f"Report: {result.folder / 'report.html'}")
    agrees = result.measured is None or result.measured.execution.outputs_agree
    return DONE if agrees else RUN_FAILED


def capture(arguments: argparse.Namespace) -> int:
    """Model source to graph file."""
    model = ModelSpec(
        arguments.model,
        arguments.batch,
        arguments.dtype,
        arguments.mode,
        arguments.tokens,
        arguments.prompt_tokens,
        arguments.new_tokens,
        arguments.optimizer,
        arguments.momentum,
    )
    started_s = time.perf_counter()
    with terminal.steps("Capturing the model"):
        found = captured(model)
        if isinstance(found, Graph):
            found = at_grain(found, arguments.grain if arguments.nodes is None else arguments.nodes)
        document = capture_document(found)
    seconds = time.perf_counter() - started_s
    document["capture_s"] = seconds
    for note in document["notes"]:
        terminal.notes.print(f"Note: {note}")
    if arguments.output:
        write_json(arguments.output, document)
    if not emit(arguments, document):
        terminal.show_capture(document, seconds)
    return DONE


def _scenario_and_plan(path: Path) -> tuple[Scenario, Plan | None]:
    if files.is_plan(path):
        chosen, scenario = files.read_plan(path)
        return replace(scenario, num_micro_batches=chosen.num_micro_batches), chosen
    return read_scenario(path), None


def _with_plan(prepared: Prepared, chosen: Plan | None) -> tuple[Prepared, Plan]:
    """Plan afresh, or check that a given plan speaks of this graph and these devices."""
    if chosen is None:
        prepared = pipeline.plan(prepared, terminal.steps)
        assert prepared.solution is not None
        return prepared, prepared.solution.best
    prepared = pipeline.given_plan(prepared, chosen)
    if prepared.problem.trains_in_parts:
        in_flight = in_flight_of(prepared.problem, chosen.stages)
        chosen = replace(chosen, in_flight=in_flight)
    return prepared, chosen


def simulate(arguments: argparse.Namespace) -> int:
    """Scenario or plan to predicted report."""
    scenario, given = _scenario_and_plan(arguments.scenario)
    if scenario.model.is_service:
        return _simulate_service(arguments, scenario)
    scenario = _with_replay(scenario, arguments)
    stated = prepare.prepare_anywhere(scenario, terminal.steps)
    prepared, chosen = _with_plan(stated, given)
    predicted, cost = pipeline.predict(prepared, chosen, terminal.steps)
    prepared = pipeline.explained(prepared, chosen, terminal.steps)
    document = files.report_document(prepared, chosen, predicted, cost)
    if arguments.timeline:
        write_trace(arguments.timeline, chosen, sides_of("predicted", predicted))
    if scenario.traffic:
        serving = serve(scenario, prepared if given else stated, chosen, terminal.steps)
        document = files.with_serving(document, scenario, serving)
    if not emit(arguments, document):
        show_plans(prepared)
        terminal.show_prediction(predicted, prepared)
        show_memory_use(predicted.memory)
        if document["generation"]:
            terminal.show_generation(document["generation"])
        if scenario.traffic:
            show = show_generations if document["generation"] else show_serving
            show(document["serving"], str(scenario.traffic))
            if document["cost"] and not document["serving"]["bill"]:
                terminal.out.print(f"cost: {document['cost']['provenance']}\n", style="dim")
        elif cost:
            sold = "tokens" if document["generation"] else "inferences"
            sold = "samples" if document["mode"] == "training" else sold
            terminal.out.print(
                f"{format_usd(cost.usd_per_hour)}/h, {format_usd(cost.usd_per_1k)} per 1,000 {sold}"
            )
        from ui.page import write_page

        page = files.new_run_folder(scenario.name) / "report.html"
        write_page(page, prepared, chosen, document, [])
        terminal.out.print(f"Report: {page}")
    if document["out_of_memory"]:
        return _out_of_memory(predicted)
    return _done_or_partial(document)


def _with_replay(scenario: Scenario, arguments: argparse.Namespace) -> Scenario:
    """The scenario with the command line's choices for the replay."""
    asked = {key: getattr(arguments, key) for key in ("engine", "sharing")}
    choice = replace(scenario.replay, **{key: value for key, value in asked.items() if value})
    return replace(scenario, replay=choice, pipeline=arguments.pipeline or scenario.pipeline)


def _out_of_memory(predicted: Report) -> int:
    """Say which devices run out of memory, when, and what holds it."""
    for device, use in predicted.memory.items():
        if use.overflow:
            terminal.notes.print(f"apportion: infeasible: {overflow_words(device, use)}")
    return INFEASIBLE


def _simulate_service(arguments: argparse.Namespace, scenario: Scenario) -> int:
    """A queueing study without a model."""
    document = files.service_document(scenario, serve_traffic(scenario, None, terminal.steps))
    if not emit(arguments, document):
        from ui.page_serving import write_service_page

        show_serving(document["serving"], str(scenario.traffic))
        page = files.new_run_folder(scenario.name) / "report.html"
        write_service_page(page, document)
        terminal.out.print(f"Report: {page}")
    return _done_or_partial(document)


def _done_or_partial(document: dict[str, Any]) -> int:
    """An interrupted run's report is shown all the same, and marked."""
    return INTERRUPTED if document["status"].startswith("partial") else DONE


def execute(arguments: argparse.Namespace) -> int:
    """Scenario or plan to measured report."""
    scenario, given = _scenario_and_plan(arguments.scenario)
    if reason := this_machine.why_not_here(scenario):
        raise ValueError(f"{arguments.scenario}: execute runs on this machine; {reason}")
    with this_machine.start_workers() as workers:
        prepared, model = prepare.prepare_local(scenario, workers, terminal.steps)
        prepared, chosen = _with_plan(prepared, given)
        predicted, cost = pipeline.predict(prepared, chosen, terminal.steps)
        measured = pipeline.execute(workers, model, prepared, chosen, terminal.steps)
    document = files.report_document(prepared, chosen, predicted, cost, measured)
    if arguments.timeline:
        sides = [
            *sides_of("predicted", predicted),
            *sides_of("measured", measured.execution.report),
        ]
        write_trace(arguments.timeline, chosen, sides)
    if not emit(arguments, document):
        terminal.show_comparison(predicted, measured)
    return DONE if measured.execution.outputs_agree else RUN_FAILED


def size(arguments: argparse.Namespace) -> int:
    """Capacity planning."""
    scenario = read_scenario(arguments.scenario)
    fleets = sizing.size(scenario, terminal.steps)
    document = files.size_document(scenario, fleets)
    if not emit(arguments, document):
        show_fleets(scenario, fleets)
    if document["fleet"] is None and not any(f.replicas for f in fleets):
        raise InfeasibleError(sizing.why_none(fleets))
    return DONE


def ui(arguments: argparse.Namespace) -> int:
    """Serve the app."""
    app = Path(__file__).parent / "app.py"
    command = [
        sys.executable, "-m", "streamlit", "run", str(app), "--server.port", str(arguments.port),
        "--server.headless", str(arguments.no_browser).lower(),
        "--browser.gatherUsageStats", "false", "--server.address", "localhost",
        "--client.toolbarMode", "minimal",
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode
