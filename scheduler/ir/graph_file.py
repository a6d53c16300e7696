"""The capture file: a graph as JSON, with its totals first."""

from pathlib import Path
from typing import Any

from hardware.documents import parse, read_raw, to_plain
from scheduler.ir.graph import Graph

SCHEMA = "apportion.graph/1"


def graph_document(graph: Graph) -> dict[str, Any]:
    """The capture file: what was captured and how, totals, then the graph."""
    return {
        "schema": SCHEMA,
        "name": graph.name,
        "mode": graph.mode,
        "captured_by": graph.captured_by,
        "notes": list(graph.notes),
        "totals": graph.totals(),
        "flops_by_kind": graph.flops_by_kind(),
        "phases": graph.phase_totals() if graph.mode == "training" else None,
        "uncosted_ops": graph.uncosted_ops,
        "graph": to_plain(graph),
    }


def read_graph(path: Path) -> Graph:
    """Read a capture file.

    Raises:
        ValueError: it is none.
    """
    raw = read_raw(path)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path}: schema must be '{SCHEMA}', got {found!r}")
    return parse(raw.get("graph"), Graph, str(path))
