"""Page What-if: the same model on other instances, and the cheapest fleet for a promise."""

import streamlit as st

from hardware.catalog import common_instances, load_instances
from hardware.units import format_seconds
from simulator.serving_report import ServingReport
from ui import charts, forms, pipeline, sizing
from ui.source import capture_graph

st.title("What-if")
st.caption("Which hardware is the cheapest for this traffic, and what would another precision do?")

with st.form("what_if"):
    model = forms.ask_model()
    columns = st.columns(2)
    rate = columns[0].number_input("Requests per second", 0.1, 1e6, 40.0, key="rate")
    promise_ms = columns[1].number_input("Promise: p95 (ms)", 1.0, 1e6, 200.0, key="promise")
    instances = st.multiselect(
        "Instances", list(load_instances()), common_instances(), key="instances"
    )
    asked = st.form_submit_button("Compare", type="primary")


def answer() -> None:
    """Price the model on every instance, then size a fleet of each."""
    scenario = forms.make_scenario(
        model=model,
        hardware={"instances": instances[:1]},
        traffic={"rate": rate, "duration_s": 600, "slo": {"p95_s": promise_ms / 1e3}},
    )
    with forms.steps("Capturing the model"):
        graph, m = capture_graph(scenario)
    outcomes = pipeline.elsewhere(scenario, graph, m, forms.steps, instances)
    st.subheader("Cost and latency at full load")
    st.dataframe(
        [
            {"instance": o.name, "USD per 1,000": o.cost.usd_per_1k,
             "USD per hour": o.cost.usd_per_hour, "latency (ms)": o.report.latency_s.p50 * 1e3,
             "inferences/s": o.report.throughput_per_s, "times": o.provenance, "note": ""}
            if o.cost and o.report
            else {"instance": o.name, "note": o.reason}
            for o in outcomes
        ],
        key="outcomes",
        column_config={"USD per 1,000": st.column_config.NumberColumn(format="%.6f")},
    )  # fmt: skip
    if any(o.cost for o in outcomes):
        st.altair_chart(charts.cost_chart(outcomes))
    fleets = sizing.candidates_to_fleets(scenario, graph, [], instances, forms.steps)
    promise = format_seconds(promise_ms / 1e3)
    st.subheader(f"Fleets for {rate:g} requests/s, p95 within {promise}")
    st.dataframe(
        [
            {"instance": f.name, "replicas": f.replicas, "USD per hour": f.usd_per_hour,
             "p95 (ms)": f.report.latency_s.p95 * 1e3, "busy": f"{f.report.utilization:.0%}",
             "times": f.provenance, "note": ""}
            if isinstance(f.report, ServingReport) and f.report.latency_s
            else {"instance": f.name, "times": f.provenance, "note": f.reason}
            for f in fleets
        ],
        key="fleets",
    )  # fmt: skip
    if any(f.replicas for f in fleets):
        st.altair_chart(charts.fleet_chart(fleets))
    else:
        st.warning("No instance keeps the promise; the reason stands beside each.")


if asked and not instances:
    st.error("Choose at least one instance.")
elif asked:
    forms.attempt(answer)
