"""Page Run: the plan executed on this machine, prediction beside measurement."""

import streamlit as st

from hardware.units import format_seconds
from ui import charts, files, forms
from ui.job import JobResult, run_scenario
from ui.terminal import band

st.title("Run")
st.caption(
    "Is it true? The plan runs on this machine; the prediction stands beside it. A browser on the "
    "same machine takes cores from the run: for figures to quote, use `apportion run`."
)

with st.form("run"):
    model = forms.ask_model()
    objective = st.selectbox("Objective", ["throughput", "latency"], key="run_objective")
    asked = st.form_submit_button("Run", type="primary")


def find() -> JobResult:
    """Run the main job."""
    scenario = forms.make_scenario(model=model, hardware="local", objective=objective)
    return run_scenario(scenario, forms.steps)


def show(result: JobResult) -> None:
    """Prediction beside measurement."""
    assert result.measured is not None
    execution = result.measured.execution
    predicted, measured = result.predicted, execution.report
    error = files.errors(predicted, measured)
    tiles = st.columns(3)
    slow, fast = measured.throughput_band_per_s
    tiles[0].metric("Throughput, measured", f"{measured.throughput_per_s:.4g} inferences/s")
    tiles[0].caption(
        f"range {slow:.4g} to {fast:.4g}; predicted {predicted.throughput_per_s:.4g}, an error of "
        f"{error['throughput']:+.1%}"
    )
    tiles[1].metric("Latency of a batch, measured", format_seconds(measured.latency_s.p50))
    tiles[1].caption(
        f"range {band(measured.latency_band_s)}; predicted "
        f"{format_seconds(predicted.latency_s.p50)}, an error of {error['latency']:+.1%}"
    )
    verdict = "equal" if execution.outputs_agree else "DIFFER"
    tiles[2].metric(f"{execution.compared.capitalize()} against the unsplit model", verdict)
    tiles[2].caption(
        f"difference {execution.output_difference:.1e}, tolerance {execution.tolerance:.0e}"
    )
    sides = {"predicted": predicted.spans, "measured": measured.spans}
    st.altair_chart(charts.timeline_chart(sides, "One batch alone: prediction above measurement"))
    baselines = result.measured.baselines
    st.subheader("Measured in the same run")
    rows = [(f"unsplit on {name}", report) for name, report in baselines.items()]
    rows.append((f"plan: {result.chosen.algorithm}", measured))
    st.dataframe(
        [
            {"what": what, "throughput": f"{report.throughput_per_s:.4g} inferences/s",
             "latency of a batch": format_seconds(report.latency_s.p50)}
            for what, report in rows
        ],
        key="baselines",
    )  # fmt: skip
    st.altair_chart(charts.graph_chart(result.prepared.graph, result.chosen.placement))
    st.success(f"Files: {result.folder}")


if result := forms.answered("ran", asked, find):
    show(result)
