"""The self-contained report page."""

from html import escape
from pathlib import Path
from typing import Any

from hardware.documents import parse
from hardware.units import format_bytes, format_seconds, format_usd
from scheduler.evaluation.timeline import Span
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.report import MemoryUse
from simulator.whatif import Outcome
from ui.charts import (
    FILE_UNIT,
    MILLISECONDS,
    cost_chart,
    graph_chart,
    memory_chart,
    serving_chart,
    timeline_chart,
)
from ui.explained import explanation_lines, explanation_tables
from ui.page_parts import table, write
from ui.page_serving import serving_text
from ui.prepare import Prepared
from ui.replication import device_words, replication_lines, seats
from ui.terminal_plans import held_words, objective_value, overflow_words
from ui.time_words import gap_words, has_own_unit, product, time_words


def write_page(
    path: Path, prepared: Prepared, chosen: Plan, document: dict[str, Any], what_if: list[Outcome]
) -> None:
    """Write the report as one HTML file that needs no network."""
    predicted = [_span(span) for span in document["predicted"]["spans"]]
    sides = {"predicted": predicted}
    if document["measured"]:
        sides["measured"] = [_span(span) for span in document["measured"]["spans"]]
    unit = FILE_UNIT if has_own_unit(prepared.problem) else MILLISECONDS
    charts = [
        graph_chart(prepared.graph, seats(chosen)),
        timeline_chart(sides, "One batch alone, operator by operator", unit),
        memory_chart(_memory_uses(document), unit),
    ]
    if any(outcome.cost for outcome in what_if):
        charts.append(cost_chart(what_if))
    if document.get("serving") and document["serving"]["series"]:
        charts.append(serving_chart(document["serving"]["series"]))
    parts = [
        _summary(prepared, chosen, document),
        *(f"<p>{escape(words)}</p>" for words in replication_lines(prepared.problem, chosen)),
        _why(prepared, chosen),
        _algorithms(prepared),
    ]
    write(path, charts, "".join([*parts, _notes(document)]), document["name"])


def _span(plain: dict[str, Any]) -> Span:
    return Span(**plain)


def _memory_uses(document: dict[str, Any]) -> dict[str, MemoryUse]:
    plain = document["predicted"]["memory"]
    return {device: parse(use, MemoryUse, "report") for device, use in plain.items()}


def _memory(document: dict[str, Any]) -> str:
    """Peaks of memory by device, and what holds them; first of all what runs out."""
    cells = [["device", "peak", "limit", "at", "largest activations then"]]
    said = ""
    for device, use in _memory_uses(document).items():
        if use.overflow:
            said += f"<p><b>{escape(overflow_words(device, use))}</b></p>"
        cells.append([
            device, format_bytes(use.peak.num_bytes), format_bytes(use.limit_bytes),
            format_seconds(use.peak.at_s), held_words(use.peak),
        ])  # fmt: skip
    return "<h2>Memory over time</h2>" + said + table(cells)


def _summary(prepared: Prepared, chosen: Plan, document: dict[str, Any]) -> str:
    problem, m = prepared.problem, chosen.num_micro_batches
    cut = "whole batches" if m == 1 else f"{m} micro-batches a batch"
    words = (
        f"for {chosen.objective}: {objective_value(chosen, problem)}; {gap_words(chosen.gap)}, by "
        f"a bound from {chosen.bound_by or 'loads'}. {cut.capitalize()}, {chosen.in_flight} in "
        f"flight. Status: {document['status']}."
    )
    parts = [
        f"<h1>{escape(document['name'])}</h1>",
        f"<p>{escape(str(prepared.scenario.model))}; plan <b>{escape(chosen.algorithm)}</b> "
        f"{escape(words)}</p>",
        _figures(problem, document),
        _cost(problem, document),
        _memory(document),
        serving_text(document.get("serving")),
        _what_if(document["what_if"]),
    ]
    return "".join(parts)


def _cost(problem: Problem, document: dict[str, Any]) -> str:
    """The price of the predicted work at full load; under traffic the bill says more."""
    cost = document["cost"]
    if not cost or document.get("serving"):
        return ""
    per_1k = f"{format_usd(cost['usd_per_1k'])} per 1,000 {product(problem)}"
    words = f"{format_usd(cost['usd_per_hour'])}/h, {per_1k} at full load; {cost['provenance']}"
    return f"<p>Cost: {escape(words)}.</p>"


def _why(prepared: Prepared, chosen: Plan) -> str:
    """Why the plan is as it is: what binds, what more of the hardware gives, what is left out."""
    found, problem = prepared.explanation, prepared.problem
    if found is None:
        return ""
    lines = "<br>".join(map(escape, explanation_lines(problem, found)))
    parts = [f"<h2>Why this plan</h2><p>{lines}</p>"]
    for title, head, rows in explanation_tables(problem, chosen, found):
        parts.append(f"<h3>{escape(title)}</h3>{table([head, *rows])}")
    return "".join(parts)


def _notes(document: dict[str, Any]) -> str:
    """Where the times come from, and what is assumed."""
    notes = [f"times on {d}: {p}" for d, p in document["provenance"].items()]
    notes += document["assumptions"]
    return "<p class=note>" + "<br>".join(map(escape, notes)) + "</p>"


def _figures(problem: Problem, document: dict[str, Any]) -> str:
    """Latency, throughput and how busy devices are: predicted, and measured where it was."""
    predicted, measured = document["predicted"], document["measured"]
    rows = [
        ["", "predicted", "90 % interval"],
        [
            "latency of a batch", time_words(problem, predicted["latency_s"]["p50"]),
            " to ".join(time_words(problem, v) for v in predicted["latency_band_s"]),
        ],
        [
            f"throughput ({product(problem)}/s)", f"{predicted['throughput_per_s']:.4g}",
            " to ".join(f"{v:.4g}" for v in predicted["throughput_band_per_s"]),
        ],
    ]  # fmt: skip
    if not measured:
        busy = predicted["utilization"].items()
        return table(rows + [[f"busy at full load, {name}", f"{u:.0%}", ""] for name, u in busy])
    error = document["error"]
    found = [
        ["measured", "error"],
        [format_seconds(measured["latency_s"]["p50"]), f"{error['latency']:+.1%}"],
        [f"{measured['throughput_per_s']:.4g}", f"{error['throughput']:+.1%}"],
    ]
    for device, busy_s in predicted["busy_s"].items():
        rows.append([f"busy per micro-batch, {device}", format_seconds(busy_s), ""])
        found.append([format_seconds(measured["busy_s"][device]), f"{error['busy'][device]:+.1%}"])
    for name, report in (document["baselines"] or {}).items():
        latency = format_seconds(report["latency_s"]["p50"])
        rows.append([f"unsplit on {name}", "", ""])
        found.append([f"{report['throughput_per_s']:.4g}/s, {latency}", ""])
    return table([left + right for left, right in zip(rows, found, strict=True)])


def _algorithms(prepared: Prepared) -> str:
    """Every algorithm's plan beside the others, the chosen one first."""
    if prepared.solution is None:
        return ""
    rows = [["algorithm", "value", "gap to the bound", "devices"]]
    for plan in prepared.solution.plans:
        value = objective_value(plan, prepared.problem)
        rows.append([plan.algorithm, value, f"{plan.gap:.1%}", device_words(plan)])
    rows += [[name, "", "", reason] for name, reason in prepared.solution.refusals.items()]
    return f"<h2>Algorithms side by side</h2>{table(rows)}"


def _what_if(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = [["instance", "USD/1,000", "USD/h", "latency of a batch", "inferences/s", "times"]]
    for row in rows:
        if "reason" in row:
            cells.append([row["instance"], "", "", "", "", row["reason"]])
            continue
        cells.append([
            row["instance"], format_usd(row["usd_per_1k"]), format_usd(row["usd_per_hour"]),
            format_seconds(row["latency_s"]), f"{row['throughput_per_s']:.4g}", row["provenance"],
        ])  # fmt: skip
    return "<h2>What if: the same model elsewhere</h2>" + table(cells)
