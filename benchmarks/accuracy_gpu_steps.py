"""Accuracy of predicted transformer steps on GPUs, float32, against NeuSight's measurements.

Whole steps: inference and training (forward and backward), compiled ones (`fusion`), on four GPUs
(`dp4`, `tp4`, `pp4_1`), and a mixture of experts. Every device is predicted by parameters that
never saw it: those of all other devices of the set, or for a device that was not fitted on at all
the shipped ones (`hardware/data/fitted/gpu-float32.yaml`). Operators are predicted from shapes.

The set: https://github.com/sitar-lab/NeuSight (MIT), scripts/asplos/results/prediction: folders
named by device that hold MODEL-inf|train-SEQUENCE-BATCH[-OPTION].csv and .json.

Usage: python -m benchmarks.accuracy_gpu_steps --data DIR [--fit DIR] [--rows] [--json] [--write]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_fit import OpError, op_errors, operator_table, shipped, write
from benchmarks.gpu_float32 import PRIORS, kind_of, runs_of, step_parts
from benchmarks.neusight_trace import Step, read_steps
from hardware.catalog import find_profile
from hardware.fitted import load_fitted
from hardware.profile import DeviceProfile
from scheduler.cost_model.pooled import Coefficients, fit_pooled

SHIPPED = "gpu-float32"
TARGET = "issue: at most 10 / 7; plain roofline about 31 / 30; best published predictor 8.9 / 6.2"
GENERATIONS = {"Pascal": {"P4", "P100"}, "Volta, Turing": {"V100", "T4"}, "Ampere": {"A100"}}


@dataclass(frozen=True)
class Row:
    """One whole step: seconds, and what the prediction rests on."""

    device: str
    step: str
    measured_s: float
    predicted_s: float
    roofline_s: float
    basis: str

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_s / self.measured_s - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of device folders")
    parser.add_argument("--fit", type=Path, help="folder to fit on; without it, --data")
    parser.add_argument("--rows", action="store_true", help="print every step")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--write", action="store_true", help="write the shipped parameters anew")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    steps = read_steps(arguments.data)
    learn = read_steps(arguments.fit) if arguments.fit else steps
    profiles = {s.device: find_profile(s.device) for s in [*steps, *learn]}
    held_out = Held(steps, learn, profiles)
    if arguments.write:
        fitted = held_out.fit(set())
        if fitted is None:
            raise ValueError(f"{arguments.data}: no traced step to fit on")
        write(fitted, held_out.operator_errors(), sorted(held_out.known))
        load_fitted.cache_clear()
    rows, left_out = held_out.rows([{name} for name in held_out.names])
    by_generation, _ = held_out.rows(held_out.generations())
    result = {
        "whole_steps": table(rows),
        "whole_generation_left_out": table(by_generation),
        "operators": operator_table(held_out.operator_errors()),
        "not_predicted": left_out,
        "rows": [asdict(row) | {"error": row.error} for row in rows],
    }
    print(json.dumps(result, indent=1) if arguments.json else words(result, arguments.rows))


class Held:
    """Predictions of devices by parameters that did not see them."""

    def __init__(
        self, steps: Sequence[Step], learn: Sequence[Step], profiles: dict[str, DeviceProfile]
    ) -> None:
        self.steps, self.learn, self.profiles = steps, learn, profiles
        self.fits_all = learn is not steps
        runs = runs_of(learn, profiles)
        self.shipped = load_fitted().get(SHIPPED)
        saw = set(self.shipped.fitted_on) if self.shipped else {r.profile.name for r in runs}
        self.runs = [run for run in runs if self.fits_all or run.profile.name in saw]
        self.known = {run.profile.name for run in self.runs}
        self.names = sorted({profiles[s.device].name for s in steps})

    def fit(self, without: set[str]) -> Coefficients | None:
        """Parameters of all devices but some; None where none is left."""
        runs = [run for run in self.runs if run.profile.name not in without]
        return fit_pooled(runs, PRIORS) if runs else None

    def generations(self) -> list[set[str]]:
        """Groups of devices to leave out together; a device of no group alone."""
        groups = [
            {name for name in self.names if name.split("-")[0] in chips}
            for chips in GENERATIONS.values()
        ]
        return [group for group in groups if group] + [
            {name} for name in self.names if not any(name in group for group in groups)
        ]

    def parameters(self, without: set[str]) -> tuple[Coefficients, str]:
        """What predicts some devices, and in words.

        Raises:
            ValueError: nothing to fit on but the devices themselves.
        """
        if self.fits_all or without & self.known:
            found = self.fit(without)
            if found is None:
                raise ValueError(f"no other device than {without} to fit on; give --fit DIR")
            return found, "fitted on " + ", ".join(sorted(self.known - without))
        if self.shipped is None:
            raise ValueError("no shipped parameters; write them with --write")
        return shipped(self.shipped), "shipped parameters"

    def rows(self, groups: Sequence[set[str]]) -> tuple[list[Row], list[str]]:
        """All whole steps; and the names of those whose operators are not known."""
        rows, left_out = [], []
        for group in groups:
            coefficients, basis = self.parameters(group)
            for step in self.steps:
                profile = self.profiles[step.device]
                if profile.name not in group:
                    continue
                parts = step_parts(step, [*self.steps, *self.learn])
                if parts is None:
                    left_out.append(f"{step.device}/{step.name}")
                    continue
                predicted = parts.seconds(profile, coefficients)
                plain = parts.seconds(profile, None)
                rows.append(Row(profile.name, step.name, step.seconds, predicted, plain, basis))
        return rows, left_out

    def operator_errors(self) -> list[OpError]:
        """Every traced operator of a fitted device, predicted by the other devices."""
        errors = []
        for name in sorted(self.known):
            coefficients = self.fit({name})
            if coefficients is not None:
                own = [run for run in self.runs if run.profile.name == name]
                errors += op_errors(own, coefficients)
        return errors


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and median error by device and by kind of step, of the prediction and the roofline."""
    groups: dict[str, list[Row]] = {"all": list(rows)}
    for row in rows:
        groups.setdefault(f"device {row.device}", []).append(row)
    for row in rows:
        groups.setdefault(kind_of(row.step), []).append(row)
    return {name: _errors(members) for name, members in groups.items() if members}


def _errors(rows: Sequence[Row]) -> dict[str, float]:
    errors = np.array([row.error for row in rows])
    plain = np.array([row.roofline_s / row.measured_s - 1 for row in rows])
    return {
        "steps": len(rows),
        "mean_percent": round(100 * float(np.abs(errors).mean()), 1),
        "median_percent": round(100 * float(np.median(np.abs(errors))), 1),
        "bias_percent": round(100 * float(errors.mean()), 1),
        "roofline_mean_percent": round(100 * float(np.abs(plain).mean()), 1),
        "roofline_median_percent": round(100 * float(np.median(np.abs(plain))), 1),
    }


def words(result: dict[str, Any], with_rows: bool) -> str:
    lines = [f"whole steps, each device predicted without its rows ({TARGET})"]
    lines += _lines(result["whole_steps"])
    lines += ["", "the same, whole generations left out together"]
    lines += _lines(result["whole_generation_left_out"])
    lines += [
        "",
        "operators timed alone, device left out (percent; share inside the 90 % interval)",
    ]
    for kind, row in result["operators"].items():
        lines.append(
            f"  {kind:24}{row['operators']:6} {row['mean_percent']:7} {row['median_percent']:7} "
            f"{row['inside_90']:7.2f}"
        )
    if result["not_predicted"]:
        lines += [
            "",
            "NOT in the figures (operators unknown): " + ", ".join(result["not_predicted"]),
        ]
    if with_rows:
        lines += [""] + [
            f"  {r['device']:20}{r['step']:34}{1e3 * r['measured_s']:10.1f} ms "
            f"{100 * r['error']:+7.1f} %  {r['basis']}"
            for r in result["rows"]
        ]
    return "\n".join(lines)


def _lines(rows: dict[str, dict[str, float]]) -> list[str]:
    head = f"  {'':24}{'steps':>6} {'mean %':>7} {'median':>7} {'bias':>7} {'roofline':>14}"
    return [head] + [
        f"  {name:24}{r['steps']:6} {r['mean_percent']:7} {r['median_percent']:7} "
        f"{r['bias_percent']:+7} {r['roofline_mean_percent']:7} {r['roofline_median_percent']:6}"
        for name, r in rows.items()
    ]


if __name__ == "__main__":
    main()
