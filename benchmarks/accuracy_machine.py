"""Predicted against measured time of whole models on this machine, eager (issue 3, table 4).

Two predictions of each model: *operators*, the sum over its operators, each distinct one measured
alone (a round measures them and the whole model within a moment; the error is the median over
rounds, so that the machine's ups and downs cancel); and *profile*, from the calibrated profile
alone, which never saw the model's shapes, with its 90 % interval. *covered* is the share of the
model's distinct operators whose measured time lies in the interval that the profile gave.

Usage: python -m benchmarks.accuracy_machine [--quick] [--models A,B] [--batches 1,8]
       [--threads 1,2] [--recalibrate] [--json FILE]
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from executor import cache
from executor.alone import Beside, distinct_recipes, measure_beside
from executor.calibrate import calibrate_classes, keep, known_profile
from executor.capture import to_graph
from executor.devices import LocalDevice, all_cores
from executor.run import load_model, save_whole
from executor.workers import Workers
from hardware.cluster import Cluster
from hardware.profile import DeviceProfile
from scheduler.costs import cost_table

MODELS = ("cifar10-cnn", "resnet50", "vit-b-16", "bert-base", "gpt2")


@dataclass(frozen=True)
class Row:
    """One model at one batch and number of threads."""

    model: str
    batch: int
    threads: int
    whole_s: float
    operators_error: float
    profile_error: float
    in_interval: bool
    covered: float
    others_cores: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="4 s a model in place of 12")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default=f"1,{len(all_cores().cores)}")
    parser.add_argument("--recalibrate", action="store_true", help="calibrate again first")
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    rows = []
    print(f"{'model':12} {'batch':>5} {'threads':>7} {'whole':>10} {'operators':>9} {'profile':>8} "
          f"{'in 90 %':>7} {'covered':>7} {'others':>6}")  # fmt: skip
    for threads in sorted({int(t) for t in given.threads.split(",")}):
        cores = all_cores().cores[-threads:]
        device = LocalDevice("cpu", "cpu", "cpu", cores, all_cores().memory_bytes)
        profile = calibrated(device, given.recalibrate)
        for name in given.models.split(","):
            for batch in map(int, given.batches.split(",")):
                rows.append(measure(device, profile, name, batch, 4 if given.quick else 12))
                print(worded(rows[-1]), flush=True)
    print(summary(rows))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def calibrated(device: LocalDevice, fresh: bool) -> DeviceProfile:
    """The device's profile: from the cache, or measured now."""
    known = None if fresh else known_profile(device)
    if known is None:
        known, _ = calibrate_classes(device, lambda share: None)
        keep(device, known)
    return known


def measure(
    device: LocalDevice, profile: DeviceProfile, name: str, batch: int, budget_s: float
) -> Row:
    model = load_model(f"zoo:{name}", batch, "float32", 1)
    graph = to_graph(model.whole, name, batch)
    recipes, which = distinct_recipes(model.whole)
    with Workers((device,)) as workers:
        save_whole(workers, model.whole, model.batches, device.name)
        footprint = min(graph.totals()["param_bytes"], 2**27)
        found: Beside = workers.call(
            device.name, measure_beside, workers.folder, recipes, footprint, budget_s
        )
    whole_s = statistics.median(found.whole_s)
    sums = [sum(times[i] for i in which) for times in found.op_s]
    ratios = [total / whole for total, whole in zip(sums, found.whole_s, strict=True)]
    costs = cost_table(graph, Cluster("here", {"cpu": profile}))
    low, total, high = costs.sum_s("cpu")
    alone = np.median(np.array(found.op_s), axis=0)
    first = {number: row for row, number in reversed(list(enumerate(which)))}
    inside = [
        bool(costs.low_s[row, 0] <= alone[number] <= costs.high_s[row, 0])
        for number, row in first.items()
        if graph.ops[row].kind != "view"
    ]
    return Row(name, batch, len(device.cores), whole_s, statistics.median(ratios) - 1,
               total / whole_s - 1, low <= whole_s <= high, float(np.mean(inside)),
               found.others_cores)  # fmt: skip


def worded(row: Row) -> str:
    return (
        f"{row.model:12} {row.batch:5} {row.threads:7} {row.whole_s * 1e3:8.2f}ms "
        f"{row.operators_error:+9.1%} {row.profile_error:+8.1%} {row.in_interval!s:>7} "
        f"{row.covered:7.0%} {row.others_cores:6.2f}"
    )


def summary(rows: list[Row]) -> str:
    lines = []
    for key, text in (("operators_error", "operators measured"), ("profile_error", "profile")):
        errors = [abs(getattr(row, key)) for row in rows]
        lines.append(
            f"{text}: median {statistics.median(errors):.1%} (to reach 8 %), "
            f"worst {max(errors):.1%} (to reach 20 %)"
        )
    covered = sum(row.in_interval for row in rows) / len(rows)
    lines.append(f"whole models in the profile's 90 % interval: {covered:.0%}")
    lines.append(f"measured {cache.now()}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
