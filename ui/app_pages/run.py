"""Page Run: the plan executed on this machine, prediction beside measurement."""

import streamlit as st

from hardware.units import format_seconds
from ui import charts, files, forms
from ui.job import run_scenario

st.title("Run")
st.caption(
    "Is it true? The plan runs on this machine; the prediction stands beside it. A browser on the "
    "same machine takes cores from the run: for figures to quote, use `apportion run`."
)

with st.form("run"):
    model = forms.ask_model()
    objective = st.selectbox("Objective", ["throughput", "latency"], key="objective")
    asked = st.form_submit_button("Run", type="primary")


def answer() -> None:
    """Run the main job and draw both timelines."""
    scenario = forms.make_scenario(model=model, hardware="local", objective=objective)
    result = run_scenario(scenario, forms.steps)
    if result.measured is None:
        return
    execution = result.measured.execution
    predicted, measured = result.predicted, execution.report
    error = files.errors(predicted, measured)
    tiles = st.columns(3)
    tiles[0].metric(
        "Throughput, measured", f"{measured.throughput_per_s:.4g}/s",
        f"{error['throughput']:+.1%} predicted", delta_color="off",
    )  # fmt: skip
    tiles[1].metric(
        "Latency of a batch, measured", format_seconds(measured.latency_s.p50),
        f"{error['latency']:+.1%} predicted", delta_color="off",
    )  # fmt: skip
    verdict = "equal" if execution.outputs_agree else "DIFFER"
    tiles[2].metric(f"{execution.compared.capitalize()} against the unsplit model", verdict)
    tiles[2].caption(
        f"difference {execution.output_difference:.1e}, tolerance {execution.tolerance:.0e}"
    )
    sides = {"predicted": predicted.spans, "measured": measured.spans}
    st.altair_chart(charts.timeline_chart(sides, "One batch alone: prediction above measurement"))
    baselines = result.measured.baselines
    st.subheader("Measured in the same run")
    st.dataframe(
        [
            {"what": f"unsplit on {name}", "inferences/s": r.throughput_per_s,
             "latency (ms)": r.latency_s.p50 * 1e3}
            for name, r in baselines.items()
        ]
        + [{"what": f"plan: {result.chosen.algorithm}", "inferences/s": measured.throughput_per_s,
            "latency (ms)": measured.latency_s.p50 * 1e3}],
        key="baselines",
    )  # fmt: skip
    st.altair_chart(charts.graph_chart(result.prepared.graph, result.chosen.placement))
    st.success(f"Files: {result.folder}")


if asked:
    forms.attempt(answer)
