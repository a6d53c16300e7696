"""What the pages share: the questions that make a scenario, progress, errors, and what is kept."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from hardware.catalog import load_instances
from hardware.errors import InfeasibleError
from scheduler.ir.graph_file import read_graph
from scheduler.ir.instances import is_instance
from ui.scenario import Scenario, parse_scenario, read_scenario
from ui.steps import Tell

T = TypeVar("T")
MODELS = ["zoo:resnet50", "zoo:cifar10-cnn", "zoo:gpt2"]
DTYPES = ["float32", "bfloat16", "float16"]
FILES = ["yaml", "yml", "json", "xls"]
KEPT = (
    "model", "batch", "dtype", "hardware", "objective", "mode", "search_s", "run_objective",
    "rate", "promise", "instances",
)  # fmt: skip
"""Answers that stay when another page is opened; Streamlit forgets those not on the page."""


def keep_answers() -> None:
    """Keep the answers of pages that are not shown."""
    for key in KEPT:
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]


def ask_number(place: Any, label: str, key: str, most: float, start: float, **more: Any) -> Any:
    """Ask for a number that is kept; `start` is its first value."""
    st.session_state.setdefault(key, start)
    return place.number_input(label, max_value=most, key=key, **more)


def ask_model() -> dict[str, Any]:
    """Ask for the model, its batch and its precision."""
    columns = st.columns([2, 1, 1])
    source = columns[0].selectbox(
        "Model", MODELS, key="model", accept_new_options=True,
        help="A model of the zoo, or your own: type zoo:NAME, python:MODULE:FACTORY, "
        "hf:CONFIG.json, onnx:FILE or graph:FILE",
    )  # fmt: skip
    batch = ask_number(columns[1], "Batch", "batch", 4096, 16, min_value=1)
    dtype = columns[2].selectbox("Precision", DTYPES, key="dtype")
    return {"source": source, "batch": int(batch), "dtype": dtype}


def ask_hardware() -> Any:
    """Ask for instances of the catalog, a cluster file, or this machine."""
    chosen = st.multiselect(
        "Hardware", list(load_instances()), key="hardware", accept_new_options=True,
        placeholder="this machine",
        help="Nothing chosen: this machine. Several instances are joined by the slowest of their "
        "networks. Or type the path of a cluster file, such as examples/devices/workstation.yaml",
    )  # fmt: skip
    if len(chosen) == 1 and chosen[0] not in load_instances() and Path(chosen[0]).suffix:
        return chosen[0]
    return {"instances": chosen} if chosen else "local"


def make_scenario(**parts: Any) -> Scenario:
    """Check the answers as a scenario file is checked."""
    return parse_scenario(parts, "form", parts["model"]["source"].split(":")[-1])


def scenario_of_file(name: str, content: bytes, **parts: Any) -> Scenario:
    """The scenario in a file; or a graph or placement instance on the hardware asked for.

    Raises:
        ValueError: it is none of these.
    """
    path = Path(tempfile.mkdtemp(prefix="apportion-")) / Path(name).name
    path.write_bytes(content)
    if path.suffix in (".yaml", ".yml"):
        return read_scenario(path)
    source = f"graph:{path}"
    if is_instance(path):
        return make_scenario(model={"source": source}, objective=parts["objective"])
    graph = read_graph(path)
    return make_scenario(**{**parts, "model": {"source": source, "batch": graph.samples}})


@contextmanager
def steps(text: str) -> Iterator[Tell]:
    """Show a step with its time, and a bar where its share is known; both go when done."""
    bar = st.empty()

    def tell(share: float) -> None:
        bar.progress(min(1.0, share))

    try:
        with st.spinner(text, show_time=True):
            yield tell
    finally:
        bar.empty()


def attempt(work: Callable[[], T]) -> T | None:
    """Do the work; an error becomes one sentence on the page, and None."""
    try:
        return work()
    except InfeasibleError as error:
        st.warning(f"Infeasible: {error}")
    except (ValueError, RuntimeError) as error:
        st.error(str(error))
    return None


def answered(key: str, asked: bool, work: Callable[[], T]) -> T | None:
    """What the work found, now or before: it stays while other pages and buttons are used."""
    if asked:
        st.session_state[key] = attempt(work)
    return st.session_state.get(key)
