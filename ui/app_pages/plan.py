"""Page Plan: how a model is split over some hardware, and what each algorithm would do."""

import streamlit as st

from hardware.units import format_bytes, format_seconds, format_usd
from scheduler.training.micro_batches import bubble
from ui import charts, files, forms, pipeline, prepare, rented
from ui.explained import explanation_lines, explanation_tables
from ui.replication import device_words, replication_lines, seats
from ui.terminal_plans import objective_value

# Streamlit would show a docstring of a constant on the page.
DRAWN = 12  # batches of a plan with replicas
MEMORY_HEIGHT = 320  # pixels, with title and axes

st.title("Plan")
st.caption("How should the model be split across this hardware, and how fast will that be?")

with st.form("plan"):
    model = forms.ask_model()
    hardware = forms.ask_hardware()
    columns = st.columns(2)
    objective = columns[0].selectbox(
        "Objective", ["throughput", "latency", "cost"], key="objective"
    )
    model["mode"] = columns[1].selectbox("Mode", ["inference", "training"], key="mode")
    asked = st.form_submit_button("Plan", type="primary")


def answer() -> None:
    """Plan, simulate and draw."""
    scenario = forms.make_scenario(model=model, hardware=hardware, objective=objective)
    prepared = pipeline.plan(prepare.prepare_anywhere(scenario, forms.steps), forms.steps)
    if prepared.solution is None:
        return
    best = prepared.solution.best
    predicted, cost = pipeline.predict(prepared, best, forms.steps)
    low, high = predicted.latency_band_s
    slow, fast = predicted.throughput_band_per_s
    tiles = st.columns(4)
    trains = prepared.graph.mode == "training"
    tiles[0].metric(
        "Time of a step" if trains else "Latency of a batch",
        format_seconds(predicted.latency_s.p50),
    )
    tiles[0].caption(f"90 %: {format_seconds(low)} to {format_seconds(high)}")
    tiles[1].metric("Throughput", f"{predicted.throughput_per_s:.4g}/s")
    tiles[1].caption(f"90 %: {slow:.4g} to {fast:.4g}")
    tiles[2].metric("Gap to the lower bound", f"{best.gap:.1%}")
    tiles[2].caption(f"{best.algorithm}, {len(best.stages)} stages; bound by {best.bound_by}")
    tiles[3].metric("Cost per 1,000", format_usd(cost.usd_per_1k) if cost else "no price")
    tiles[3].caption(cost.provenance if cost else rented.rent(scenario)[1])
    for words in replication_lines(prepared.problem, best):
        st.caption(words)
    if trains:
        m = best.num_micro_batches
        st.caption(
            f"{m} micro-batch{'es' * (m > 1)} of {prepared.graph.samples} samples; the "
            f"devices are idle {bubble(prepared.problem, best):.0%} of a step, on average"
        )
    st.altair_chart(charts.graph_chart(prepared.graph, seats(best)))
    st.altair_chart(charts.timeline_chart({"predicted": predicted.spans}, "One batch alone"))
    if not trains and any(stage.replicas for stage in best.stages):
        first = [span for span in predicted.pipeline_spans if span.micro_batch < DRAWN]
        title = f"The first {DRAWN} batches of many, replicas in turn"
        st.altair_chart(charts.timeline_chart({"predicted": first}, title))
    st.altair_chart(charts.memory_chart(predicted.memory), height=MEMORY_HEIGHT)
    left, right = st.columns(2)
    left.subheader("Algorithms side by side")
    left.dataframe(
        [
            {"algorithm": p.algorithm, "value": objective_value(p, prepared.problem),
             "gap": f"{p.gap:.1%}", "devices": device_words(p)}
            for p in prepared.solution.plans
        ],
        key="algorithms",
    )  # fmt: skip
    right.subheader("Memory")
    right.dataframe(
        [
            {"device": device, "parameters": format_bytes(need.param_bytes),
             "activations": format_bytes(need.activation_bytes),
             "limit": format_bytes(need.limit_bytes)}
            for device, need in best.memory.items()
        ],
        key="memory",
    )  # fmt: skip
    prepared = pipeline.explained(prepared, best, forms.steps)
    if prepared.explanation:
        st.subheader("Why this plan")
        st.markdown("  \n".join(explanation_lines(prepared.problem, prepared.explanation)))
        for title, head, rows in explanation_tables(prepared.problem, best, prepared.explanation):
            st.caption(title)
            st.dataframe([dict(zip(head, row, strict=True)) for row in rows], key=title)
    for device, provenance in prepared.problem.costs.provenance.items():
        st.caption(f"times on {device}: {provenance}")
    st.download_button(
        "Download the plan", files.as_json(files.plan_document(best, scenario)), "plan.json"
    )


if asked:
    forms.attempt(answer)
