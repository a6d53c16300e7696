"""Writes hardware/data/kernels: constants and residuals of every measured device, from all rows.

    python -m benchmarks.fit_kernels [--data FOLDER] [--spreads]

The spreads are those of errors on rows that the prediction did not see: of the device itself with
the rows of a fifth of the weights (products) or head counts (attention) left out, in turn; and of
the device as predicted by its maker's other devices.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.accuracy_gemm import judge
from benchmarks.serving_tables import (
    DEVICES,
    ENGINE,
    SOURCE,
    catalog_name,
    chip,
    installed,
    read_rows,
    table,
)
from hardware.catalog import makers
from hardware.documents import parse
from hardware.kernel_model import (
    DATA,
    FEWEST,
    MISSING,
    STEP,
    MeasuredDevice,
    load_kernels,
    transferred,
)
from scheduler.cost_model.gaussian_process import Z_90
from scheduler.cost_model.kernel_fit import Sample, fit_device
from scheduler.cost_model.kernels import FORMS, kernel_seconds, places, spread_out

ROWS = 1200
FOLDS = 5
GROUPS = {"product": ("n", "k")} | dict.fromkeys(
    ("prefill", "decode"), ("heads", "kv_heads", "depth")
)
"""Sizes whose rows are left out together: what one model has in common."""
DATE = "2026-11-24"


def digits(value: float) -> float:
    return float(f"{value:.4g}")


def residuals(form: str, sample: Sample, constants: dict[str, float]) -> np.ndarray:
    closed = FORMS[form].seconds(constants, sample.sizes, sample.chip)
    return np.asarray(np.log(sample.seconds / closed))


def fit(data: Path) -> dict[str, Any]:
    """Writes the residuals; returns the devices with their constants."""
    generator = np.random.default_rng(0)
    devices: dict[str, Any] = {
        catalog_name(device): {
            "chip": {key: float(value) for key, value in vars(chip(device)).items()},
            "maker": makers()[catalog_name(device)],
            "software": f"{ENGINE} {release}",
            "constants": {},
        }
        for device, release in DEVICES.items()
    }
    arrays: dict[str, np.ndarray] = {"devices": np.array(list(devices))}
    for form in FORMS:
        samples = {device: read_rows(data, device, form) for device in DEVICES}
        sizes, place = table(samples, form)
        stored = np.full((len(DEVICES), len(sizes)), MISSING, dtype=np.int8)
        for i, (device, sample) in enumerate(samples.items()):
            chosen = generator.permutation(len(sample.seconds))[:ROWS]
            model = fit_device(form, sample.rows(chosen), device)
            constants = {key: digits(value) for key, value in model.constants.items()}
            devices[catalog_name(device)]["constants"][form] = constants
            left = residuals(form, sample, constants)
            stored[i, place[device]] = np.clip(np.round(left / STEP), -127, 127)
            off = np.abs(np.expm1(-left)).mean()
            print(form, device, len(left), f"closed form alone {off:.3f}")
        arrays[f"{form}_sizes"] = sizes.astype(np.int32)
        arrays[f"{form}_residuals"] = stored
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(DATA / "bfloat16.npz", **arrays)  # type: ignore[arg-type]
    return devices


def spread_of(errors: np.ndarray) -> float:
    """Standard deviation whose normal 90 % interval holds 90 % of the errors."""
    return digits(float(np.quantile(np.abs(errors), 0.9)) / Z_90)


def own_spread(form: str, sample: Sample, constants: dict[str, float]) -> float:
    """Of residuals between shapes, with a fifth of the shapes' groups left out in turn."""
    left = residuals(form, sample, constants)
    at = places(form, sample.sizes)
    keys = np.column_stack([sample.sizes[name] for name in GROUPS[form]])
    group = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    fold = (np.random.default_rng(0).permutation(group.max() + 1) % FOLDS)[group]
    errors = np.empty(len(left))
    for i in range(FOLDS):
        out = fold == i
        errors[out] = left[out] - spread_out(at[~out], left[~out], at[out])
    return spread_of(errors)


def add_spreads(data: Path, devices: dict[str, Any]) -> None:
    """Adds both held-out spreads to the devices; no transfer where a maker has few of them."""
    all_makers = [device["maker"] for device in devices.values()]
    for device in devices.values():
        device["spread"], device["transfer"] = dict.fromkeys(FORMS, 1.0), dict.fromkeys(FORMS, 1.0)
        if all_makers.count(device["maker"]) < FEWEST:
            device["transfer"] = {}
    known = parse(devices, dict[str, MeasuredDevice], "bfloat16.yaml")
    for folder in DEVICES:
        name = catalog_name(folder)
        peers = {
            key: other
            for key, other in known.items()
            if key != name and other.maker == known[name].maker
        }
        for form in FORMS:
            sample = read_rows(data, folder, form)
            devices[name]["spread"][form] = own_spread(form, sample, known[name].constants[form])
            if devices[name]["transfer"]:
                model = transferred(form, sample.chip, peers)
                predicted = kernel_seconds(model, sample.sizes, sample.chip)
                errors = np.log(sample.seconds / predicted)
                devices[name]["transfer"][form] = spread_of(errors)
        print(name, "spread", devices[name]["spread"], "transfer", devices[name]["transfer"])


def write(file: Path, devices: dict[str, Any]) -> None:
    raw = {"dtype": "bfloat16", "source": SOURCE, "date": DATE, "devices": devices}
    file.write_text(
        "# Written by benchmarks/fit_kernels.py. Constants: seconds, shares of peak or bandwidth.\n"
        "# spread, transfer: 90 % quantile of held-out errors of the logarithm, over 1.645.\n"
        "# reach: that quantile over the mean error of left-out points, adapted to 64 points.\n"
        + yaml.safe_dump(raw, sort_keys=False, width=100)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=installed())
    parser.add_argument("--spreads", action="store_true", help="keep constants and residuals")
    asked = parser.parse_args()
    file = DATA / "bfloat16.yaml"
    devices = yaml.safe_load(file.read_text())["devices"] if asked.spreads else fit(asked.data)
    add_spreads(asked.data, devices)
    write(file, devices)
    load_kernels.cache_clear()
    for folder in DEVICES:
        rows = [judge(form, folder, read_rows(asked.data, folder, form)) for form in FORMS]
        devices[catalog_name(folder)]["reach"] = {row.form: digits(row.reach) for row in rows}
    write(file, devices)


if __name__ == "__main__":
    main()
