"""Time, memory and gap of `algorithm: auto` against the size of the graph, and with time to search.

    python -m benchmarks.scheduler_scale [--capture] [--plot FILE.svg]

Decoders of some depth with their training step, on 64 accelerators of two kinds, and the two sizes
that are promised: 21,000 operators on 16 devices in 20 s, 100,000 on 64 in 60 s and 4 GiB.
`latency` is one step. `throughput` pipelines forward and backward of many micro-batches, as in
PipeDream and in the published instances. Times run from the graph to the checked plan: cost table,
problem, bounds, search, stages, memory. Compiled code is warm: a small graph goes before. The slope
is that of the heuristics (`--time-limit 0`); the promised sizes are planned with a time limit, too.
"""

import argparse
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.deep_decoder import cluster_of, decoder
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.ir.graph import Graph, sharing_weights
from scheduler.portfolio import solve
from scheduler.problem import Objective, Problem

OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency")
LAYERS = (10, 31, 102, 214, 510, 1021)
"""A layer has 98 operators with its backward pass and optimizer."""
SMALLER_S, LARGER_S = 20.0, 60.0
"""Time limits of the two promised sizes."""


@dataclass(frozen=True)
class Row:
    """One plan: how long it took to find and how good it is."""

    graph: str
    num_ops: int
    num_devices: int
    objective: str
    limit_s: float
    seconds: float
    processor_s: float
    value_s: float
    gap: float
    algorithm: str
    num_stages: int
    peak_gib: float
    check_s: float
    broken: int


def measure(graph: Graph, num_devices: int, objective: Objective, limit_s: float = 0.0) -> Row:
    """Plan a training graph with `auto` within a time limit, and check the plan."""
    colocated = sharing_weights(graph)
    if objective == "throughput":
        graph = replace(graph, mode="inference")
    cluster = cluster_of(num_devices)
    began_s, processor_s = time.perf_counter(), time.process_time()
    costs = cost_table(graph, cluster)
    problem = Problem(graph, cluster, costs, objective, colocated=colocated)
    plan = solve(problem, time_limit_s=limit_s).best
    took_s = time.perf_counter() - began_s
    processor_s = time.process_time() - processor_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began_s = time.perf_counter()
    broken = check_plan(problem, plan)
    check_s = time.perf_counter() - began_s
    return Row(
        graph.name, len(graph.ops), num_devices, objective, limit_s, took_s, processor_s,
        plan.value, plan.gap, plan.algorithm, len(plan.stages), peak, check_s, len(broken),
    )  # fmt: skip


def show(row: Row) -> None:
    """Print a row of the table."""
    print(
        f"| {row.graph} | {row.num_ops:,} | {row.num_devices} | {row.objective} "
        f"| {row.limit_s:.0f} | {row.seconds:.1f} | {row.processor_s:.1f} | {row.peak_gib:.2f} "
        f"| {row.value_s * 1e3:.2f} | {row.gap:.1%} | {row.algorithm} | {row.num_stages:,} "
        f"| {row.check_s:.1f} | {row.broken} |",
        flush=True,
    )


def slope(rows: list[Row]) -> float:
    """Exponent of the least-squares line of log(seconds) over log(operators)."""
    x, y = (np.log([getattr(row, name) for row in rows]) for name in ("num_ops", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def draw(rows: list[Row], path: Path) -> None:
    """Time against size, both axes logarithmic."""
    import altair as alt
    import pandas as pd  # type: ignore[import-untyped]

    frame = pd.DataFrame(
        {"operators": r.num_ops, "seconds": r.seconds, "objective": r.objective} for r in rows
    )
    sizes = alt.Scale(type="log", domain=[frame["operators"].min() * 0.8, 130_000])
    x = alt.X("operators", scale=sizes, axis=alt.Axis(format="~s"))
    y = alt.Y("seconds", scale=alt.Scale(type="log"), title="seconds to the plan")
    lines = alt.Chart(frame).mark_line(point=True).encode(x, y, alt.Color("objective"))
    title = f"auto on 64 devices ({', '.join(_slopes(rows))})"
    lines.properties(title=title, width=420, height=280).save(str(path))


def _slopes(rows: list[Row]) -> list[str]:
    return [
        f"{o}: slope {slope([row for row in rows if row.objective == o]):.2f}" for o in OBJECTIVES
    ]


def captured_llama() -> Graph:
    """The training step of Llama-3-70B as captured."""
    from ui.model_spec import ModelSpec
    from ui.source import captured

    graph = captured(ModelSpec("zoo:llama-3-70b", 1, "bfloat16", mode="training"))
    assert isinstance(graph, Graph)
    return graph


def main() -> None:
    """Print the table and the slopes; draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capture", action="store_true", help="also plan zoo:llama-3-70b")
    parser.add_argument("--plot", type=Path, help="write the log-log plot here (SVG or PNG)")
    args = parser.parse_args()
    for objective in OBJECTIVES:
        measure(decoder(40, True), 16, objective, 0.01)
    print("| graph | operators | devices | objective | limit s | s | processor s | peak GiB "
          "| value ms | gap | algorithm | stages | check s | broken rules |")  # fmt: skip
    print("|---" * 14 + "|")
    graphs = [captured_llama()] if args.capture else []
    for graph in [*graphs, decoder(214, True)]:
        for objective in OBJECTIVES:
            for limit_s in (0.0, SMALLER_S):
                show(measure(graph, 16, objective, limit_s))
    rows = []
    for num_layers in LAYERS:
        graph = decoder(num_layers, True)
        for objective in OBJECTIVES:
            rows.append(measure(graph, 64, objective))
            show(rows[-1])
    for objective in OBJECTIVES:
        show(measure(graph, 64, objective, LARGER_S))
    print("log-log fit, time over operators: " + "; ".join(_slopes(rows)))
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
