"""What stages on several devices give: plans with replicas beside plans without.

    python -m benchmarks.scheduler_replicas [--models NAME...] [--batches N...]

The zoo models of `scheduler_mixes` on its mixes, for throughput; then training steps of GPT-2
(float16, 128 tokens, 8 micro-batches) on rented instances: the best device alone, the best
pipeline, and the best plan with replicas. Times are the cost model's, `auto` without search.
"""

import argparse
import statistics
import time
from dataclasses import replace

from benchmarks.mixes import MODELS, graphs_of, mixes
from hardware.catalog import find_instance, instance_cluster
from hardware.errors import InfeasibleError
from hardware.units import format_seconds
from scheduler.cost_model.costs import cost_table
from scheduler.data_parallel.replicas import teams
from scheduler.evaluation.check import check_plan
from scheduler.ir.graph import Graph, sharing_weights
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.problem import Problem
from ui.model_spec import ModelSpec
from ui.source import captured

INSTANCES = ("aws/g4dn.12xlarge", "aws/p4d.24xlarge")
MICRO_BATCHES = 8


def planned(problem: Problem, algorithm: str = "auto") -> Plan:
    """The best plan, checked."""
    best = solve(problem, algorithm).best
    assert check_plan(problem, best) == [], best.algorithm
    return best


def words(plan: Plan) -> str:
    """How many turns the devices of each team have."""
    found = [
        "+".join(f"{device} {n}/{sum(team.values())}" for device, n in team.items())
        for team in teams(plan.stages).values()
    ]
    return "; ".join(found) or "none"


def show_mixes(models: list[str]) -> None:
    """Value with replicas / without, for each model and mix."""
    print("| mix | model | without | with | with / without | gap | replicas | s more |")
    print("|---" * 8 + "|")
    ratios: dict[str, list[float]] = {}
    for model in models:
        graphs = graphs_of(model)
        for cluster, _, dtype in mixes():
            problem = Problem(graphs[dtype], cluster, cost_table(graphs[dtype], cluster))
            try:
                began_s = time.perf_counter()
                without = planned(problem)
                middle_s = time.perf_counter()
                best = planned(replace(problem, replicate=True))
            except InfeasibleError:
                continue
            more_s = time.perf_counter() - middle_s - (middle_s - began_s)
            ratio = best.value / without.value
            ratios.setdefault(cluster.name, []).append(ratio)
            print(
                f"| {cluster.name} | {model} | {format_seconds(without.value)} | "
                f"{format_seconds(best.value)} | {ratio:.3f} | {best.gap:.1%} | {words(best)} | "
                f"{more_s:.1f} |",
                flush=True,
            )
    print("\n| mix | plans | replicated | median | best |\n" + "|---" * 5 + "|")
    for name, found in ratios.items():
        print(
            f"| {name} | {len(found)} | {sum(r < 1 for r in found)} | "
            f"{statistics.median(found):.3f} | {min(found):.3f} |"
        )


def show_training(batches: list[int]) -> None:
    """Seconds of a step on one device, as a pipeline, and with replicas."""
    print("\n| instance | batch | one device | pipeline | replicated | auto | gap | replicas |")
    print("|---" * 8 + "|")
    for batch in batches:
        part = batch // MICRO_BATCHES
        graph = captured(ModelSpec("zoo:gpt2", part, "float16", mode="training"))
        assert isinstance(graph, Graph)
        for name in INSTANCES:
            cluster = instance_cluster(find_instance(name))
            problem = Problem(
                graph,
                cluster,
                cost_table(graph, cluster),
                num_micro_batches=MICRO_BATCHES,
                colocated=sharing_weights(graph),
                replicate=True,
            )
            alone, pipeline, several = (
                planned(problem, algorithm)
                for algorithm in ("memory_fill", "training_pipeline", "replicated")
            )
            best = planned(problem)
            cells = " | ".join(format_seconds(p.value) for p in (alone, pipeline, several))
            print(
                f"| {name} | {batch} | {cells} | {best.algorithm} {format_seconds(best.value)} | "
                f"{best.gap:.1%} | {words(best)} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, metavar="NAME")
    parser.add_argument("--batches", nargs="*", type=int, default=[8, 64, 256, 1024])
    arguments = parser.parse_args()
    if arguments.models:
        show_mixes(arguments.models)
    if arguments.batches:
        show_training(arguments.batches)


if __name__ == "__main__":
    main()
