"""Throughput of published placement instances: our plans and bounds beside published figures.

The instances are those of github.com/msr-fiddle/dnn-partitioning (Tarnawski et al., NeurIPS 2020),
folder `throughput`. "Best known" is by CP-SAT with 4 workers in 240 s, "contiguous" by the authors'
exact dynamic programme in C++ (inceptionv3: their linearised one).
"""

import argparse
import time
from pathlib import Path

from scheduler.evaluation.check import check_plan
from scheduler.ir.instances import read_instance
from scheduler.portfolio import solve
from scheduler.problem import Problem

PUBLISHED = {
    # name: PipeDream, Scotch, contiguous, best known
    "LayerGraphs/bert24_inference": (17.7899, 18.0259, 17.7899, 17.7147),
    "LayerGraphs/bert24_training": (187.914, 42.0078, 41.7458, 39.7895),
    "LayerGraphs/gnmt_inference": (33.0311, 34.9241, 32.9107, 31.6873),
    "LayerGraphs/resnet50_inference": (39.3981, 34.3088, 33.7747, 33.2747),
    "LayerGraphs/inceptionv3_inference": (60.417, 52.2937, 51.5519, 51.2371),
    "OperatorGraphs/bert_l-3_inference": (37.4557, 35.9352, 27.9186, 21.9084),
    "OperatorGraphs/bert_l-3_training": (122.987, 403.773, 65.3031, 54.2074),
    "OperatorGraphs/bert_l-6_inference": (65.5647, 58.0815, 29.5795, 28.3322),
    "OperatorGraphs/resnet50_inference": (129.155, 197.848, 124.349, 124.3488),
    "OperatorGraphs/resnet50_training": (684.891, 416.252, 255.194, 255.1944),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder dnn-partitioning")
    parser.add_argument("--time-limit", type=float, default=8.0, help="seconds per instance")
    arguments = parser.parse_args()
    folder = arguments.data / "throughput"
    known = [folder / f"{name}.json" for name in PUBLISHED]
    others = sorted(set(folder.glob("*/*.json")) - set(known))
    print(
        "| instance | operators | PipeDream | Scotch | contiguous | best known | ours "
        "| ours / best known | bound | gap | s | algorithm |\n" + "|---" * 12 + "|"
    )
    paths = [*filter(Path.is_file, known), *others]
    row(paths[0], "", 0.01)  # compiles the loops; their cache is on disk from then on
    for path in paths:
        print(
            row(path, str(path.relative_to(folder).with_suffix("")), arguments.time_limit),
            flush=True,
        )


def row(path: Path, name: str, time_limit_s: float) -> str:
    began_s = time.perf_counter()
    found = read_instance(path)
    problem = Problem(
        found.graph,
        found.cluster,
        found.costs,
        memory_headroom=0.0,
        colocated=found.colocated,
        communication="serialised",
    )
    plan = solve(problem, time_limit_s=time_limit_s).best
    seconds = time.perf_counter() - began_s
    broken = check_plan(problem, plan)
    assert not broken, broken
    published = PUBLISHED.get(name, ())
    ratio = f"{plan.value / published[3]:.4f}" if published else ""
    cells = [name, len(found.graph.ops), *(published or [""] * 4), f"{plan.value:.4f}", ratio]
    cells += [f"{plan.lower_bound:.4f}", f"{plan.gap:.2%}", f"{seconds:.1f}", plan.algorithm]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
