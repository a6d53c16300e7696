"""Operators of a graph by kernel models: matrix products and attention of GPUs."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hardware.catalog import makers
from hardware.kernel_model import Chip, KernelModel, kernel_models, load_kernels
from hardware.profile import DeviceProfile
from scheduler.cost_model.features import OpColumns
from scheduler.cost_model.kernels import FORMS, Array, chip_of, kernel_seconds


def model_for(form: str, profile: DeviceProfile, dtype: str) -> tuple[KernelModel, Chip] | None:
    """The kernel model of a form on a device, and the device's figures; None if there is none.

    A model of the profile's own (calibrated) goes first, so there is none where it has one.
    """
    own = {"product": "matmul"}.get(form, "attention")
    chip = chip_of(profile, dtype)
    if profile.kind != "gpu" or chip is None or profile.op_time(own, dtype) is not None:
        return None
    if dtype != load_kernels().dtype:
        return None
    model = _models(profile.name, chip).get(form)
    return (model, chip) if model else None


@lru_cache(maxsize=256)
def _models(name: str, chip: Chip) -> dict[str, KernelModel]:
    return kernel_models(name, chip, makers().get(name, ""), load_kernels())


def forms_of(ops: OpColumns) -> dict[str, NDArray[np.bool_]]:
    """Rows of operators by the closed form that times them."""
    if ops.kind == "matmul":
        return {"product": np.ones(len(ops.ops), dtype=bool)}
    if ops.kind == "attention":
        is_decode = ops.size("queries") == 1
        return {"decode": is_decode, "prefill": ~is_decode}
    return {}


def kernel_times(ops: OpColumns, profile: DeviceProfile) -> tuple[Array, Array, KernelModel] | None:
    """Seconds and deviation of the logarithm, NaN where there is no model; and one of the models.

    None where no operator has one: other classes, dtypes and devices, or sizes that are missing.
    """
    seconds, spread = np.full((2, len(ops.ops)), np.nan)
    used: KernelModel | None = None
    for form, rows in forms_of(ops).items():
        found = model_for(form, profile, ops.dtype)
        sizes = {name: ops.size(name) for name in FORMS[form].sizes}
        rows = rows & np.all([np.isfinite(v) for v in sizes.values()], axis=0)
        if found is None or not rows.any():
            continue
        used, chip = found
        seconds[rows] = kernel_seconds(used, {k: v[rows] for k, v in sizes.items()}, chip)
        spread[rows] = used.spread
    return None if used is None else (seconds, spread, used)
