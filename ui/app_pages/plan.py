"""Page Plan: how a model is split over some hardware, and what each algorithm would do."""

import streamlit as st

from ui import forms, pipeline, prepare
from ui.scenario import Scenario
from ui.shown_plan import Planned, show
from ui.terminal_plans import value_unit

st.title("Plan")
st.caption("How should the model be split across this hardware, and how fast will that be?")

with st.form("plan"):
    model = forms.ask_model()
    hardware = forms.ask_hardware()
    columns = st.columns(3)
    objective = columns[0].selectbox(
        "Objective", ["throughput", "latency", "cost"], key="objective"
    )
    model["mode"] = columns[1].selectbox(
        "Mode", ["inference", "training", "generation"], key="mode"
    )
    search_s = forms.ask_number(
        columns[2], "Search (s)", "search_s", 600.0, 8.0, min_value=0.0,
        help="Seconds for search and bounds; 0 answers from heuristics alone",
    )  # fmt: skip
    file = st.file_uploader(
        "Or a file: a scenario (YAML) answers all questions above but Search; a graph or a "
        "placement instance (JSON, XLS) is the model",
        forms.FILES, key="file",
    )  # fmt: skip
    asked = st.form_submit_button("Plan", type="primary")


def scenario() -> Scenario:
    """What is asked for, by the file or by the form."""
    if file is None:
        return forms.make_scenario(model=model, hardware=hardware, objective=objective)
    content = file.getvalue()
    return forms.scenario_of_file(file.name, content, hardware=hardware, objective=objective)


def find() -> Planned:
    """Plan, simulate and explain."""
    prepared = prepare.prepare_anywhere(scenario(), forms.steps)
    unit = value_unit(prepared.problem)
    found = st.empty()

    def tell(value: float, bound: float) -> None:
        gap = (value - bound) / value if value > 0 else 0.0
        found.caption(f"Best so far {value:.6g} {unit}, bound {bound:.6g}, gap {gap:.1%}")

    prepared = pipeline.plan(prepared, forms.steps, search_s, tell)
    found.empty()
    assert prepared.solution is not None
    best = prepared.solution.best
    predicted, cost = pipeline.predict(prepared, best, forms.steps)
    prepared = pipeline.explained(prepared, best, forms.steps)
    generation = pipeline.generation_report(prepared, best, predicted)
    return Planned(prepared, best, predicted, cost, generation)


if planned := forms.answered("planned", asked, find):
    show(planned)
