"""Models of GPU kernels: a closed form's constants, and what measured devices deviate from it.

The residuals of every measured device, log(measured / closed form), lie on the shapes that were
measured there. A device that was not measured takes constants and residuals of those of its maker
near it, by kriging over the logarithms of peak, bandwidth, units and cache.

Source: Cressie, "Statistics for spatial data", Wiley 1993, chapter 3 (simple and ordinary kriging).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from hardware.documents import STRICT, read
from hardware.provenance import Provenance

Array = NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "kernels"
CHIP_SCALES = (1.0, 1.0, 1.0, 1.5)
"""Octaves of peak, bandwidth, units and cache over which devices stay alike: ASSUMED, not tuned."""
NUGGET = 0.1
FAR = 0.95
FEWEST = 3
"""Measured devices of a maker, below which nothing says how far a transfer is off."""
STEP = 0.01
REACH = 2.06
"""Of a normal distribution: 1.645 over the mean, 0.798; used where no device tells."""
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
        form: name of the closed form, in `scheduler/cost_model/kernels.py`.
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
        maker: only its devices are predicted from this one.
        constants: by closed form.
        spread: by closed form; of the device's own errors on shapes whose neighbours (product: the
            same weights; attention: the same heads and depth) were left out.
        transfer: by closed form; the spread of its errors when its maker's other devices predict
            it. Empty where it has no other.
        reach: by closed form; what other devices adapted to a few points take from it: the 90 %
            quantile of its held-out errors over the mean error of its points left out.
    """

    __pydantic_config__ = STRICT

    chip: Chip
    maker: str
    software: str
    constants: dict[str, dict[str, float]]
    spread: dict[str, float]
    transfer: dict[str, float]
    reach: dict[str, float] = field(default_factory=dict)


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


def transfer_spread(form: str, share: float, devices: Mapping[str, MeasuredDevice]) -> float:
    """Spread of a transfer that leaves a share open: that of measured devices left out in turn.

    spread = near + far * share^2, both at least 0, by least squares over the devices; the share
    that each of them leaves open is known.
    """
    held = {name: d for name, d in devices.items() if form in d.transfer}
    shares = [
        kriging(d.chip, [o.chip for other, o in held.items() if other != name])[2]
        for name, d in held.items()
    ]
    terms = np.column_stack([np.ones(len(held)), np.square(shares)])
    near, far = nnls(terms, np.array([d.transfer[form] for d in held.values()]))[0]
    return float(near + far * share**2)


def reach_of(form: str, devices: Mapping[str, MeasuredDevice]) -> float:
    """Half the 90 % interval over the mean error of points left out: median of the devices."""
    return float(np.median([d.reach[form] for d in devices.values() if form in d.reach] or [REACH]))


def transferred(form: str, chip: Chip, devices: Mapping[str, MeasuredDevice]) -> KernelModel:
    """The model of a device that was not measured, from those that were."""
    known = {name: device for name, device in devices.items() if form in device.constants}
    simple, mean, share = kriging(chip, [device.chip for device in known.values()])
    names = list(next(iter(known.values())).constants[form])
    logs = np.log([[d.constants[form][name] for name in names] for d in known.values()])
    return KernelModel(
        form,
        dict(zip(names, np.exp(mean @ logs).tolist(), strict=True)),
        {name: float(weight) for name, weight in zip(known, simple, strict=True)},
        transfer_spread(form, share, known),
        Provenance("fitted", f"transferred from {', '.join(known)}"),
    )


def kernel_models(name: str, chip: Chip, maker: str, data: KernelData) -> dict[str, KernelModel]:
    """Models by closed form: a measured device's own, else transferred.

    None where its maker's measured devices are all far, or fewer than three.
    """
    device = data.devices.get(name)
    if device:
        made = Provenance("fitted", f"{data.source}, {device.software}", data.date)
        return {
            form: KernelModel(form, constants, {name: 1.0}, device.spread[form], made)
            for form, constants in device.constants.items()
        }
    known = {key: other for key, other in data.devices.items() if other.maker == maker}
    if len(known) < FEWEST or kriging(chip, [d.chip for d in known.values()])[2] > FAR:
        return {}
    forms = next(iter(known.values())).constants
    return {form: transferred(form, chip, known) for form in forms}
