"""A plan as the app draws it: figures, charts, and why it is as it is."""

from dataclasses import dataclass

import streamlit as st

from hardware.units import format_bytes, format_seconds, format_usd
from scheduler.ir.instance_contents import NO_LIMIT_BYTES
from scheduler.plan import Plan
from scheduler.report import Report
from scheduler.training.micro_batches import bubble
from simulator.billing import Cost
from simulator.generation import GenerationReport
from ui import charts, files, rented
from ui.explained import explanation_lines, explanation_tables
from ui.prepare import Prepared
from ui.replication import device_words, replication_lines, seats
from ui.terminal_plans import objective_value, overflow_words, splits_text
from ui.time_words import gap_words, has_own_unit, product, rate_words, time_words

DRAWN = 12
"""Batches of a plan with replicas."""
MEMORY_HEIGHT = 340
"""Pixels, with title, axes and legend."""
RUNS = {"training": "Time of a step", "decode": "Time of a decode step"}


@dataclass(frozen=True)
class Planned:
    """A plan and what is predicted of it."""

    prepared: Prepared
    best: Plan
    predicted: Report
    cost: Cost | None
    generation: GenerationReport | None


def show(planned: Planned) -> None:
    """Figures first, then pictures, then reasons."""
    _figures(planned)
    _notes(planned)
    _pictures(planned)
    _tables(planned)
    _why(planned)
    _origins(planned.prepared)
    document = files.plan_document(planned.best, planned.prepared.scenario)
    st.download_button("Download the plan", files.as_json(document), "plan.json")


def _figures(planned: Planned) -> None:
    best, predicted, problem = planned.best, planned.predicted, planned.prepared.problem
    low, high = (time_words(problem, v) for v in predicted.latency_band_s)
    slow, fast = predicted.throughput_band_per_s
    tiles = st.columns(4)
    name = RUNS.get(problem.graph.mode, "Latency of a batch")
    latency = time_words(problem, predicted.latency_s.p50)
    tiles[0].metric(name, latency.removesuffix(" (file's unit)"))
    tiles[0].caption(f"predicted; 90 %: {low} to {high}")
    rate, _, unit = rate_words(problem, predicted.throughput_per_s).partition(" ")
    tiles[1].metric("Throughput", rate)
    tiles[1].caption(f"{unit}, predicted; 90 %: {slow:.4g} to {fast:.4g}")
    tiles[2].metric("Gap to the lower bound", f"{best.gap:.1%}")
    tiles[2].caption(
        f"{best.algorithm}, {len(best.stages)} stages: {objective_value(best, problem)}; "
        f"{gap_words(best.gap)}, by a bound from {best.bound_by or 'loads'}"
    )
    cost = planned.cost
    per_1k = f"Cost per 1,000 {product(problem)}"
    tiles[3].metric(per_1k, format_usd(cost.usd_per_1k) if cost else "no price")
    tiles[3].caption(cost.provenance if cost else rented.rent(planned.prepared.scenario)[1])


def _notes(planned: Planned) -> None:
    """Sentences on what is special about the plan."""
    prepared, best, problem = planned.prepared, planned.best, planned.prepared.problem
    lines = replication_lines(problem, best)
    if best.splits and prepared.unsplit:
        lines.append(splits_text(best, prepared.unsplit, problem))
    if problem.graph.mode == "training":
        m = best.num_micro_batches
        lines.append(
            f"{m} micro-batch{'es' * (m > 1)} of {prepared.graph.samples} samples; the devices are "
            f"idle {bubble(problem, best):.0%} of a step, on average"
        )
    if report := planned.generation:
        bands = (report.ttft_band_s, report.tpot_band_s)
        ttft, tpot = (" to ".join(map(format_seconds, band)) for band in bands)
        lines.append(
            f"{report.prompt_tokens} prompt and {report.new_tokens} new tokens: time to the first "
            f"token {format_seconds(report.ttft_s)} (90 %: {ttft}), per further token "
            f"{format_seconds(report.tpot_s)} (90 %: {tpot})"
        )
    for line in lines:
        st.caption(line)
    for device, use in planned.predicted.memory.items():
        if use.overflow:
            st.warning(overflow_words(device, use))


def _pictures(planned: Planned) -> None:
    prepared, best, predicted = planned.prepared, planned.best, planned.predicted
    unit = charts.FILE_UNIT if has_own_unit(prepared.problem) else charts.MILLISECONDS
    st.altair_chart(charts.graph_chart(prepared.graph, seats(best)))
    sides = {"predicted": predicted.spans}
    st.altair_chart(charts.timeline_chart(sides, "One batch alone, predicted", unit))
    if prepared.graph.mode != "training" and any(stage.replicas for stage in best.stages):
        first = [span for span in predicted.pipeline_spans if span.micro_batch < DRAWN]
        title = f"The first {DRAWN} batches of many, replicas in turn"
        st.altair_chart(charts.timeline_chart({"predicted": first}, title, unit))
    st.altair_chart(charts.memory_chart(predicted.memory, unit), height=MEMORY_HEIGHT)


def _tables(planned: Planned) -> None:
    """All algorithms, and the memory that the plan takes."""
    solution, problem = planned.prepared.solution, planned.prepared.problem
    assert solution is not None
    left, right = st.columns(2)
    left.subheader("Algorithms side by side")
    left.dataframe(
        [
            {"algorithm": p.algorithm, "value": objective_value(p, problem),
             "gap": f"{p.gap:.1%}", "devices": device_words(p)}
            for p in solution.plans
        ],
        key="algorithms",
    )  # fmt: skip
    for name, reason in solution.refusals.items():
        left.caption(f"No plan by {name}: {reason}")
    right.subheader("Memory")
    right.dataframe(
        [
            {"device": device, "parameters": format_bytes(need.param_bytes),
             "activations": format_bytes(need.activation_bytes),
             "gradients": format_bytes(need.gradient_bytes),
             "states": format_bytes(need.state_bytes),
             "limit": "none" if need.limit_bytes >= NO_LIMIT_BYTES
             else format_bytes(need.limit_bytes)}
            for device, need in planned.best.memory.items()
        ],
        key="memory",
    )  # fmt: skip


def _why(planned: Planned) -> None:
    """What binds, what would help, what is left out, and where else the heaviest could sit."""
    problem, found = planned.prepared.problem, planned.prepared.explanation
    if not found:
        return
    st.subheader("Why this plan")
    st.markdown("  \n".join(explanation_lines(problem, found)))
    for title, head, rows in explanation_tables(problem, planned.best, found):
        st.markdown(f"**{title}**")
        st.dataframe(
            [dict(zip(head, row, strict=True)) for row in rows],
            key=title,
            column_config={head[-1]: st.column_config.TextColumn(width="large")},
        )


def _origins(prepared: Prepared) -> None:
    """Where the times come from, devices of one origin together."""
    devices: dict[str, list[str]] = {}
    for device, origin in files.provenance(prepared).items():
        devices.setdefault(origin, []).append(device)
    for origin, names in devices.items():
        st.caption(f"times on {', '.join(names)}: {origin}")
