"""What generations meet under traffic: the tables of the terminal and of the report page."""

from typing import Any

from hardware.units import format_seconds, format_usd
from ui.terminal import band, out, table
from ui.terminal_serving import show_bill, show_series, show_state, show_upkeep

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns and rows."""
MEASURES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "latency": "whole answer",
    "wait": "wait for the first step",
}

ALONE = (
    "Alone: the model's tokens of prompt and answer on an idle server, which runs fused kernels "
    "from captured graphs. A plan's prediction for one batch launches each operator by itself; "
    "under traffic requests share steps and have tokens of their own.\n"
)


def show_generations(serving: dict[str, Any], traffic: str) -> None:
    """What requests meet, what the servers do, what it costs, and what would help."""
    show_state(serving, traffic)
    for title, columns, rows in generation_tables(serving):
        table(title, columns, rows)
    out.print(ALONE)
    show_upkeep(serving["upkeep"])
    show_bill(serving["bill"])
    show_series(serving["series"])
    if serving["bottleneck"]:
        out.print(f"[bold]Bottleneck[/]: {serving['bottleneck']}\n")
    out.print(f"{serving['method']}\n")


def generation_tables(serving: dict[str, Any]) -> list[Table]:
    """All tables that have rows."""
    tables = [
        _times(serving),
        _alone(serving),
        _requests(serving),
        _servers(serving),
        _relief(serving),
    ]
    return [one for one in tables if one[2]]


def _times(serving: dict[str, Any]) -> Table:
    rows = []
    for key, name in MEASURES.items():
        found = serving[f"{key}_s"]
        if found is None:
            continue
        low_high = serving.get(f"{key}_band_s")
        rows.append([
            name, *(format_seconds(found[q]) for q in ("mean", "p50", "p90", "p95", "p99")),
            band(serving[f"{key}_interval_s"]["p95"]), band(low_high) if low_high else "",
        ])  # fmt: skip
    columns = ["", "mean", "p50", "p90", "p95", "p99", "p95: 95 % of runs", "mean: 90 % of times"]
    return "Simulated", columns, rows


def _alone(serving: dict[str, Any]) -> Table:
    """What a request has where it meets no other: between one batch and the traffic."""
    rows = [
        [
            kind["name"],
            *(
                "" if kind[key] is None else format_seconds(kind[key])
                for key in ("alone_ttft_s", "alone_tpot_s")
            ),
        ]
        for kind in serving["kinds"]
    ]
    return "Alone on a server", ["", "time to first token", "time per output token"], rows


def _requests(serving: dict[str, Any]) -> Table:
    counts = ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in serving["requests"].items())
    rows = [
        ["requests", counts],
        ["answered", f"{serving['throughput_per_s']:.4g}/s"],
        ["tokens given", f"{serving['tokens_per_s']:,.4g}/s"],
    ]
    if serving["retries"]:
        rows.append(["sent again", f"{serving['retries']:,}"])
    if promise := serving["promise"]:
        asked = {
            "p95_s": "answer",
            "p99_s": "answer",
            "ttft_s": "first token",
            "tpot_s": "further token",
        }
        words = ", ".join(
            f"{name} within {format_seconds(promise[key])}"
            for key, name in asked.items()
            if promise[key] is not None
        )
        kept = "kept" if promise["kept"] else "not kept"
        rows.append(
            [
                f"promise to {100 * promise['share']:.4g} %",
                f"{kept}: {promise['share_within']:.2%} have {words}",
            ]
        )
        rows.append(["goodput within it", f"{serving['goodput_per_s']:.4g}/s"])
    if serving["usd_per_hour"] is None:
        rows.append(["cost", "no price; set prices.usd_per_hour"])
    else:
        rows.append(["cost", f"{format_usd(serving['usd_per_hour'])}/h"])
        for key, what in (
            ("usd_per_1k", "1,000 requests"),
            ("usd_per_million_tokens", "1 M tokens"),
        ):
            if serving[key] is not None:
                rows.append([f"for {what}", format_usd(serving[key])])
    return "Requests", ["", "simulated"], rows


def _servers(serving: dict[str, Any]) -> Table:
    several = any(kind["role"] != "all" for kind in serving["kinds"])
    rows = [
        [
            f"{kind['name']} ({kind['role']})" if several else kind["name"],
            f"{kind['servers']:.3g}",
            f"{kind['utilization']:.0%}",
            f"{kind['share']:.0%}",
            f"{kind['running']:.3g}",
            f"{kind['kv_mean']:.1%} ({kind['kv_peak']:.1%})",
            f"{kind['preemptions']:.3g}",
            "no price" if kind["usd_per_hour"] is None else format_usd(kind["usd_per_hour"]),
            kind["provenance"],
        ]
        for kind in serving["kinds"]
    ]
    columns = [
        "servers", "up", "busy", "requests", "running", "KV mean (peak)",
        "preempted/1,000", "USD/h", "times",
    ]  # fmt: skip
    return "Servers", columns, rows


def _relief(serving: dict[str, Any]) -> Table:
    def seconds(relief: dict[str, Any], key: str) -> str:
        return "" if relief[key] is None else format_seconds(relief[key])

    rows = [
        [
            relief["change"],
            f"queue grows {relief['queue_growth_per_s']:.3g}/s"
            if relief["latency_p95_s"] is None
            else seconds(relief, "latency_p95_s"),
            seconds(relief, "ttft_p95_s"),
            seconds(relief, "tpot_p95_s"),
            "no price" if relief["usd_per_hour"] is None else format_usd(relief["usd_per_hour"]),
        ]
        for relief in serving["relief"]
    ]
    columns = ["one change at a time", "p95 answer", "p95 first token", "p95 per token", "USD/h"]
    return "What would help", columns, rows
