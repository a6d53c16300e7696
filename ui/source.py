"""From the model of a scenario to its graph, by source and mode."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.generation import Generation
from scheduler.ir.graph import Graph
from scheduler.ir.graph_file import graph_document, read_graph
from scheduler.ir.instances import is_instance, read_instance
from scheduler.ir.precision import Precision, Pruning, pruned, with_precision
from ui.graph_source import graph_file, stored_graph
from ui.model_spec import ModelSpec
from ui.scenario import Scenario

if TYPE_CHECKING:
    from executor.training import Optimizer


def captured(model: ModelSpec) -> Graph | Generation:
    """Capture a model in its mode; a graph file is read.

    Raises:
        ValueError: the source is unknown or cannot be captured.
    """
    scheme, _, path = model.source.partition(":")
    if model.is_service:
        raise ValueError(without_model(model))
    if scheme == "graph":
        return (
            read_instance(Path(path)).graph if is_instance(Path(path)) else read_graph(Path(path))
        )
    return _captured(replace(model, precision=Precision(), pruning=Pruning()))


def without_model(model: ModelSpec) -> str:
    """Word why a service cannot be captured, planned or run."""
    return f"{model.source} is a queueing study without a model; apportion simulate serves it"


@lru_cache(maxsize=4)
def _captured(model: ModelSpec) -> Graph | Generation:
    if model.mode == "generation":
        from executor.generation import capture_generation

        return capture_generation(
            model.source, model.batch, model.dtype, model.prompt_tokens or 128,
            model.new_tokens or 128,
        )  # fmt: skip
    if model.mode == "training":
        from executor.sources import build_model
        from executor.training import capture_training

        built = build_model(model.source, model.batch, model.dtype, "meta", model.tokens)
        return capture_training(built, model.batch, optimizer_of(model))
    from executor.capture import capture

    return capture(model.source, model.batch, model.dtype, model.tokens)


def capture_graph(scenario: Scenario) -> tuple[Graph, int]:
    """The graph of one micro-batch, what-ifs applied, and the micro-batches per batch.

    Raises:
        ValueError: the model cannot be found or captured, or the batch not cut as asked.
    """
    model = scenario.model
    asked = scenario.num_micro_batches
    if isinstance(asked, int) and (asked < 1 or model.batch % asked):
        raise ValueError(f"num_micro_batches must divide model.batch ({model.batch}), got {asked}")
    path = graph_file(scenario)
    if path:
        m = asked if isinstance(asked, int) else 1
        return changed(stored_graph(path, model.batch // m), model), m
    if model.mode == "generation" and asked not in ("auto", 1):
        raise ValueError(
            f"num_micro_batches must be 1 for mode generation, got {asked}: "
            "each step needs what the one before left"
        )
    if model.mode != "inference":
        m = asked if isinstance(asked, int) else 1
        found = captured(replace(model, batch=model.batch // m))
        return changed(found.decode if isinstance(found, Generation) else found, model), m
    m = (
        asked
        if isinstance(asked, int)
        else _most_micro_batches(model.source, model.batch, model.dtype, model.tokens)
    )
    part = captured(replace(model, batch=model.batch // m))
    assert isinstance(part, Graph)
    return changed(part, model), m


@lru_cache(maxsize=4)
def _most_micro_batches(source: str, batch: int, dtype: str, tokens: int | None) -> int:
    from executor.loaded import most_micro_batches

    return most_micro_batches(source, batch, dtype, tokens)


def changed(graph: Graph, model: ModelSpec) -> Graph:
    """The graph with the model's what-ifs applied."""
    graph = with_precision(graph, model.precision)
    return pruned(graph, model.pruning, model.precision.weights)


def optimizer_of(model: ModelSpec) -> Optimizer:
    """The optimizer of a training step.

    Raises:
        ValueError: an unknown name, or a momentum that is none.
    """
    from executor.training import Optimizer

    return Optimizer(model.optimizer or "adam", model.momentum or 0.0)


def capture_document(found: Graph | Generation) -> dict[str, Any]:
    """The capture file of a graph, or of both graphs of a generation (the decode step first)."""
    if isinstance(found, Graph):
        return graph_document(found)
    prefill = graph_document(found.prefill)
    return {
        **graph_document(found.decode),
        "generation": {
            "prompt_tokens": found.prompt_tokens,
            "new_tokens": found.new_tokens,
            "context": found.context,
            "kv_bytes": found.kv_bytes,
            "kv_bytes_per_token": found.kv_bytes / found.context / found.decode.samples,
        },
        "prefill": {key: prefill[key] for key in ("totals", "uncosted_ops", "graph")},
    }
