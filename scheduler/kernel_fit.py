"""Fitting a kernel model to a device: to all its rows, or to a few points from a transferred one.

With few points the closed form's constants move from those transferred from other devices
(maximum a posteriori); what is left over gets a small Gaussian process. The points are chosen by
their sizes alone.

Sources: as `scheduler/fit.py`; Vovk, Gammerman, Shafer, "Algorithmic learning in a random world",
Springer 2005 (the interval: quantile of the errors of points left out).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import least_squares

from hardware.kernel_model import Chip, KernelModel
from hardware.provenance import Provenance
from scheduler.gaussian_process import Z_90, smooth_covariance
from scheduler.kernels import FORMS, Array, Sizes, kernel_seconds

TYPICAL_ERROR = 0.1
"""Beyond it an error of the logarithm counts in proportion, not squared."""
NEAR_SPREAD, FAR_SPREAD = 0.05, 0.55
"""Deviation of the constants' logarithms from those transferred, beside and far from others."""
LEVEL, SIGNAL, NOISE = 0.05, 0.1, 0.1
SCALE = {"depth": 1.0}
USUAL_SCALE = 3.0
"""Of the Gaussian process, in natural logarithms: ASSUMED for every device and form, not tuned."""
FOLDS = 8


@dataclass(frozen=True)
class Sample:
    """Measured kernels of one form on one device."""

    sizes: Sizes
    seconds: Array
    chip: Chip

    def rows(self, chosen: Sequence[int] | NDArray[np.int64]) -> "Sample":
        """Some of them."""
        index = np.asarray(chosen)
        return Sample({k: v[index] for k, v in self.sizes.items()}, self.seconds[index], self.chip)


@dataclass(frozen=True)
class Adapted:
    """A kernel model with a Gaussian process of what it leaves over."""

    model: KernelModel
    points: Array
    alpha: Array

    def seconds(self, x: Sizes, chip: Chip) -> Array:
        """Seconds of kernels."""
        base = kernel_seconds(self.model, x, chip)
        across = _covariance(_features(self.model.form, x, base), self.points)
        return np.asarray(base * np.exp(across @ self.alpha))


def fit_constants(form: str, sample: Sample, prior: KernelModel, spread: float) -> KernelModel:
    """Constants that suit a sample, drawn towards the prior's; robust to odd points."""
    names = list(prior.constants)
    start = np.log([prior.constants[name] for name in names])
    shift = np.exp(-_log_ratio(prior, sample))
    target = np.log(sample.seconds * shift)

    def errors(logs: Array) -> Array:
        constants = dict(zip(names, np.exp(logs).tolist(), strict=True))
        seconds = FORMS[form].seconds(constants, sample.sizes, sample.chip)
        return np.append(np.log(seconds) - target, TYPICAL_ERROR * (logs - start) / spread)

    found = least_squares(
        errors, start, loss="soft_l1", f_scale=TYPICAL_ERROR, max_nfev=30, diff_step=1e-3
    )
    constants = dict(zip(names, np.exp(found.x).tolist(), strict=True))
    return replace(prior, constants=constants)


def _log_ratio(model: KernelModel, sample: Sample) -> Array:
    """What the model's residuals add to its closed form."""
    closed = FORMS[model.form].seconds(model.constants, sample.sizes, sample.chip)
    return np.log(kernel_seconds(model, sample.sizes, sample.chip) / closed)


def fit_device(form: str, sample: Sample, software: str) -> KernelModel:
    """Constants of a device from many rows, starting from the usual ones."""
    usual = KernelModel(form, dict(FORMS[form].usual), {}, 0.1, Provenance("fitted", software))
    return fit_constants(form, sample, usual, spread=0.3)


def choose(prior: KernelModel, x: Sizes, chip: Chip, num: int) -> list[int]:
    """The `num` shapes whose measurement lowers the summed variance of all shapes most.

    By sizes and predicted seconds alone; nothing measured is looked at.
    """
    features = _features(prior.form, x, kernel_seconds(prior, x, chip))
    left = _covariance(features, features)
    chosen: list[int] = []
    for _ in range(min(num, len(features))):
        spread = np.maximum(np.diag(left), 0) + NOISE**2
        gain = (left**2).sum(axis=0) / spread
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        left = left - np.outer(left[:, best], left[best]) / spread[best]
    return chosen


def adapt(prior: KernelModel, sample: Sample, open_share: float) -> Adapted:
    """Fit a transferred model to a few points; its spread from points left out, fold by fold."""
    spread = NEAR_SPREAD + (FAR_SPREAD - NEAR_SPREAD) * open_share
    num = len(sample.seconds)
    fold = np.arange(num) % FOLDS
    errors = np.empty(num)
    for i in range(FOLDS):
        kept, out = sample.rows(np.flatnonzero(fold != i)), sample.rows(np.flatnonzero(fold == i))
        adapted = _adapt_once(prior, kept, spread)
        errors[fold == i] = np.log(out.seconds / adapted.seconds(out.sizes, out.chip))
    rank = min(num - 1, int(np.ceil(0.9 * (num + 1))) - 1)
    half = float(np.sort(np.abs(errors))[rank])
    final = _adapt_once(prior, sample, spread)
    return replace(final, model=replace(final.model, spread=max(half, 1e-3) / Z_90))


def _adapt_once(prior: KernelModel, sample: Sample, spread: float) -> Adapted:
    model = fit_constants(prior.form, sample, prior, spread)
    base = kernel_seconds(model, sample.sizes, sample.chip)
    points = _features(prior.form, sample.sizes, base)
    noisy = _covariance(points, points) + NOISE**2 * np.eye(len(points))
    alpha = cho_solve((cholesky(noisy, lower=True), True), np.log(sample.seconds / base))
    return Adapted(model, points, alpha)


def _features(form: str, x: Sizes, seconds: Array) -> Array:
    names = [name for name in FORMS[form].sizes if name != "causal"]
    columns = [np.log(x[name]) / SCALE.get(name, USUAL_SCALE) for name in names]
    return np.column_stack([*columns, np.log(seconds) / USUAL_SCALE])


def _covariance(a: Array, b: Array) -> Array:
    return LEVEL**2 + SIGNAL**2 * smooth_covariance(a, b, np.ones(a.shape[1]))
