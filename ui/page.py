"""The self-contained report page."""

from html import escape
from pathlib import Path
from typing import Any

import altair as alt

from hardware.documents import parse, write_text
from hardware.units import format_bytes, format_seconds, format_usd
from scheduler.evaluation.timeline import Span
from scheduler.plan import Plan
from scheduler.report import MemoryUse
from simulator.whatif import Outcome
from ui.charts import cost_chart, graph_chart, memory_chart, serving_chart, timeline_chart
from ui.explained import explanation_lines, short_tables
from ui.prepare import Prepared
from ui.replication import replication_lines, seats
from ui.terminal_generations import generation_tables
from ui.terminal_plans import held_words, overflow_words
from ui.terminal_serving import bill_rows

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0 1.4rem}td,th{padding:.25rem .8rem;text-align:right;
border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}h1{margin-bottom:0}
.note{color:#666;font-size:13px}
"""


def write_page(
    path: Path, prepared: Prepared, chosen: Plan, document: dict[str, Any], what_if: list[Outcome]
) -> None:
    """Write the report as one HTML file that needs no network."""
    predicted = [_span(span) for span in document["predicted"]["spans"]]
    sides = {"predicted": predicted}
    if document["measured"]:
        sides["measured"] = [_span(span) for span in document["measured"]["spans"]]
    charts = [
        graph_chart(prepared.graph, seats(chosen)),
        timeline_chart(sides, "One batch alone, operator by operator"),
        memory_chart(_memory_uses(document)),
    ]
    if any(outcome.cost for outcome in what_if):
        charts.append(cost_chart(what_if))
    if document.get("serving") and document["serving"]["series"]:
        charts.append(serving_chart(document["serving"]["series"]))
    parts = [
        _summary(document, str(prepared.scenario.model)),
        *(f"<p>{escape(words)}</p>" for words in replication_lines(prepared.problem, chosen)),
        _why(prepared, chosen),
    ]
    _write(path, charts, "".join([*parts, _notes(document)]), document["name"])


def write_service_page(path: Path, document: dict[str, Any]) -> None:
    """Write the report of a service, which has no plan, as one HTML file."""
    series = document["serving"]["series"]
    charts = [serving_chart(series)] if series else []
    parts = [
        f"<h1>{escape(document['name'])}</h1>",
        f"<p>{escape(document['scenario']['model']['source'])}. "
        f"Status: {escape(document['status'])}.</p>",
        _serving(document["serving"]),
    ]
    _write(path, charts, "".join(parts), document["name"])


def _write(path: Path, charts: list[Any], summary: str, name: str) -> None:
    drawn = alt.vconcat(*charts).resolve_scale(color="independent")
    page = drawn.to_html(inline=True, embed_options={"actions": False})
    head = f"<title>Apportion: {escape(name)}</title><style>{STYLE}</style>"
    page = _insert(page, head, mark="</head>")
    write_text(path, _insert(page, summary, mark="<body>", behind=True))


def _insert(page: str, text: str, mark: str, behind: bool = False) -> str:
    """Insert text at the last occurrence of a mark: the inlined scripts may hold earlier ones."""
    head, found, tail = page.rpartition(mark)
    return f"{head}{found}{text}{tail}" if behind else f"{head}{text}{found}{tail}"


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
    return "<h2>Memory over time</h2>" + said + _table(cells)


def _summary(document: dict[str, Any], model: str) -> str:
    plan = document["plan"]
    parts = [
        f"<h1>{escape(document['name'])}</h1>",
        f"<p>{escape(model)}; plan "
        f"<b>{escape(plan['algorithm'])}</b> for {plan['objective']}, at most "
        f"{plan['gap']:.1%} above the optimum; {plan['num_micro_batches']} micro-batches a batch, "
        f"{plan['in_flight']} in flight. Status: {escape(document['status'])}.</p>",
        _figures(document),
        _memory(document),
        _serving(document.get("serving")),
        _what_if(document["what_if"]),
    ]
    return "".join(parts)


def _why(prepared: Prepared, chosen: Plan) -> str:
    """Why the plan is as it is: what binds, what more of the hardware gives, what is left out."""
    found, problem = prepared.explanation, prepared.problem
    if found is None:
        return ""
    lines = "<br>".join(map(escape, explanation_lines(problem, found)))
    parts = [f"<h2>Why this plan</h2><p>{lines}</p>"]
    for title, head, rows in short_tables(problem, chosen, found):
        parts.append(f"<h3>{escape(title)}</h3>{_table([head, *rows])}")
    return "".join(parts)


def _notes(document: dict[str, Any]) -> str:
    """Where the times come from, and what is assumed."""
    notes = [f"times on {d}: {p}" for d, p in document["provenance"].items()]
    notes += document["assumptions"]
    return "<p class=note>" + "<br>".join(map(escape, notes)) + "</p>"


def _figures(document: dict[str, Any]) -> str:
    predicted, measured, error = document["predicted"], document["measured"], document["error"]
    rows = [["", "predicted", "90 % interval", "measured", "error"]]
    rows.append([
        "latency of a batch", format_seconds(predicted["latency_s"]["p50"]),
        " to ".join(map(format_seconds, predicted["latency_band_s"])),
        format_seconds(measured["latency_s"]["p50"]) if measured else "",
        f"{error['latency']:+.1%}" if error else "",
    ])  # fmt: skip
    rows.append([
        "throughput (inferences/s)", f"{predicted['throughput_per_s']:.4g}",
        " to ".join(f"{v:.4g}" for v in predicted["throughput_band_per_s"]),
        f"{measured['throughput_per_s']:.4g}" if measured else "",
        f"{error['throughput']:+.1%}" if error else "",
    ])  # fmt: skip
    for device, busy_s in predicted["busy_s"].items():
        rows.append([
            f"busy per micro-batch, {device}", format_seconds(busy_s), "",
            format_seconds(measured["busy_s"][device]) if measured else "",
            f"{error['busy'][device]:+.1%}" if error else "",
        ])  # fmt: skip
    for name, report in (document["baselines"] or {}).items():
        latency = format_seconds(report["latency_s"]["p50"])
        throughput = f"{report['throughput_per_s']:.4g}/s, {latency}"
        rows.append([f"unsplit on {name}", "", "", throughput, ""])
    return _table(rows)


def _serving(serving: dict[str, Any] | None) -> str:
    """What requests meet under traffic."""
    if not serving:
        return ""
    if "ttft_s" in serving:
        return _generations(serving)
    rows = [["", "latency", "95 % interval", "of which wait", "95 % interval"]]
    for statistic, value_s in (serving["latency_s"] or {}).items():
        rows.append([
            statistic, format_seconds(value_s),
            " to ".join(map(format_seconds, serving["latency_interval_s"][statistic])),
            format_seconds(serving["wait_s"][statistic]),
            " to ".join(map(format_seconds, serving["wait_interval_s"][statistic])),
        ])  # fmt: skip
    growth = serving["queue_growth_per_s"]
    lines = [f"The queue grows without bound, by {growth:.3g} requests/s."] if growth > 0 else []
    if serving["promise"]:
        within = f"{serving['promise']['share_within']:.2%} of the requests within it"
        lines.append(f"Promise of {format_seconds(serving['promise']['p95_s'])}: {within}.")
    if serving["usd_per_hour"] is not None:
        lines.append(f"Cost: {format_usd(serving['usd_per_hour'])}/h.")
    lines += [f"Bottleneck: {serving['bottleneck']}"] if serving["bottleneck"] else []
    changes = [["change", "p95", "USD/h"]]
    for relief in serving["relief"]:
        usd, p95_s = relief["usd_per_hour"], relief["p95_s"]
        changes.append([
            relief["change"], "without bound" if p95_s is None else format_seconds(p95_s),
            "" if usd is None else format_usd(usd),
        ])  # fmt: skip
    note = f"<p>{'<br>'.join(map(escape, lines))}</p><p class=note>{escape(serving['method'])}</p>"
    tables = (_table(part) for part in (rows, changes) if len(part) > 1)
    return f"<h2>Under traffic</h2>{note}{''.join(tables)}{_bill(serving)}"


def _bill(serving: dict[str, Any]) -> str:
    """What became of the machines, and what they cost."""
    upkeep, bill = serving["upkeep"], serving["bill"]
    parts = []
    if upkeep and upkeep["notes"]:
        words = (
            f"{upkeep['machines']:.3g} machines rented in a run, {upkeep['rented']:.3g} at a time; "
            f"{upkeep['given_back']:.3g} given back, {upkeep['failed']:.3g} failed, "
            f"{upkeep['preempted']:.3g} taken back; {serving['retries']:,} requests sent again."
        )
        if upkeep["boot_s"]:
            spans = [f"{q} {format_seconds(upkeep['boot_s'][q])}" for q in ("p50", "p90", "p99")]
            words += f" Until a new one serves: {', '.join(spans)}."
        notes = "<br>".join(map(escape, upkeep["notes"]))
        parts += [f"<h2>Machines</h2><p>{words}</p><p class=note>{notes}</p>"]
    if bill:
        notes = "<br>".join(map(escape, bill["notes"]))
        rows = [["", "item", "quantity", "USD"], *bill_rows(bill)]
        title = f"<h2>The bill for {format_seconds(bill['seconds'])}, mean of the runs</h2>"
        parts += [title, _table(rows), f"<p class=note>{notes}</p>"]
    return "".join(parts)


def _generations(serving: dict[str, Any]) -> str:
    """What generations meet under traffic: the rows of the terminal's tables."""
    parts = [f"<h2>Under traffic</h2><p>{escape(str(serving['bottleneck']))}</p>"]
    for title, head, rows in generation_tables(serving):
        parts.append(f"<h3>{escape(title)}</h3>{_table([head, *rows])}")
    parts.append(f"<p class=note>{escape(serving['method'])}</p>")
    return "".join(parts) + _bill(serving)


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
    return "<h2>What if: the same model elsewhere</h2>" + _table(cells)


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in body)
    return f"<table><tr>{top}</tr>{lines}</table>"
