"""Writes hardware/data/kernels: constants and residuals of every measured device, from all rows.

python -m benchmarks.fit_kernels [--data FOLDER]
"""

import argparse
from pathlib import Path

import numpy as np
import yaml

from benchmarks.serving_tables import (
    DEVICES,
    ENGINE,
    SOURCE,
    catalog_name,
    installed,
    read_rows,
    table,
)
from hardware.kernel_model import DATA, MISSING, STEP
from scheduler.kernel_fit import Sample, fit_device
from scheduler.kernels import FORMS

ROWS = 1200
DATE = "2026-11-24"


def digits(value: float) -> float:
    return float(f"{value:.4g}")


def residuals(form: str, sample: Sample, constants: dict[str, float]) -> np.ndarray:
    closed = FORMS[form].seconds(constants, sample.sizes, sample.chip)
    return np.asarray(np.log(sample.seconds / closed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=installed())
    data = parser.parse_args().data
    generator = np.random.default_rng(0)
    constants: dict[str, dict[str, dict[str, float]]] = {device: {} for device in DEVICES}
    arrays: dict[str, np.ndarray] = {"devices": np.array([catalog_name(d) for d in DEVICES])}
    chips = {}
    for form in FORMS:
        samples = {device: read_rows(data, device, form) for device in DEVICES}
        sizes, place = table(samples, form)
        stored = np.full((len(DEVICES), len(sizes)), MISSING, dtype=np.int8)
        for i, (device, sample) in enumerate(samples.items()):
            chosen = generator.permutation(len(sample.seconds))[:ROWS]
            model = fit_device(form, sample.rows(chosen), device)
            constants[device][form] = {k: digits(v) for k, v in model.constants.items()}
            left = residuals(form, sample, constants[device][form])
            stored[i, place[device]] = np.clip(np.round(left / STEP), -127, 127)
            chips[device] = sample.chip
            print(
                form, device, len(left), f"closed form alone {np.abs(np.expm1(-left)).mean():.3f}"
            )
        arrays[f"{form}_sizes"] = sizes.astype(np.int32)
        arrays[f"{form}_residuals"] = stored
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(DATA / "bfloat16.npz", **arrays)  # type: ignore[arg-type]
    devices = {
        catalog_name(device): {
            "chip": {k: float(v) for k, v in vars(chips[device]).items()},
            "software": f"{ENGINE} {DEVICES[device]}",
            "constants": constants[device],
            "spread": dict.fromkeys(FORMS, 0.06),
            "transfer_spread": dict.fromkeys(FORMS, 0.2),
        }
        for device in DEVICES
    }
    raw = {"dtype": "bfloat16", "source": SOURCE, "date": DATE, "devices": devices}
    (DATA / "bfloat16.yaml").write_text(
        "# Written by benchmarks/fit_kernels.py. Constants: seconds, shares of peak or bandwidth.\n"
        "# spread and transfer_spread are ASSUMED until the script derives them.\n"
        + yaml.safe_dump(raw, sort_keys=False, width=100)
    )


if __name__ == "__main__":
    main()
