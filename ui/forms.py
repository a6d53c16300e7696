"""What the pages share: the questions that make a scenario, progress, and errors in words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import streamlit as st

from hardware.catalog import load_instances
from hardware.errors import InfeasibleError
from scheduler.compiled import compiling
from ui.scenario import Scenario, parse_scenario
from ui.steps import COMPILING, Tell

T = TypeVar("T")
MODELS = ["zoo:resnet50", "zoo:cifar10-cnn", "zoo:gpt2"]
DTYPES = ["float32", "bfloat16", "float16"]
LOCAL = "this machine"


def ask_model() -> dict[str, Any]:
    """Ask for the model, its batch and its precision."""
    columns = st.columns([2, 1, 1])
    source = columns[0].selectbox(
        "Model", MODELS, key="model", accept_new_options=True,
        help="A model of the zoo, or your own: type python:MODULE:FACTORY",
    )  # fmt: skip
    batch = columns[1].number_input("Batch", 1, 4096, 16, key="batch")
    dtype = columns[2].selectbox("Precision", DTYPES, key="dtype")
    return {"source": source, "batch": int(batch), "dtype": dtype}


def ask_hardware() -> Any:
    """Ask for one instance of the catalog, or this machine."""
    choice = st.selectbox("Hardware", [LOCAL, *load_instances()], key="hardware")
    return "local" if choice == LOCAL else {"instances": [choice]}


def make_scenario(**parts: Any) -> Scenario:
    """Check the answers as a scenario file is checked."""
    return parse_scenario(parts, "form", parts["model"]["source"].split(":")[-1])


@contextmanager
def steps(text: str) -> Iterator[Tell]:
    """Show a step with a moving bar; it disappears when done."""
    bar, done = st.progress(0.0, text=text), 0.0

    def tell(share: float) -> None:
        nonlocal done
        done = min(1.0, share)
        bar.progress(done, text=text)

    with compiling(lambda now: bar.progress(done, text=COMPILING if now else text)):
        yield tell
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
