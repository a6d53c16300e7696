"""The smallest fleets of every candidate, in the terminal."""

from collections.abc import Sequence

from hardware.provenance import ERROR_BAND
from hardware.units import format_seconds, format_usd
from simulator.capacity import Fleet
from simulator.generation_report import GenerationServingReport
from simulator.serving_report import ServingReport
from ui.scenario import Scenario
from ui.terminal import band, out, table


def show_fleets(scenario: Scenario, fleets: Sequence[Fleet]) -> None:
    """Fleets by cost per hour, the impossible last with the reason."""
    assert scenario.traffic is not None
    assert scenario.traffic.slo is not None
    traffic, slo = scenario.traffic, scenario.traffic.slo
    if scenario.model.mode == "generation":
        asked = {"first token": slo.ttft_s, "further token": slo.tpot_s, "answer": slo.whole_s}
        words = ", ".join(f"{k} within {format_seconds(s)}" for k, s in asked.items() if s)
        title = f"Fleets for {traffic}, {slo.promised_share:.4g} of the requests: {words}"
        columns = ["first token", "further token", "answer"]
    else:
        title = f"Fleets for {traffic}, p95 within {format_seconds(slo.answer_s)}"
        columns = ["p95 (95 % of simulation)"]
    heads = ["instance", "replicas", "at least", "USD/h", *columns, "busy", "times"]
    share = slo.promised_share
    table(title, heads, [_row(fleet, len(columns), share) for fleet in fleets])
    for level, (low, high) in ERROR_BAND.items():
        if any(level in fleet.provenance for fleet in fleets):
            out.print(
                f"Times of level {level}: the truth lies between {low:g} and {high:g} times the "
                "prediction in 9 of 10 cases."
            )
    out.print("Measure before renting a fleet on predicted times.\n")


def _row(fleet: Fleet, num_times: int, share: float) -> list[str]:
    report = fleet.report
    if fleet.replicas is None or report is None:
        return [fleet.name, *[""] * (4 + num_times), fleet.reason]
    on = f" on {fleet.instances}" if fleet.instances not in (None, fleet.replicas) else ""
    if isinstance(report, ServingReport):
        times, busy = [_p95(report)], report.utilization
    else:
        times, busy = _generation_times(report, share), report.kinds[0].utilization
    return [
        fleet.name, f"{fleet.replicas}{on}", str(fleet.lower_bound_replicas),
        "no price" if fleet.usd_per_hour is None else format_usd(fleet.usd_per_hour),
        *times, f"{busy:.0%}", fleet.provenance,
    ]  # fmt: skip


def _p95(report: ServingReport) -> str:
    if report.latency_s is None:
        return ""
    low, high = (report.latency_interval_s or {}).get("p95", (0.0, 0.0))
    return f"{format_seconds(report.latency_s.p95)} ({band((low, high))})"


def _generation_times(report: GenerationServingReport, share: float) -> list[str]:
    """The 95th percentiles, or the 99th where more is promised."""
    found = (report.ttft_s, report.tpot_s, report.latency_s)
    name = "p99" if share > 0.95 else "p95"
    return ["" if q is None else f"{name} {format_seconds(getattr(q, name))}" for q in found]
