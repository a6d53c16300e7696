"""What-ifs side by side: `apportion compare`."""

import argparse
import itertools
from typing import Any

import yaml

from hardware.documents import to_plain
from hardware.errors import InfeasibleError
from hardware.units import format_seconds, format_usd
from scheduler.ir.precision import unsupported
from scheduler.plan import Plan
from ui import pipeline, prepare, terminal
from ui.emit import emit
from ui.exits import DONE
from ui.generation_traffic import serve_generations
from ui.prepare import Prepared
from ui.replication import device_words, shares
from ui.scenario import Scenario, read_scenario, vary


def compare(arguments: argparse.Namespace) -> int:
    """Simulate every scenario in every variation."""
    variations = [_parse_variation(text) for text in arguments.vary]
    rows: list[dict[str, Any]] = []
    for path in arguments.scenarios:
        base = read_scenario(path)
        for values in itertools.product(*(values for _, values in variations)):
            changes = dict(zip((key for key, _ in variations), values, strict=True))
            rows.append(_compare_row(base, changes))
    rows.sort(key=lambda row: row.get("usd_per_1k") or float("inf"))
    if not emit(arguments, {"schema": "apportion.compare/1", "rows": rows}):
        terminal.table(
            "What-ifs",
            ["scenario", "latency", "90 % interval", "1/s", "USD/h", "USD/1,000", "plan", "times"],
            [_compare_cells(row) for row in rows],
        )
        if served := [_served_cells(row) for row in rows if row.get("serving")]:
            columns = ["scenario", "p95 first token", "p95 per token", "p95 answer", "promise"]
            terminal.table("Under traffic", [*columns, "USD/h", "USD/1,000"], served)
    return DONE


def _parse_variation(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    if not separator or not values:
        raise ValueError(f"--vary '{text}': write KEY=A,B,C, e.g. model.batch=1,8")
    return key, [yaml.safe_load(value) for value in values.split(",")]


def _compare_row(base: Scenario, changes: dict[str, Any]) -> dict[str, Any]:
    scenario = vary(base, changes) if changes else base
    row: dict[str, Any] = {"scenario": base.name, "changes": changes}
    try:
        prepared = pipeline.plan(prepare.prepare_anywhere(scenario, terminal.steps), terminal.steps)
    except InfeasibleError as refusal:
        return {**row, "reason": str(refusal)}
    assert prepared.solution is not None
    best = prepared.solution.best
    predicted, cost = pipeline.predict(prepared, best, terminal.steps)
    answer = pipeline.generation_report(prepared, best, predicted)
    return {
        **row,
        "latency_s": answer.seconds if answer else predicted.latency_s.p50,
        "latency_band_s": list(answer.band_s if answer else predicted.latency_band_s),
        "throughput_per_s": answer.tokens_per_s if answer else predicted.throughput_per_s,
        "usd_per_hour": cost.usd_per_hour if cost else None,
        "usd_per_1k": cost.usd_per_1k if cost else None,
        "algorithm": best.algorithm,
        "devices": best.devices,
        "shares": shares(best),
        "plan": device_words(best),
        "levels": prepared.problem.costs.levels_of(best.devices),
        "notes": unsupported(prepared.graph, prepared.problem.cluster),
        "serving": _served(scenario, prepared, best),
    }


def _served(scenario: Scenario, prepared: Prepared, chosen: Plan) -> dict[str, Any] | None:
    """What generations meet under the scenario's traffic; None without traffic."""
    if scenario.traffic is None or scenario.model.mode != "generation":
        return None
    try:
        report = serve_generations(scenario, prepared, chosen, terminal.steps, relieve=False)
    except InfeasibleError as refusal:
        return {"reason": str(refusal)}
    keys = ("ttft_s", "tpot_s", "latency_s", "promise", "queue_growth_per_s", "usd_per_hour")
    return {key: to_plain(getattr(report, key)) for key in (*keys, "usd_per_1k")}


def _served_cells(row: dict[str, Any]) -> list[str]:
    found = row["serving"]
    if "reason" in found:
        return [_named(row), found["reason"], *[""] * 5]
    times = [found[key] for key in ("ttft_s", "tpot_s", "latency_s")]
    growth = f"queue grows {found['queue_growth_per_s']:.3g}/s"
    promise, priced = found["promise"], found["usd_per_1k"] is not None
    kept = f"{promise['share_within']:.2%} within it" if promise else "none"
    return [
        _named(row),
        *(growth if one is None else format_seconds(one["p95"]) for one in times),
        kept,
        format_usd(found["usd_per_hour"]) if priced else "no price",
        format_usd(found["usd_per_1k"]) if priced else "no price",
    ]


def _named(row: dict[str, Any]) -> str:
    return " ".join([row["scenario"], *(f"{k}={v}" for k, v in row["changes"].items())])


def _compare_cells(row: dict[str, Any]) -> list[str]:
    name = _named(row)
    if "reason" in row:
        return [name, row["reason"], "", "", "", "", "", ""]
    priced = row["usd_per_1k"] is not None
    return [
        name,
        format_seconds(row["latency_s"]),
        " to ".join(map(format_seconds, row["latency_band_s"])),
        f"{row['throughput_per_s']:.4g}",
        format_usd(row["usd_per_hour"]) if priced else "no price",
        format_usd(row["usd_per_1k"]) if priced else "no price",
        f"{row['algorithm']} on {row['plan']}",
        row["levels"],
    ]
