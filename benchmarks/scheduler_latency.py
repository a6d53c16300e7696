"""Latency: our search beside CP-SAT's optimum, and beside HEFT, PEFT, m-ETF and m-SCT.

    python -m benchmarks.scheduler_latency --data DIR [--samples N] [--time-limit S] [--only TABLE]

DIR holds `moirai/` and `dnn-partitioning/`. Random graphs: CP-SAT with 2 workers runs to its proof
or its limit, then our search for a hundredth of what that took. Captured models: predicted times
on an A100, an L40S and two T4 behind one host's PCIe links, float32.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.random_graphs import FAMILIES, random_problem
from hardware.catalog import find_link, find_profile, joined
from hardware.cluster import Cluster
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.ir.instances import read_instance
from scheduler.latency.exact import exact_schedule
from scheduler.latency.makespan import makespan_of
from scheduler.latency.portfolio import compile_loops
from scheduler.latency.search import best_start, improve_schedule
from scheduler.list_scheduling.tasks import tasks_of
from scheduler.portfolio import solve
from scheduler.problem import Problem

SHARE = 0.01
"""Of CP-SAT's time, for our search."""
MARGIN_S = 0.0001
"""What a search that ends at its deadline still takes."""
LONG_S = 0.5
"""A hundredth of less is too short for Python to call much."""
PEERS = ("heft", "peft", "m_etf", "m_sct")
MODELS = {
    "resnet50": "zoo:resnet50",
    "gpt2": "zoo:gpt2",
    "inception": "python:benchmarks.inception:inception",
    "mixtral-8x7b": "zoo:mixtral-8x7b",
}
DEVICES = {"a100": "A100-PCIe-80GB", "l40s": "L40S", "t4a": "T4", "t4b": "T4"}


@dataclass(frozen=True)
class Row:
    """A random graph: CP-SAT's value, whether it is proven, and ours, with what each took (s).

    A proven value is CP-SAT's own, whose media carry tensors in any order; one that is not is that
    of CP-SAT's plan with the media's queues.
    """

    family: str
    num_ops: int
    num_devices: int
    listed: float
    exact: float
    is_proven: bool
    exact_s: float
    ours: float
    ours_s: float

    @property
    def above(self) -> float:
        """Our value over CP-SAT's, less 1."""
        return self.ours / self.exact - 1

    @property
    def share(self) -> float:
        """Our time over CP-SAT's."""
        return self.ours_s / self.exact_s


def random_graph(rng: np.random.Generator, family: str, limit_s: float) -> Row:
    """CP-SAT to its proof or limit, then our search for a hundredth of the time that took."""
    tasks = tasks_of(random_problem(rng, family))
    n, d = tasks.w.shape
    start = best_start(tasks)
    assert start is not None
    listed = makespan_of(tasks, *start)
    began_s = time.perf_counter()
    at, starts, bound = exact_schedule(tasks, start[0], listed, limit_s)
    exact_s = time.perf_counter() - began_s
    is_proven = exact_s < limit_s
    shown = min(listed, makespan_of(tasks, at, np.lexsort((np.arange(n), starts))))
    exact = bound if is_proven else shown
    began_s = time.perf_counter()
    start = best_start(tasks)
    assert start is not None
    device, order = improve_schedule(tasks, *start, began_s + SHARE * exact_s - MARGIN_S)
    ours_s = time.perf_counter() - began_s
    ours = makespan_of(tasks, device, order)
    return Row(family, n, d, listed, exact, is_proven, exact_s, ours, ours_s)


def random_graphs(families: list[str], samples: int, limit_s: float) -> None:
    print("\n| family | ops | devices | best list | CP-SAT | proven | s | ours | ms | above |")
    print("|" + "---|" * 10)
    compile_loops(random_problem(np.random.default_rng(0), "layered"))
    rows = []
    for family in families:
        rng = np.random.default_rng([1, list(FAMILIES).index(family)])
        for _ in range(samples):
            row = random_graph(rng, family, limit_s)
            rows.append(row)
            print(
                f"| {family} | {row.num_ops} | {row.num_devices} | {row.listed:.2f} "
                f"| {row.exact:.2f} | {'yes' if row.is_proven else 'no'} | {row.exact_s:.2f} "
                f"| {row.ours:.2f} | {row.ours_s * 1e3:.1f} | {row.above:.1%} |",
                flush=True,
            )
    long = [row for row in rows if row.exact_s >= LONG_S]
    summary("all", rows)
    summary(f"CP-SAT took {LONG_S} s or more", long)
    summary(f"CP-SAT took less than {LONG_S} s", [row for row in rows if row not in long])


def summary(name: str, rows: list[Row]) -> None:
    """One line on a group of graphs."""
    if rows:
        above = [row.above for row in rows]
        in_time = sum(row.share <= SHARE * (1 + 1e-9) for row in rows)
        print(
            f"\n{name}: {len(rows)} graphs, {sum(row.is_proven for row in rows)} proven; above "
            f"CP-SAT's value: median {median(above):.1%}, at worst {max(above):.1%}; within a "
            f"hundredth of its time on {in_time}, median share {median(r.share for r in rows):.2%}"
        )


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
    parser.add_argument("--samples", type=int, default=10, help="random graphs of each family")
    parser.add_argument("--time-limit", type=float, default=28.0, help="seconds per graph")
    tables = ("random", "instances", "captured", *FAMILIES)
    parser.add_argument("--only", choices=tables, help="one table, or one family of random graphs")
    args = parser.parse_args()
    families = [f for f in FAMILIES if args.only in (None, "random", f)]
    if families:
        random_graphs(families, args.samples, args.time_limit)
    if args.only in (None, "instances"):
        against_peers(instances(args.data), args.time_limit)
    if args.only in (None, "captured"):
        against_peers(captured(), args.time_limit)


if __name__ == "__main__":
    main()
