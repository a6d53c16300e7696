"""Placement on real hardware mixes: our plans beside the algorithms that others use.

    python -m benchmarks.scheduler_mixes [--time-limit S] [--models NAME...]

Ten zoo models (batch 1, 128 tokens or 224 x 224 pixels) on five mixes of the catalog's devices, for
latency, throughput and cost. Each cell is our value / theirs: 1 is as good, below 1 better. Times
are the cost model's; float32, bfloat16 where TPUs take nothing else.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations

from executor.capture import capture
from hardware.catalog import find_link, find_profile, instance_cluster, joined, load_prices
from hardware.cluster import Cluster, Link
from hardware.errors import InfeasibleError
from hardware.instances import Instance
from hardware.profile import Provenance
from scheduler.check import check_plan
from scheduler.coarsen import at_grain
from scheduler.costs import cost_table
from scheduler.graph import Graph
from scheduler.plan import Plan
from scheduler.portfolio import ALGORITHMS, Solution, solve
from scheduler.problem import Objective, Problem

MODELS = (
    *("resnet50", "mobilenet-v3", "unet", "vit-b-16", "bert-base"),
    *("gpt2", "llama-3-8b", "mixtral-8x7b", "whisper-small", "dlrm"),
)
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "cost")
OTHERS = {"greedy fill": "memory_fill", "PipeDream DP": "contiguous", "HEFT": "heft"}
MOST_OPS = 1000
"""Operators above which chains of them are placed as one."""
GIB = 2**30
SHARED_MEMORY = Provenance("measured", "ring in shared memory between two pinned processes")


def through_host(name: str, accelerators: list[str], host: Instance, link: str) -> Cluster:
    """Accelerators behind PCIe, whose exchange passes the host and shares its bandwidth."""
    cpu = instance_cluster(replace(host, accelerator=None, num_accelerators=0))
    devices = {f"gpu{i}": find_profile(known) for i, known in enumerate(accelerators)}
    laid = find_link(link)
    links = [joined(a, b, laid, "host PCIe") for a, b in permutations(devices, 2)]
    links += [joined(*ends, laid) for a in devices for ends in ((a, "cpu0"), ("cpu0", a))]
    return Cluster(name, {**devices, **cpu.devices}, tuple(links))


def slices() -> Cluster:
    """One core and three cores of one CPU, which exchange tensors through its memory."""
    devices = {}
    for device, cores in (("cpu0", 1), ("cpu1", 3)):
        part = Instance(device, "EPYC-7R13-core", cores, cores * 8 * GIB)
        devices[device] = instance_cluster(part).devices["cpu0"]
    links = (Link(a, b, 8e9, 2e-5, SHARED_MEMORY) for a, b in permutations(devices, 2))
    return Cluster("1-core and 3-core slices", devices, tuple(links))


def price(*instances: str) -> float:
    """USD per hour on demand of instances with these devices."""
    return sum(load_prices().find(name, "on_demand").usd_per_hour for name in instances)


def mixes() -> list[tuple[Cluster, float, str]]:
    """Cluster, USD per hour of what such devices rent for, and the dtype that all of it has."""
    t4_host = Instance("", "Cascade-Lake-core", 24, 192 * GIB)
    l4_host = Instance("", "EPYC-7R13-core", 24, 192 * GIB)
    h100 = Instance(
        "8 H100 (NVLink) + 32 cores", "Xeon-8481C-core", 32, 512 * GIB, "H100-SXM5-80GB", 8,
        "pcie-a3", peer_link="nvlink4",
    )  # fmt: skip
    v5e = Instance(
        "4 TPU v5e + host", "EPYC-7R13-core", 56, 192 * GIB, "TPU-v5e", 4, "pcie-tpu",
        peer_link="ici-v5e",
    )  # fmt: skip
    a100_t4 = through_host("A100 + 4 T4 + CPU", ["A100-PCIe-80GB", *["T4"] * 4], t4_host, "pcie-g5")
    l4_l40s = through_host("2 L4 + 2 L40S (PCIe)", ["L4"] * 2 + ["L40S"] * 2, l4_host, "pcie-g5")
    return [
        (a100_t4, price("azure/Standard_NC24ads_A100_v4", "aws/g4dn.12xlarge"), "float32"),
        (l4_l40s, price("gcp/g2-standard-24", "aws/g6e.xlarge", "aws/g6e.xlarge"), "float32"),
        (instance_cluster(h100), price("aws/p5.48xlarge"), "float32"),
        (instance_cluster(v5e), price("gcp/ct5lp-hightpu-4t"), "bfloat16"),
        (slices(), price("aws/c6a.xlarge") * 2, "float32"),
    ]


@cache
def graph_of(model: str, dtype: str) -> Graph:
    graph = capture(f"zoo:{model}", 1, dtype)
    return at_grain(graph, "chains" if len(graph.ops) > MOST_OPS else "operators")


def plan_of(solution: Solution, wanted: Callable[[str], bool]) -> Plan | None:
    """The best of a solution's plans by algorithms with a wanted name."""
    return next((plan for plan in solution.plans if wanted(plan.algorithm)), None)


def rivals(problem: Problem, solution: Solution) -> dict[str, float]:
    """Value of each rival's plan; infinite where it has none that fits."""
    values = {}
    for title, name in OTHERS.items():
        plan = plan_of(solution, lambda algorithm, name=name: algorithm == name)
        if plan is None and name not in solution.refusals and name in ALGORITHMS:
            try:
                plan = solve(problem, name).best
            except InfeasibleError:
                plan = None
        values[title] = plan.value if plan else math.inf
    single = plan_of(solution, lambda algorithm: algorithm.startswith("single_device"))
    return {**values, "best device": single.value if single else math.inf}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=1.0, help="seconds per plan")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME")
    arguments = parser.parse_args()
    titles = [*OTHERS, "best device"]
    columns = ["mix", "model", "ops", "objective", "ours", "gap", "by", "devices", *titles]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    ratios: dict[str, list[float]] = {title: [] for title in titles}
    for cluster, usd_per_hour, dtype in mixes():
        for model in arguments.models:
            graph = graph_of(model, dtype)
            costs = cost_table(graph, cluster)
            for objective in OBJECTIVES:
                problem = Problem(graph, cluster, costs, objective, usd_per_hour=usd_per_hour)
                print(row(problem, model, arguments.time_limit, ratios), flush=True)
    print("\n| against | cells | median | best | worst |\n|---|---|---|---|---|")
    for title, found in ratios.items():
        if found:
            cells = [len(found), *(f(found) for f in (statistics.median, min, max))]
            print(f"| {title} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")


def row(problem: Problem, model: str, limit_s: float, ratios: dict[str, list[float]]) -> str:
    """One line of the table; ratios to plans that exist are added to `ratios`."""
    cells = [problem.cluster.name, model, str(len(problem.graph.ops)), problem.objective]
    try:
        solution = solve(problem, time_limit_s=limit_s)
    except InfeasibleError:
        return "| " + " | ".join([*cells, "does not fit"]) + " |" * 8
    best = solution.best
    broken = check_plan(problem, best)
    assert not broken, broken
    unit = {"latency": (1e3, "ms"), "throughput": (1e3, "ms"), "cost": (1e3, "USD/1M")}
    scale, name = unit[problem.objective]
    cells += [f"{best.value * scale:.4g} {name}", f"{best.gap:.0%}", best.algorithm]
    cells.append(f"{len(best.devices)} of {len(problem.cluster.devices)}")
    for title, value in rivals(problem, solution).items():
        ratio = best.value / value
        if math.isfinite(value):
            ratios[title].append(ratio)
        cells.append(f"{ratio:.3f}" if math.isfinite(value) else "no fit")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
