"""Models of GPU kernels: a closed form's constants, and what measured devices deviate from it.

The residuals of every measured device, log(measured / closed form), lie on the shapes that were
measured there. A device that was not measured takes constants and residuals of those near it, by
kriging over the logarithms of peak, bandwidth, units and cache.

Source: Cressie, "Statistics for spatial data", Wiley 1993, chapter 3 (simple and ordinary kriging).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware.documents import STRICT, read
from hardware.provenance import Provenance

Array = NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "kernels"
CHIP_SCALES = (1.0, 1.0, 1.0, 1.5)
"""Octaves of peak, bandwidth, units and cache over which devices stay alike: ASSUMED, not tuned."""
NUGGET = 0.1
FAR = 0.95
STEP = 0.01
MISSING = -128


@dataclass(frozen=True)
class Chip:
    """What a closed form needs to know of a device: FLOP/s, bytes/s, units, cache bytes."""

    __pydantic_config__ = STRICT

    peak: float
    bandwidth: float
    units: float
    cache: float


@dataclass(frozen=True)
class KernelModel:
    """Seconds of one kind of kernel on one device.

    seconds = closed form (constants) * exp(sum of like * residuals of measured devices).

    Attributes:
        form: name of the closed form, in `scheduler/kernels.py`.
        like: weight of each measured device's residuals.
        spread: standard deviation of the logarithm of measured over predicted; times 1.645 it
            holds 90 % of the measurements that were not fitted.
    """

    __pydantic_config__ = STRICT

    form: str
    constants: dict[str, float]
    like: dict[str, float]
    spread: float
    provenance: Provenance

    def __post_init__(self) -> None:
        """Refuse figures that are no constants."""
        for key, value in {**self.constants, "spread": self.spread}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"kernel '{self.form}': {key} must be positive, got {value}")
        if not all(map(math.isfinite, self.like.values())):
            raise ValueError(f"kernel '{self.form}': like must be finite numbers")


@dataclass(frozen=True)
class MeasuredDevice:
    """A device whose kernels were measured.

    Attributes:
        constants: by closed form.
        spread: of the residuals' own noise, by closed form.
        transfer_spread: of the errors when it is predicted from the others, by closed form.
    """

    __pydantic_config__ = STRICT

    chip: Chip
    software: str
    constants: dict[str, dict[str, float]]
    spread: dict[str, float]
    transfer_spread: dict[str, float]


@dataclass(frozen=True)
class KernelData:
    """All measured devices of one dtype."""

    __pydantic_config__ = STRICT

    dtype: str
    source: str
    date: str
    devices: dict[str, MeasuredDevice]


@dataclass(frozen=True)
class Shapes:
    """Measured shapes (num_shapes, num_sizes); residuals (num_shapes,) by device, NaN if none."""

    sizes: Array
    residuals: Mapping[str, Array]


@cache
def load_kernels(path: Path = DATA / "bfloat16.yaml") -> KernelData:
    """The measured devices."""
    return read(path, KernelData)


@cache
def load_shapes(form: str, path: Path = DATA / "bfloat16.npz") -> Shapes:
    """Shapes and residuals of a closed form; stored in steps of 1 %."""
    with np.load(path) as file:
        sizes, stored = file[f"{form}_sizes"].astype(float), file[f"{form}_residuals"]
        names = [str(name) for name in file["devices"]]
    values = np.where(stored == MISSING, np.nan, stored * STEP)
    return Shapes(sizes, dict(zip(names, values, strict=True)))


def kriging(chip: Chip, others: Sequence[Chip]) -> tuple[Array, Array, float]:
    """Weights of other devices' residuals, of their constants, and the share they leave open.

    Residuals shrink to none (simple kriging), constants to the devices' mean (ordinary: weights
    sum to 1). The share is 0 beside a measured device and 1 far from all.
    """
    places = np.log2([[c.peak, c.bandwidth, c.units, c.cache] for c in (chip, *others)])
    scaled = places / np.array(CHIP_SCALES)
    square = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=-1)
    alike = np.exp(-0.5 * square)
    inverse = np.linalg.inv(alike[1:, 1:] + NUGGET * np.eye(len(others)))
    simple = inverse @ alike[1:, 0]
    mean = inverse.sum(axis=1) / inverse.sum()
    open_share = float(np.clip(1 - alike[0, 1:] @ simple, 0, 1))
    return simple, simple + (1 - simple.sum()) * mean, open_share


def transferred(form: str, chip: Chip, devices: Mapping[str, MeasuredDevice]) -> KernelModel:
    """The model of a device that was not measured, from those that were."""
    known = {name: device for name, device in devices.items() if form in device.constants}
    simple, mean, _ = kriging(chip, [device.chip for device in known.values()])
    names = list(next(iter(known.values())).constants[form])
    logs = np.log([[d.constants[form][name] for name in names] for d in known.values()])
    nearest = np.abs(mean) / np.abs(mean).sum()
    spreads = np.array([device.transfer_spread.get(form, 0.5) for device in known.values()])
    return KernelModel(
        form,
        dict(zip(names, np.exp(mean @ logs).tolist(), strict=True)),
        {name: float(weight) for name, weight in zip(known, simple, strict=True)},
        float(nearest @ spreads),
        Provenance("fitted", f"transferred from {', '.join(known)}"),
    )


def kernel_models(name: str, chip: Chip, data: KernelData) -> dict[str, KernelModel]:
    """Models by closed form: a measured device's own, else transferred; none if far from all."""
    forms = next(iter(data.devices.values())).constants
    device = data.devices.get(name)
    if device:
        made = Provenance("fitted", f"{data.source}, {device.software}", data.date)
        return {
            form: KernelModel(form, constants, {name: 1.0}, device.spread[form], made)
            for form, constants in device.constants.items()
        }
    if kriging(chip, [d.chip for d in data.devices.values()])[2] > FAR:
        return {}
    return {form: transferred(form, chip, data.devices) for form in forms}
