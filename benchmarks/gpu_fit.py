"""Shipping fitted parameters, and the errors of single operators on devices left out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import hardware.fitted
from benchmarks.gpu_float32 import PRIORS
from hardware.efficiency import LinearModel
from hardware.fitted import FittedModels
from hardware.provenance import Provenance
from scheduler.cost_model.gaussian_process import Z_90
from scheduler.cost_model.pooled import Coefficients, Run, predict_pooled

SOURCE = (
    "sitar-lab/NeuSight (MIT): torch.fx nodes and whole steps, float32, PyTorch 2.1; "
    "benchmarks/accuracy_gpu_steps.py --write"
)
NEEDS = ("process_nm", "issue_share", "num_compute_units", "power_w")
HEADER = """\
# Float32 operators on GPUs: seconds = plain roofline * exp(intercept + weights . features).
# Written by benchmarks/accuracy_gpu_steps.py --write; method and errors in docs/accuracy.md.
"""


@dataclass(frozen=True)
class OpError:
    """One operator timed alone: its class and the logarithm of predicted over measured."""

    device: str
    kind: str
    log_ratio: float


def op_errors(runs: Sequence[Run], coefficients: Coefficients) -> list[OpError]:
    """Errors of the timed operators of some runs."""
    errors = []
    for run in runs:
        predicted = predict_pooled(run.ops, run.profile, PRIORS, coefficients)
        errors += [
            OpError(run.profile.name, op.kind, float(np.log(seconds / measured)))
            for op, seconds, measured in zip(run.ops, predicted, run.op_seconds, strict=True)
            if measured > 0
        ]
    return errors


def spread(errors: Sequence[OpError]) -> float:
    """The deviation whose 90 % interval holds 90 % of the errors."""
    return float(np.quantile(np.abs([e.log_ratio for e in errors]), 0.9)) / Z_90


def operator_table(errors: Sequence[OpError]) -> dict[str, Any]:
    """Errors by class; the interval of each device has the width that the other devices tell."""
    kinds = {kind: [e for e in errors if e.kind == kind] for kind in {e.kind for e in errors}}
    inside = {kind: _inside(members) for kind, members in kinds.items()}
    rows = {kind: _row(kinds[kind], inside[kind]) for kind in sorted(kinds)}
    every = [flag for flags in inside.values() for flag in flags]
    return rows | {"all": _row(errors, every)} if errors else {}


def _row(errors: Sequence[OpError], inside: Sequence[bool]) -> dict[str, float]:
    percent = 100 * np.abs(np.expm1([e.log_ratio for e in errors]))
    return {
        "operators": len(errors),
        "mean_percent": round(float(percent.mean()), 1),
        "median_percent": round(float(np.median(percent)), 1),
        "inside_90": round(float(np.mean(inside)), 3) if inside else float("nan"),
    }


def _inside(errors: Sequence[OpError]) -> list[bool]:
    flags = []
    for device in {e.device for e in errors}:
        others = [e for e in errors if e.device != device]
        half = Z_90 * spread(others) if others else float("inf")
        flags += [abs(e.log_ratio) <= half for e in errors if e.device == device]
    return flags


def shipped(fitted: FittedModels) -> Coefficients:
    """The coefficients of a shipped file, in the order of the priors."""
    found = {}
    for kind, prior in PRIORS.items():
        model = fitted.models[f"{kind}/float32"]
        if not isinstance(model, LinearModel) or model.features != tuple(prior.weights):
            raise ValueError(f"shipped {kind}/float32: features are not those of gpu_float32.py")
        found[kind] = np.array([model.intercept, *model.weights])
    return found


def write(coefficients: Coefficients, errors: Sequence[OpError], devices: Sequence[str]) -> Path:
    """Write the parameters of all devices to the catalog; returns the file."""
    provenance = Provenance("fitted", SOURCE, datetime.now(UTC).date().isoformat())
    models = {}
    for kind, prior in PRIORS.items():
        own = [e for e in errors if e.kind == kind] or list(errors)
        intercept, *weights = (round(float(x), 4) for x in coefficients[kind])
        models[f"{kind}/float32"] = {
            "features": list(prior.weights),
            "intercept": intercept,
            "weights": weights,
            "spread": round(spread(own), 4),
            "provenance": asdict(provenance),
        }
    content = {"kind": "gpu", "needs": list(NEEDS), "fitted_on": list(devices), "models": models}
    path = hardware.fitted.FOLDER / "gpu-float32.yaml"
    path.write_text(HEADER + yaml.safe_dump(content, sort_keys=False, width=100))
    return path
