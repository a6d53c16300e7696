"""Predicted against measured time of whole models on this machine.

Measured is the plain nn.Module's forward, *eager*; *exported* is the same model as the exported
module that plans run. Two predictions: *operators*, the sum over its operators, each distinct one
measured alone (a round measures them and the whole model within a moment; the error is the median
over rounds, so that the machine's ups and downs cancel); and *profile*, from the calibrated
profile alone, which never saw the model's shapes, with its 90 % interval. *covered* is the share
of the model's distinct operators whose measured time lies in the interval that the profile gave.

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
from executor.alone import Beside, Subject, distinct_recipes, measure_beside
from executor.calibrate import calibrate_classes, keep, known_profile
from executor.capture import to_graph
from executor.devices import LocalDevice, all_cores
from executor.loaded import load_model
from executor.whole import save_whole
from executor.workers import Workers
from hardware.cluster import Cluster
from hardware.profile import DeviceProfile
from scheduler.cost_model.costs import cost_table

MODELS = ("cifar10-cnn", "resnet50", "vit-b-16", "bert-base", "gpt2")


@dataclass(frozen=True)
class Row:
    """One model at one batch and number of threads; errors are against `eager_s`."""

    model: str
    batch: int
    threads: int
    eager_s: float
    exported_s: float
    operators_error: float
    operators_error_exported: float
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
    print(f"{'model':12} {'batch':>5} {'threads':>7} {'eager':>10} {'exported':>10} "
          f"{'operators':>9} {'profile':>8} {'in 90 %':>7} {'covered':>7} "
          f"{'others':>6}")  # fmt: skip
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
        subject = Subject(f"zoo:{name}", batch, workers.folder, footprint)
        found: Beside = workers.call(device.name, measure_beside, subject, recipes, budget_s)
    eager_s = statistics.median(found.eager_s)
    sums = [sum(times[i] for i in which) for times in found.op_s]
    costs = cost_table(graph, Cluster("here", {"cpu": profile}))
    low, total, high = costs.sum_s("cpu")
    alone = np.median(np.array(found.op_s), axis=0)
    first = {number: row for row, number in reversed(list(enumerate(which)))}
    inside = [
        bool(costs.low_s[row, 0] <= alone[number] <= costs.high_s[row, 0])
        for number, row in first.items()
        if graph.ops[row].kind != "view"
    ]
    return Row(name, batch, len(device.cores), eager_s, statistics.median(found.whole_s),
               _error(sums, found.eager_s), _error(sums, found.whole_s), total / eager_s - 1,
               low <= eager_s <= high, float(np.mean(inside)), found.others_cores)  # fmt: skip


def _error(sums: list[float], whole_s: list[float]) -> float:
    """Median over rounds of predicted over measured, less one."""
    return statistics.median(x / y for x, y in zip(sums, whole_s, strict=True)) - 1


def worded(row: Row) -> str:
    return (
        f"{row.model:12} {row.batch:5} {row.threads:7} {row.eager_s * 1e3:8.2f}ms "
        f"{row.exported_s * 1e3:8.2f}ms {row.operators_error:+9.1%} {row.profile_error:+8.1%} "
        f"{row.in_interval!s:>7} {row.covered:7.0%} {row.others_cores:6.2f}"
    )


def summary(rows: list[Row]) -> str:
    lines = ["asked, of the sum over operators against the whole model, eager: "
             "median error at most 8 %, worst at most 20 %"]  # fmt: skip
    for key, text in (
        ("operators_error", "operators measured alone, against eager"),
        ("operators_error_exported", "operators measured alone, against exported"),
        ("profile_error", "calibrated profile alone, against eager"),
    ):
        errors = [abs(getattr(row, key)) for row in rows]
        lines.append(
            f"{text}: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}"
        )
    covered = sum(row.in_interval for row in rows) / len(rows)
    lines.append(f"whole models in the profile's 90 % interval: {covered:.0%}")
    lines.append(f"measured {cache.now()}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
