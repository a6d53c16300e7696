"""The main job: every step of `apportion run`, its files written as soon as they are known."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hardware.documents import write_json
from hardware.errors import InfeasibleError
from scheduler.ir.graph_file import graph_document
from scheduler.plan import Plan
from scheduler.report import Report
from simulator.billing import Cost
from simulator.whatif import Outcome
from ui import files, pipeline, prepare, this_machine
from ui.page import write_page
from ui.pipeline import Measured
from ui.prepare import Prepared
from ui.scenario import Scenario
from ui.serving import AnyServing, serve
from ui.steps import Steps
from ui.trace import sides_of, write_trace


@dataclass(frozen=True)
class JobResult:
    """All that a run found out, and the folder that holds its files."""

    folder: Path
    prepared: Prepared
    chosen: Plan
    predicted: Report
    cost: Cost | None
    what_if: list[Outcome]
    measured: Measured | None = None
    serving: AnyServing | None = None
    document: dict[str, Any] = field(default_factory=dict)


def run_scenario(
    scenario: Scenario, steps: Steps, recalibrate: bool = False, root: Path = Path("runs")
) -> JobResult:
    """Capture, plan, simulate, price, execute where the hardware is here, compare, report.

    Raises:
        ValueError: bad input. InfeasibleError: no plan. WorkerError: a run failed. What had been
        computed by then is in the run's folder.
    """
    if this_machine.why_not_here(scenario):
        prepared = prepare.prepare_anywhere(scenario, steps)
        return _predict(prepared, files.new_run_folder(scenario.name, root), steps)
    with this_machine.start_workers() as workers:
        prepared, model = prepare.prepare_local(scenario, workers, steps, recalibrate)
        result = _predict(prepared, files.new_run_folder(scenario.name, root), steps)
        measured = pipeline.execute(workers, model, result.prepared, result.chosen, steps)
    return _report(replace(result, measured=measured))


def _predict(prepared: Prepared, folder: Path, steps: Steps) -> JobResult:
    """Plan and simulate, here and elsewhere, and write what is known."""
    write_json(folder / "graph.json", graph_document(prepared.graph))
    stated, prepared = prepared, pipeline.plan(prepared, steps)
    if prepared.solution is None:
        raise InfeasibleError("no plan")
    chosen = prepared.solution.best
    write_json(folder / "plan.json", files.plan_document(chosen, prepared.scenario))
    predicted, cost = pipeline.predict(prepared, chosen, steps)
    prepared = pipeline.explained(prepared, chosen, steps)
    result = _report(JobResult(folder, prepared, chosen, predicted, cost, []))
    scenario, m = prepared.scenario, prepared.problem.num_micro_batches
    if scenario.traffic:
        result = _report(replace(result, serving=serve(scenario, stated, chosen, steps)))
    what_if = pipeline.elsewhere(scenario, prepared.graph, m, steps)
    return _report(replace(result, what_if=what_if))


def _report(result: JobResult) -> JobResult:
    """Write report, page and trace; a report that still lacks its measurement says so."""
    prepared, chosen, predicted = result.prepared, result.chosen, result.predicted
    unfinished = result.measured is None and not this_machine.why_not_here(prepared.scenario)
    status = "partial: not executed" if unfinished else "complete"
    document = files.report_document(
        prepared, chosen, predicted, result.cost, result.measured, result.what_if, status
    )
    if result.serving:
        document = files.with_serving(document, prepared.scenario, result.serving)
    write_json(result.folder / "report.json", document)
    sides = sides_of("predicted", predicted)
    if result.measured:
        sides += sides_of("measured", result.measured.execution.report)
    write_trace(result.folder / "trace.json", chosen, sides)
    write_page(result.folder / "report.html", prepared, chosen, document, result.what_if)
    return replace(result, document=document)
