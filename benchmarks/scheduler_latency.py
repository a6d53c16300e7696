"""Latency: our search beside CP-SAT's optimum, and beside HEFT, PEFT, m-ETF and m-SCT.

    python -m benchmarks.scheduler_latency --data DIR [--samples N] [--time-limit S] [--only TABLE]

DIR holds `moirai/` and `dnn-partitioning/`. Random graphs: CP-SAT with 2 workers runs to its proof
or its limit, then our search for a hundredth of what that took. Captured models: predicted times
on an A100, an L40S and two T4 behind one host's PCIe links, float32.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.random_graphs import FAMILIES, random_problem
from hardware.catalog import find_link, find_profile, joined
from hardware.cluster import Cluster
from scheduler.check import check_plan
from scheduler.costs import cost_table
from scheduler.instances import read_instance
from scheduler.latency import compile_loops
from scheduler.latency_exact import exact_schedule
from scheduler.latency_search import best_start, improve_schedule, makespan_of
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.tasks import tasks_of

PEERS = ("heft", "peft", "m_etf", "m_sct")
MODELS = {
    "resnet50": "zoo:resnet50",
    "gpt2": "zoo:gpt2",
    "inception": "python:benchmarks.inception:inception",
    "mixtral-8x7b": "zoo:mixtral-8x7b",
}
DEVICES = {"a100": "A100-PCIe-80GB", "l40s": "L40S", "t4a": "T4", "t4b": "T4"}


def random_graphs(samples: int, limit_s: float) -> None:
    print("\n| family | operators | devices | HEFT | CP-SAT | proven | s | ours | s | above |")
    print("|" + "---|" * 10)
    rng, above = np.random.default_rng(1), []
    compile_loops(random_problem(rng, "layered"))
    for family in [f for f in FAMILIES for _ in range(samples)]:
        tasks = tasks_of(random_problem(rng, family))
        n, d = tasks.w.shape
        began_s = time.perf_counter()
        start = best_start(tasks)
        assert start is not None
        list_s, listed = time.perf_counter() - began_s, makespan_of(tasks, *start)
        began_s = time.perf_counter()
        at, starts, bound = exact_schedule(tasks, start[0], listed, limit_s)
        exact_s = time.perf_counter() - began_s
        exact = min(listed, makespan_of(tasks, at, np.lexsort((np.arange(n), starts))))
        began_s = time.perf_counter()
        ours = makespan_of(
            tasks, *improve_schedule(tasks, *start, began_s + exact_s / 100 - list_s)
        )
        took_s = list_s + time.perf_counter() - began_s
        above.append(ours / exact - 1)
        print(
            f"| {family} | {n} | {d} | {listed:.2f} | {exact:.2f} | {exact <= bound * (1 + 1e-4)} "
            f"| {exact_s:.2f} | {ours:.2f} | {took_s:.4f} | {above[-1]:.1%} |",
            flush=True,
        )
    print(f"\nabove CP-SAT's value: median {median(above):.1%}, at worst {max(above):.1%}")


def instances(data: Path) -> dict[str, Problem]:
    paths = sorted([*data.glob("dnn-partitioning/latency/*/*.json"), *data.glob("moirai/*.xls")])
    found = {}
    for path in paths:
        read = read_instance(path)
        found[f"{path.parent.name}/{path.stem}"] = Problem(
            read.graph,
            read.cluster,
            read.costs,
            "latency",
            memory_headroom=0.0,
            colocated=read.colocated,
            communication="serialised" if read.costs.ends else "overlapped",
        )
    return found


def captured() -> dict[str, Problem]:
    from executor.capture import capture

    devices = {name: find_profile(profile) for name, profile in DEVICES.items()}
    link = find_link("pcie-g5")
    links = tuple(joined(p, q, link) for p in devices for q in devices if p != q)
    cluster = Cluster("four GPUs", devices, links)
    found = {}
    for name, source in MODELS.items():
        graph = capture(source, 1, "float16" if "mixtral" in name else "float32")
        found[name] = Problem(graph, cluster, cost_table(graph, cluster), "latency")
    return found


def against_peers(problems: dict[str, Problem], limit_s: float) -> None:
    print(f"\n| graph | operators | {' | '.join(PEERS)} | ours | bound | gap | s | algorithm |")
    print("|" + "---|" * (7 + len(PEERS)))
    for name, problem in problems.items():
        began_s = time.perf_counter()
        solution = solve(problem, time_limit_s=limit_s)
        took_s, best = time.perf_counter() - began_s, solution.best
        values = {plan.algorithm: plan.value for plan in solution.plans}
        peers = [f"{values[p]:.5g}" if p in values else "refused" for p in PEERS]
        worse = [p for p in PEERS if values.get(p, np.inf) < best.value]
        assert not worse, name
        assert not check_plan(problem, best), name
        print(
            f"| {name} | {len(problem.graph.ops)} | {' | '.join(peers)} | {best.value:.5g} "
            f"| {best.lower_bound:.5g} | {best.gap:.1%} | {took_s:.1f} | {best.algorithm} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4, help="random graphs of each family")
    parser.add_argument("--time-limit", type=float, default=28.0, help="seconds per graph")
    parser.add_argument("--only", choices=("random", "instances", "captured"))
    args = parser.parse_args()
    if args.only in (None, "random"):
        random_graphs(args.samples, args.time_limit)
    if args.only in (None, "instances"):
        against_peers(instances(args.data), args.time_limit)
    if args.only in (None, "captured"):
        against_peers(captured(), args.time_limit)


if __name__ == "__main__":
    main()
