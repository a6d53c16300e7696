"""Training steps as pipelines: whole batches, micro-batches as chosen, stages moved.

    python -m benchmarks.training_micro_batches [--time-limit S] [--batch N] [--models NAME...]

Steps (float32, Adam, 128 tokens or 224 x 224 pixels) on three mixes of the catalog's devices, times
of the cost model. "one device" is the best single one; "whole" the best pipeline or device with one
micro-batch; "chosen" the best number of micro-batches by heuristics; "moved" the same after moving
its stages for the time limit. The bound holds for every number of micro-batches. ResNet-50 is cut
even though `auto` leaves it whole: it normalises over the batch.
"""

import argparse
import time
from collections.abc import Callable
from functools import lru_cache

import torch

from benchmarks.mixes import mixes, slices
from executor.sources import Model, build_model
from executor.training import Optimizer, capture_training
from executor.zoo.llama import Llama, Shape
from hardware.catalog import find_instance, instance_cluster
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError
from scheduler.baselines.single_device import single_device
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.evaluate import finish_plan
from scheduler.ir.graph import Graph, sharing_weights
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.training.accumulation import accumulating
from scheduler.training.affine import affine
from scheduler.training.micro_batches import best_of, bubble, divisors, over_all, try_micro_batches

LLAMA = Shape(32_000, 2048, 5632, layers=22, heads=32, kv_heads=4, rotary_base=1e4)
"""TinyLlama-1.1B (Zhang et al., arXiv:2401.02385, table 2)."""


def model_of(name: str, batch: int) -> Model:
    """A zoo model, or Llama with 1.1 billion parameters."""
    if name != "llama-1.1b":
        return build_model(f"zoo:{name}", batch, "float32", "meta", None)
    with torch.device("meta"):
        return Model(name, Llama(LLAMA), (torch.zeros(batch, 128, dtype=torch.int64),))


def graphs(name: str, batch: int) -> Callable[[int], Graph]:
    """The graph of one of m micro-batches, from two captures."""
    part = divisors(batch)[1]
    whole, half = (
        capture_training(model_of(name, batch // m), batch // m, Optimizer()) for m in (1, part)
    )
    return lru_cache(lambda m: whole if m == 1 else affine(whole, half, batch // m))


def state(graph: Graph, m: int, cluster: Cluster) -> Problem:
    """The problem of a step, as a scenario states it."""
    graph = accumulating(graph) if m > 1 else graph
    return Problem(
        graph,
        cluster,
        cost_table(graph, cluster),
        "throughput" if m > 1 else "latency",
        num_micro_batches=m,
        colocated=sharing_weights(graph),
    )


def alone_s(problem: Problem) -> float:
    """Seconds of a step on the best single device, infinite where none can hold it."""
    best = float("inf")
    for device in problem.costs.devices:
        try:
            placement = single_device(problem, device)
            best = min(best, finish_plan(problem, device, placement, 0.0, 0.0).value)
        except InfeasibleError:
            continue
    return best


def row(
    name: str, batch: int, graph: Callable[[int], Graph], cluster: Cluster, limit_s: float
) -> str:
    """A line of the table."""
    began_s = time.perf_counter()
    tried = tuple(try_micro_batches(batch, lambda m: state(graph(m), m, cluster), divisors(batch)))
    m = best_of(tried)
    chose_s = time.perf_counter() - began_s
    values = {one.num_micro_batches: one.value for one in tried}
    problem = state(graph(m), m, cluster)
    plan = over_all(solve(problem, "training_pipeline", limit_s).best, tried)
    chosen = values[m] or 0.0
    peak = max(need.num_bytes for need in plan.memory.values())
    each = ", ".join(f"{k}: {v * 1e3:.4g}" if v else f"{k}: bound" for k, v in values.items())
    cells = [
        cluster.name, name, f"{alone_s(state(graph(1), 1, cluster)) * 1e3:.4g}",
        f"{(values[1] or float('inf')) * 1e3:.4g}", f"{chosen * 1e3:.4g} ({m})",
        f"{plan.value * 1e3:.4g}", f"{plan.lower_bound * 1e3:.4g}", f"{bubble(problem, plan):.0%}",
        str(len(plan.devices)), f"{peak / 2**30:.2f}", f"{chose_s:.1f}", each,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--models", nargs="*", default=["gpt2", "bert-base", "vit-b-16", "resnet50", "llama-1.1b"]
    )
    asked = parser.parse_args()
    t4 = instance_cluster(find_instance("aws/g4dn.12xlarge"))
    clusters = [t4, mixes()[1][0], slices()]
    columns = [
        "mix", "model", "one device (ms)", "whole (ms)", "chosen (ms, micro-batches)", "moved (ms)",
        "bound (ms)", "idle", "devices", "peak (GiB)", "choosing (s)", "each number (ms)",
    ]  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for name in asked.models:
        graph = graphs(name, asked.batch)
        for cluster in clusters:
            print(row(name, asked.batch, graph, cluster, asked.time_limit), flush=True)


if __name__ == "__main__":
    main()
