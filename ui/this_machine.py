"""This machine: whether a scenario runs here, its devices as measured, and times on them.

Torch is imported inside the functions that need it, so that help and catalogs answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hardware.cluster import Cluster
from hardware.units import format_seconds
from scheduler.cost_model.costs import CostTable
from scheduler.ir.graph import Graph
from ui.graph_source import graph_file
from ui.scenario import Scenario
from ui.source import optimizer_of, without_model
from ui.steps import Steps

if TYPE_CHECKING:
    from executor.loaded import LoadedModel
    from executor.workers import Workers


def is_local(scenario: Scenario) -> bool:
    """Whether the scenario's hardware is this machine."""
    return scenario.hardware == "local"


def why_not_here(scenario: Scenario) -> str:
    """Why a scenario can be predicted only, not executed; empty where it runs on this machine."""
    model = scenario.model
    if model.is_service:
        return without_model(model)
    if not is_local(scenario):
        return "its hardware is not this machine; set hardware: local"
    if graph_file(scenario):
        return f"{model.source} holds no weights to run; name the model itself as model.source"
    if model.mode == "generation":
        return "mode generation is predicted only; apportion simulate predicts it"
    if model.mode == "training" and scenario.constraints.replicate is True:
        return "training with replicas is predicted only; leave constraints.replicate out"
    if model.precision.is_what_if:
        return (
            "model.precision is predicted only; "
            "set model.dtype to float32, bfloat16 or float16 in its place"
        )
    if model.pruning.ratio:
        return (
            "model.pruning is predicted only; leave it out, or prune the module of a python: source"
        )
    return ""


def start_workers() -> Workers:
    """One worker for each device of this machine, to be used as a context manager."""
    from executor.devices import local_devices
    from executor.workers import Workers

    return Workers(local_devices())


def local_cluster(workers: Workers, steps: Steps, recalibrate: bool = False) -> Cluster:
    """This machine's devices as measured: from the cache, or now."""
    from executor.calibrate import cached_cluster, calibrate

    cluster = None if recalibrate else cached_cluster()
    if cluster is None:
        with steps("Measuring this machine's devices and links") as tell:
            cluster = calibrate(workers, tell, recalibrate)
    else:
        age_s = profile_age_s(cluster)
        age = "on an unknown date" if age_s is None else f"{format_seconds(age_s)} ago"
        with steps(f"This machine's profile was measured {age}"):
            pass
    if busy := busiest(cluster):
        with steps(f"Others kept {busy:.0%} of the machine busy then: --recalibrate on a calm one"):
            pass
    return cluster


def busiest(cluster: Cluster) -> float:
    """The largest share of the machine that others took while a device or link was measured."""
    sources = [profile.provenance for profile in cluster.devices.values()]
    sources += [link.provenance for link in cluster.links]
    return max((source.busy_share for source in sources), default=0.0)


def load(scenario: Scenario, num_micro_batches: int, steps: Steps) -> LoadedModel:
    """Build the model with weights."""
    model = scenario.model
    sizes = (model.source, model.batch, model.dtype, num_micro_batches)
    with steps("Building the model with weights"):
        if model.mode == "training":
            from executor.training_program import load_training

            return load_training(*sizes, optimizer_of(model), model.tokens)
        from executor.loaded import load_model

        return load_model(*sizes, tokens=model.tokens)


def measure_op_times(
    workers: Workers, model: LoadedModel, graph: Graph, steps: Steps, fresh: bool = False
) -> CostTable:
    """Operator times measured on this machine's devices, or those measured before."""
    from executor.whole import op_times

    with steps("Measuring the model's operators on every device") as tell:
        return op_times(workers, model, graph, tell, fresh)


def profile_age_s(cluster: Cluster) -> float | None:
    """Seconds since this machine's devices were measured; None where the profile does not say."""
    from executor.cache import age_s

    return age_s(next(iter(cluster.devices.values())).provenance.date)
