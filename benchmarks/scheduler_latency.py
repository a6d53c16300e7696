"""Latency: annealing against CP-SAT on random graphs, and the Moirai instances.

    python benchmarks/scheduler_latency.py --data DIR [--samples N] [--seconds S]

DIR holds `moirai/`. Makespans in the unit of the files; transfers contend for links.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hardware.cluster import Cluster
from hardware.profile import DeviceProfile, Provenance
from scheduler.bounds import lower_bound
from scheduler.costs import CostTable
from scheduler.evaluate import finish_plan
from scheduler.graph import Graph, Op, Tensor
from scheduler.instances import read_instance
from scheduler.latency_exact import exact_schedule
from scheduler.latency_search import latency_search
from scheduler.portfolio import ALGORITHMS
from scheduler.problem import Placement, Problem
from scheduler.tasks import placement_of, tasks_of

SAID = Provenance("literal", "random")


def layered(rng: np.random.Generator, num_ops: int, num_devices: int) -> Problem:
    """A random layered graph on unequal devices, transfers as long as operators on average."""
    width = int(rng.integers(2, 6))
    ops = []
    for i in range(num_ops):
        above = range(max(0, (i // width - 1) * width), i // width * width)
        inputs = [f"t{j}" for j in above if rng.random() < 0.5] or ["x"]
        made = (Tensor(f"t{i}", (1,), "float32"),)
        ops.append(Op(f"o{i}", "other", 1.0, 0.0, 0.0, "float32", tuple(inputs), made))
    read = {t for op in ops for t in op.inputs}
    outputs = tuple(f"t{i}" for i in range(num_ops) if f"t{i}" not in read)
    graph = Graph("random", tuple(ops), (Tensor("x", (1,), "float32"),), outputs)
    names = [f"d{p}" for p in range(num_devices)]
    devices = {n: DeviceProfile(n, "gpu", {}, 10**9, 0.0, SAID) for n in names}
    seconds = rng.uniform(1, 10, (num_ops, 1)) * rng.uniform(0.5, 2, num_devices)
    seconds *= rng.uniform(0.7, 1.3, seconds.shape)
    moves = {t: rng.uniform(0, 8) * (1 - np.eye(num_devices)) for t in sorted(read - {"x"})}
    costs = CostTable(tuple(names), seconds, dict.fromkeys(names, SAID), transfers=moves)
    return Problem(graph, Cluster("random", devices), costs, objective="latency")


def compare(samples: int, limit_s: float) -> None:
    rng = np.random.default_rng(1)
    print("ops devices   heft   search (s)    CP-SAT (s)    its bound  search above CP-SAT's")
    latency_search(layered(rng, 10, 2), time.perf_counter() + 60)
    for _ in range(samples):
        problem = layered(rng, int(rng.integers(10, 31)), int(rng.integers(2, 5)))

        def value(placed: Placement, problem: Problem = problem) -> float:
            return finish_plan(problem, "any", placed, 0.0, 0.0).value

        began_s = time.perf_counter()
        placed = latency_search(problem, began_s + limit_s)
        took_s, found = time.perf_counter() - began_s, value(placed)
        device = np.array([problem.device_index[placed[n]] for n in problem.graph.by_name])
        began_s = time.perf_counter()
        at, start, bound = exact_schedule(tasks_of(problem), device, found, limit_s)
        solver_s, exact = time.perf_counter() - began_s, value(placement_of(problem, at, start))
        best = min(exact, found)
        print(
            f"{len(device):3d} {len(problem.costs.devices):7d} "
            f"{value(ALGORITHMS['heft'](problem)):6.2f} {found:8.2f} ({took_s:.2f}) "
            f"{exact:8.2f} ({solver_s:.2f}) {bound:10.2f} {found / best - 1:18.1%}"
        )


def moirai(folder: Path, limit_s: float) -> None:
    rows: dict[str, Callable[[Problem], Placement]] = {
        name: ALGORITHMS[name] for name in ("heft", "cpop", "peft", "m_etf")
    }
    rows["search"] = lambda problem: latency_search(problem, time.perf_counter() + limit_s)
    for path in sorted(folder.glob("*.xls")):
        read = read_instance(path)
        problem = Problem(read.graph, read.cluster, read.costs, "latency", memory_headroom=0.0)
        problem = replace(problem, colocated=read.colocated)
        bound = lower_bound(problem)
        for name, place in rows.items():
            began_s = time.perf_counter()
            plan = finish_plan(problem, name, place(problem), began_s, bound)
            print(
                f"{path.stem:12s} {name:8s} {plan.value:9.4f}  bound {bound:.4f}  "
                f"gap {plan.gap:.1%}  {plan.solve_s:.1f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=25.0)
    args = parser.parse_args()
    compare(args.samples, min(10.0, args.seconds))
    moirai(args.data / "moirai", args.seconds)


if __name__ == "__main__":
    main()
