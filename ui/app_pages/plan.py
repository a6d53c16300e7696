"""Page Plan: how a model is split over some hardware, and what each algorithm would do."""

import streamlit as st

from hardware.units import format_bytes, format_seconds, format_usd
from ui import charts, files, forms, pipeline, prepare, rented
from ui.explained import explanation_lines, short_tables
from ui.replication import device_words, replication_lines, seats
from ui.terminal_plans import objective_value

st.title("Plan")
st.caption("How should the model be split across this hardware, and how fast will that be?")

with st.form("plan"):
    model = forms.ask_model()
    hardware = forms.ask_hardware()
    objective = st.selectbox("Objective", ["throughput", "latency", "cost"], key="objective")
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
    tiles[0].metric("Latency of a batch", format_seconds(predicted.latency_s.p50))
    tiles[0].caption(f"90 %: {format_seconds(low)} to {format_seconds(high)}")
    tiles[1].metric("Throughput", f"{predicted.throughput_per_s:.4g}/s")
    tiles[1].caption(f"90 %: {slow:.4g} to {fast:.4g}")
    tiles[2].metric("Gap to the lower bound", f"{best.gap:.1%}")
    tiles[2].caption(f"{best.algorithm}, {len(best.stages)} stages; bound by {best.bound_by}")
    tiles[3].metric("Cost per 1,000", format_usd(cost.usd_per_1k) if cost else "no price")
    tiles[3].caption(cost.provenance if cost else rented.rent(scenario)[1])
    for words in replication_lines(prepared.problem, best):
        st.caption(words)
    st.altair_chart(charts.graph_chart(prepared.graph, seats(best)))
    st.altair_chart(charts.timeline_chart({"predicted": predicted.spans}, "One batch alone"))
    st.altair_chart(charts.memory_chart(predicted.memory))
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
        for title, head, rows in short_tables(prepared.problem, best, prepared.explanation):
            st.caption(title)
            st.dataframe([dict(zip(head, row, strict=True)) for row in rows], key=title)
    for device, provenance in prepared.problem.costs.provenance.items():
        st.caption(f"times on {device}: {provenance}")
    st.download_button(
        "Download the plan", files.as_json(files.plan_document(best, scenario)), "plan.json"
    )


if asked:
    forms.attempt(answer)
