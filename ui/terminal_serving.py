"""What requests meet under traffic, in the terminal."""

from typing import Any

from hardware.units import format_seconds, format_usd
from ui.terminal import band, out, table

BARS = " ▁▂▃▄▅▆▇█"


def show_serving(serving: dict[str, Any], traffic: str) -> None:
    """What requests meet, what the servers do, what it costs, and what would help."""
    show_state(serving, traffic)
    if serving["latency_s"] is None and serving["queue_growth_per_s"] <= 0:
        out.print(f"Under {traffic} no request was answered after the warm-up.\n")
    elif serving["latency_s"] is not None:
        _show_times(serving, traffic)
    _show_figures(serving)
    _show_servers(serving)
    show_upkeep(serving["upkeep"])
    show_bill(serving["bill"])
    show_series(serving["series"])
    _show_relief(serving)


def show_state(serving: dict[str, Any], traffic: str) -> None:
    """Say that the figures are partial, and that the queue grows without bound."""
    if serving["status"] == "partial":
        out.print("[bold]Partial[/]: interrupted; the figures are of the runs until then.\n")
    if serving["queue_growth_per_s"] > 0:
        out.print(
            f"Under {traffic} the queue grows without bound, by "
            f"{serving['queue_growth_per_s']:.3g} requests/s: at most "
            f"{serving['throughput_per_s']:.4g}/s are answered, so there are no percentiles.\n"
        )


def _show_times(serving: dict[str, Any], traffic: str) -> None:
    rows = [
        [
            statistic,
            format_seconds(serving["latency_s"][statistic]),
            band(serving["latency_interval_s"][statistic]),
            format_seconds(serving["wait_s"][statistic]),
            band(serving["wait_interval_s"][statistic]),
        ]
        for statistic in ("mean", "p50", "p90", "p95", "p99")
    ]
    columns = ["", "latency", "95 % interval", "of which wait", "95 % interval"]
    table(f"Simulated under {traffic}", columns, rows)
    out.print(f"{serving['method']}\n")


def _show_figures(serving: dict[str, Any]) -> None:
    counts = ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in serving["requests"].items())
    rows = [
        ["answered", f"{serving['throughput_per_s']:.4g}/s"],
        ["requests", counts if serving["requests"]["arrived"] else "not simulated"],
    ]
    if serving["retries"]:
        rows.append(["sent again", f"{serving['retries']:,}"])
    if promise := serving["promise"]:
        word = "kept" if promise["kept"] else "not kept"
        within = f"{promise['share_within']:.2%} within {format_seconds(promise['p95_s'])}"
        rows.append(["promise", f"{word}: {promise['reason'] or within}"])
        rows.append(["goodput within it", f"{serving['goodput_per_s']:.4g}/s"])
    if serving["usd_per_hour"] is not None:
        hourly, per_1k = format_usd(serving["usd_per_hour"]), serving["usd_per_1k"]
        each = f", {format_usd(per_1k)} per 1,000 requests" if per_1k is not None else ""
        rows.append(["cost", f"{hourly}/h{each}"])
    else:
        rows.append(["cost", "no price; set prices.usd_per_hour"])
    table("Requests", ["", "simulated"], rows)


def _show_servers(serving: dict[str, Any]) -> None:
    rows = [
        [
            kind["name"],
            f"{kind['servers']:.3g}",
            f"{kind['utilization']:.0%}",
            f"{kind['share']:.0%}",
            f"{kind['mean_batch']:.3g}",
            "no price" if kind["usd_per_hour"] is None else format_usd(kind["usd_per_hour"]),
        ]
        for kind in serving["kinds"]
    ]
    if rows:
        columns = ["servers", "up", "busy", "share of requests", "mean batch", "USD/h"]
        table("Servers", columns, rows)


def show_upkeep(upkeep: dict[str, Any] | None) -> None:
    """Machines that came and went; nothing where all stayed."""
    if not upkeep or not upkeep["notes"]:
        return
    rows = [
        [word, f"{upkeep[key]:.3g}"]
        for word, key in (
            ("rented in a run", "machines"),
            ("rented at a time", "rented"),
            ("given back", "given_back"),
            ("failed", "failed"),
            ("taken back", "preempted"),
        )
    ]
    if boots := upkeep["boot_s"]:
        spans = [f"{q} {format_seconds(boots[q])}" for q in ("mean", "p50", "p90", "p99")]
        rows.append(["until a new one serves", ", ".join(spans)])
    table("Machines", ["", "mean of the runs"], rows)
    for note in upkeep["notes"]:
        out.print(note, style="dim")
    out.print()


def show_bill(bill: dict[str, Any] | None) -> None:
    """A line per item, the sum, and what the figures rest on."""
    if not bill or not bill["items"]:
        return
    columns = ["bill", "", "quantity", "USD"]
    table(f"For {format_seconds(bill['seconds'])}", columns, bill_rows(bill))
    for note in bill["notes"]:
        out.print(note, style="dim")
    out.print()


def bill_rows(bill: dict[str, Any]) -> list[list[str]]:
    """A line per item, and their sum."""
    rows = [
        [item["kind"], item["name"], f"{item['quantity']:.4g} {item['unit']}", f"{item['usd']:.4f}"]
        for item in bill["items"]
    ]
    return [*rows, ["", "total", "", f"{bill['total_usd']:.4f}"]]


def show_series(series: dict[str, list[float]]) -> None:
    """Lines of bars over time."""
    if not series:
        return
    units = {
        "arrivals_per_s": "arrivals/s", "waiting": "requests waiting",
        "machines_rented": "machines rented", "servers_up": "servers up",
        "servers_busy": "servers busy", "running": "requests running",
        "kv_used": "share of KV cache in use",
    }  # fmt: skip
    units |= {
        f"{role}_{name}": f"{units[name]}, {role}"
        for role in ("prefill", "decode")
        for name in ("waiting", "running", "kv_used")
    }
    rows = [
        [units[name], bars(values), f"{min(values):.3g} to {max(values):.3g}"]
        for name, values in series.items()
        if name in units
    ]
    end_s = series["time_s"][-1] + series["time_s"][0]
    table(f"Over {format_seconds(end_s)}", ["", "mean of the runs", "range"], rows)


def bars(values: list[float]) -> str:
    """A line of bars from 0 to the largest value."""
    top = max(values) or 1.0
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values)


def _p95(relief: dict[str, Any]) -> str:
    if relief["p95_s"] is not None:
        return format_seconds(relief["p95_s"])
    growth = relief["queue_growth_per_s"]
    return f"queue grows {growth:.3g}/s" if growth > 0 else "no answer"


def _show_relief(serving: dict[str, Any]) -> None:
    if not serving["relief"]:
        return
    rows = [
        [
            relief["change"],
            _p95(relief),
            f"{relief['throughput_per_s']:.4g}",
            "no price" if relief["usd_per_hour"] is None else format_usd(relief["usd_per_hour"]),
        ]
        for relief in serving["relief"]
    ]
    out.print(f"[bold]Bottleneck[/]: {serving['bottleneck']}\n")
    table("One change at a time", ["change", "p95", "answered/s", "USD/h"], rows)
