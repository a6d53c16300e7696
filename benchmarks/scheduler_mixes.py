"""Placement on real hardware mixes: our plans beside the algorithms that others use.

    python -m benchmarks.scheduler_mixes [--time-limit S] [--models NAME...]

Ten zoo models (batch 1, 128 tokens or 224 x 224 pixels) on five mixes of the catalog's devices, for
latency, throughput and cost. Each cell is our value / theirs: 1 is as good, below 1 better. Rivals
run alone, each by its own algorithm. Times are the cost model's; float32, bfloat16 where TPUs take
nothing else.
"""

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import numpy as np

from executor.capture import capture
from hardware.catalog import find_link, find_profile, instance_cluster, joined, load_prices
from hardware.cluster import Cluster, Link
from hardware.errors import InfeasibleError
from hardware.instances import Instance
from hardware.profile import Provenance
from scheduler.check import check_plan
from scheduler.coarsen import at_grain
from scheduler.contiguous import split_order
from scheduler.contract import contract
from scheduler.costs import cost_table
from scheduler.evaluate import finish_plan
from scheduler.graph import Graph
from scheduler.grouping import Grain
from scheduler.heft import heft
from scheduler.portfolio import solve
from scheduler.precision import Precision, with_precision
from scheduler.problem import Objective, Placement, Problem
from scheduler.single_device import memory_fill, single_device

MODELS = (
    *("resnet50", "mobilenet-v3", "unet", "vit-b-16", "bert-base"),
    *("gpt2", "llama-3-8b", "mixtral-8x7b", "whisper-small", "dlrm"),
)
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "cost")
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


def graphs_of(model: str) -> dict[str, Graph]:
    """A model by dtype, captured once in float32: bfloat16 halves weights and activations."""
    graph = capture(f"zoo:{model}", 1, "float32")
    half = with_precision(graph, Precision("bfloat16", "bfloat16"))
    grain: Grain = "chains" if len(graph.ops) > MOST_OPS else "operators"
    return {"float32": at_grain(graph, grain), "bfloat16": at_grain(half, grain)}


def pipedream(problem: Problem) -> Placement:
    """The interval dynamic programme over the order as given, and over no other."""
    arrays = contract(problem.arrays, problem.arrays.unit)
    device = split_order(arrays, np.arange(arrays.num_ops))[problem.arrays.unit]
    names = problem.costs.devices
    return {op.name: names[d] for op, d in zip(problem.graph.ops, device, strict=True)}


RIVALS: dict[str, Callable[[Problem], Placement]] = {
    "greedy fill": memory_fill,
    "PipeDream DP": pipedream,
    "HEFT": heft,
}
TITLES = (*RIVALS, "best device")
NONE = "none fits"


def value_of(problem: Problem, place: Callable[[Problem], Placement]) -> float:
    """Value of an algorithm's plan; infinite where it has none that fits."""
    try:
        return finish_plan(problem, "rival", place(problem), 0.0, 0.0).value
    except InfeasibleError:
        return math.inf


def rivals(problem: Problem) -> dict[str, float]:
    """Value of each rival's plan."""
    values = {title: value_of(problem, place) for title, place in RIVALS.items()}
    alone = (partial(single_device, device=device) for device in problem.costs.devices)
    return {**values, "best device": min(value_of(problem, place) for place in alone)}


@dataclass(frozen=True)
class Row:
    """One line of the table: what it shows, and our value / each rival's that has a plan."""

    mix: str
    model: str
    objective: str
    cells: list[str]
    ratios: dict[str, float]

    @property
    def text(self) -> str:
        """The line, with the rivals that fit nowhere named so."""
        ratios = [f"{self.ratios[t]:.3f}" if t in self.ratios else "no fit" for t in TITLES]
        return line([self.mix, self.model, self.objective, *self.cells, *ratios])


def row(problem: Problem, model: str, limit_s: float) -> Row:
    """Our plan for a problem beside the rivals'."""
    mix, objective = problem.cluster.name, problem.objective
    values = rivals(problem)
    try:
        best = solve(problem, time_limit_s=limit_s).best
    except InfeasibleError:
        found = [title for title, value in values.items() if math.isfinite(value)]
        assert not found, f"{mix}, {model}, {objective}: no plan of ours, but of {found}"
        return Row(mix, model, objective, [NONE, "", "", ""], {})
    broken = check_plan(problem, best)
    assert not broken, broken
    unit = "USD/1M" if objective == "cost" else "ms"
    cells = [f"{best.value * 1e3:.4g} {unit}", f"{best.gap:.0%}", best.algorithm]
    cells.append(f"{len(best.devices)} of {len(problem.cluster.devices)}")
    ratios = {t: best.value / value for t, value in values.items() if math.isfinite(value)}
    return Row(mix, model, objective, cells, ratios)


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def summary(rows: list[Row]) -> str:
    """Median, best and worst ratio by mix and objective, and the worst of all."""
    columns = ["mix", "objective", "plans", *TITLES]
    lines = [line(columns), "|---" * len(columns) + "|"]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for found in rows:
        groups[found.mix, found.objective].append(found)
    for (mix, objective), group in groups.items():
        cells = [mix, objective, str(sum(found.cells[0] != NONE for found in group))]
        for title in TITLES:
            known = [found.ratios[title] for found in group if title in found.ratios]
            spread = (f(known) for f in (statistics.median, min, max)) if known else ()
            cells.append(" / ".join(f"{ratio:.3f}" for ratio in spread) or "no fit")
        lines.append(line(cells))
    ratios = [(r, t, f) for f in rows for t, r in f.ratios.items()]
    ratio, title, worst = max(ratios, key=lambda found: found[0])
    worse = sum(r > 1 + 1e-9 for r, _, _ in ratios)
    lines += ["", f"{len(ratios)} ratios, {worse} above 1; the largest is {ratio:.6f} "
              f"({worst.model} on {worst.mix}, {worst.objective}, beside {title})."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds per plan")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME")
    arguments = parser.parse_args()
    columns = ["mix", "model", "objective", "ours", "gap", "by", "devices", *TITLES]
    print(line(columns) + "\n" + "|---" * len(columns) + "|")
    rows = []
    for model in arguments.models:
        graphs = graphs_of(model)
        for cluster, usd_per_hour, dtype in mixes():
            costs = cost_table(graphs[dtype], cluster)
            stated = Problem(graphs[dtype], cluster, costs, usd_per_hour=usd_per_hour)
            for objective in OBJECTIVES:
                problem = replace(stated, objective=objective)
                rows.append(row(problem, model, arguments.time_limit))
                print(rows[-1].text, flush=True)
    print("\n" + summary(rows))


if __name__ == "__main__":
    main()
