"""What the report page says of traffic, and the page of a service."""

from html import escape
from pathlib import Path
from typing import Any

from hardware.units import format_seconds, format_usd
from ui.charts import serving_chart
from ui.page_parts import table, write
from ui.terminal_generations import generation_tables
from ui.terminal_serving import bill_rows


def write_service_page(path: Path, document: dict[str, Any]) -> None:
    """Write the report of a service, which has no plan, as one HTML file."""
    series = document["serving"]["series"]
    charts = [serving_chart(series)] if series else []
    parts = [
        f"<h1>{escape(document['name'])}</h1>",
        f"<p>{escape(document['scenario']['model']['source'])}. "
        f"Status: {escape(document['status'])}.</p>",
        serving_text(document["serving"]),
    ]
    write(path, charts, "".join(parts), document["name"])


def serving_text(serving: dict[str, Any] | None) -> str:
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
    tables = (table(part) for part in (rows, changes) if len(part) > 1)
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
        parts += [title, table(rows), f"<p class=note>{notes}</p>"]
    return "".join(parts)


def _generations(serving: dict[str, Any]) -> str:
    """What generations meet under traffic: the rows of the terminal's tables."""
    parts = [f"<h2>Under traffic</h2><p>{escape(str(serving['bottleneck']))}</p>"]
    for title, head, rows in generation_tables(serving):
        parts.append(f"<h3>{escape(title)}</h3>{table([head, *rows])}")
    parts.append(f"<p class=note>{escape(serving['method'])}</p>")
    return "".join(parts) + _bill(serving)
