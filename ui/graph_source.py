"""The model source graph:FILE: a captured graph, or a published placement instance."""

from pathlib import Path

from scheduler.ir.batch_size import with_samples
from scheduler.ir.graph import Graph
from scheduler.ir.graph_file import read_graph
from scheduler.ir.instances import Instance, is_instance, read_instance
from ui.scenario import Scenario


def graph_file(scenario: Scenario) -> Path | None:
    """The file that a source graph:FILE names; None for other sources."""
    kind, _, name = scenario.model.source.partition(":")
    return Path(name) if kind == "graph" else None


def instance_of(scenario: Scenario) -> Instance | None:
    """The placement instance that the scenario's model is; None if it is none.

    Raises:
        ValueError: the scenario changes what an instance fixes.
    """
    path = graph_file(scenario)
    if path is None or not is_instance(path):
        return None
    fixed = {
        "hardware": scenario.hardware == "local",
        "model.batch": scenario.model.batch == 1,
        "model.precision": not scenario.model.is_what_if,
        "num_micro_batches": scenario.num_micro_batches in ("auto", 1),
        "communication": scenario.communication == "overlapped",
        "traffic": scenario.traffic is None,
    }
    for key, left_out in fixed.items():
        if not left_out:
            raise ValueError(
                f"{key}: '{path}' is a placement instance, whose times hold for its own devices "
                f"and batch only; leave {key} out"
            )
    return read_instance(path)


def stored_graph(path: Path, samples: int) -> Graph:
    """A captured graph scaled to a batch size.

    Raises:
        ValueError: the file is no graph.
    """
    return with_samples(read_graph(path), samples)
