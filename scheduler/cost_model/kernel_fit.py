"""Fitting a kernel model to a device: to all its rows, or to a few points from a transferred one.

With few points the closed form's constants move from those transferred from other devices
(maximum a posteriori); what is left over gets a small Gaussian process, and other weights of the
measured devices' residuals, the freer the farther the device is from all. The points are chosen by
their sizes alone.

Sources: as `scheduler/cost_model/fit.py`; the interval: Lei et al., "Distribution-free predictive
inference for regression", JASA 2018 (errors of points left out; here their mean, scaled as other
devices' held-out errors were, since points chosen at the rim tell a quantile only roughly).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import least_squares

from hardware.kernel_model import Chip, KernelModel
from hardware.provenance import Provenance
from scheduler.cost_model.gaussian_process import Z_90, smooth_covariance
from scheduler.cost_model.kernels import FORMS, Array, Sizes, kernel_seconds, residuals_of

TYPICAL_ERROR = 0.1
"""Beyond it an error of the logarithm counts in proportion, not squared."""
NEAR_SPREAD, FAR_SPREAD = 0.05, 0.55
"""Deviation of the constants' logarithms from those transferred, beside and far from others."""
LEVEL, SIGNAL, NOISE = 0.05, 0.1, 0.1
MIX = 0.1
"""Deviation of the weights of other devices' residuals, far from all devices; 0 beside one."""
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
    """A kernel model with a Gaussian process of what it leaves over.

    Attributes:
        points: features of the points; and `mixed`, the measured devices' residuals there, whose
            weights have the prior deviation `mix`.
    """

    model: KernelModel
    points: Array
    mixed: Array
    mix: float
    alpha: Array

    def seconds(self, x: Sizes, chip: Chip) -> Array:
        """Seconds of kernels."""
        base = kernel_seconds(self.model, x, chip)
        across = _covariance(_features(self.model.form, x, base), self.points)
        left = across @ self.alpha
        if self.mixed.shape[1]:
            others = residuals_of(self.model.form, list(self.model.like), x)
            left += others @ (self.mix**2 * (self.mixed.T @ self.alpha))
        return np.asarray(base * np.exp(left))


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
    known = _covariance(features, features)
    variance, explained = np.diag(known).copy(), np.zeros((len(features), 0))
    gain = (known**2).sum(axis=0)
    chosen: list[int] = []
    for _ in range(min(num, len(features))):
        value = gain / (np.maximum(variance, 0) + NOISE**2)
        value[chosen] = -1.0
        best = int(np.argmax(value))
        chosen.append(best)
        left = known[best] - explained @ explained[best]
        step = left / np.sqrt(max(left[best], 0) + NOISE**2)
        onto = known @ step - explained @ (explained.T @ step)
        gain += step * (step * (step @ step) - 2 * onto)
        variance -= step**2
        explained = np.column_stack([explained, step])
    return chosen


def adapt(prior: KernelModel, sample: Sample, open_share: float, reach: float) -> Adapted:
    """Fit a transferred model to a few points.

    Its 90 % interval is `reach` times the mean error of points left out, fold by fold; how far that
    reaches, other devices tell (`hardware/kernel_model.py`, `reach`).
    """
    final = _adapt_once(prior, sample, open_share)
    half = reach * float(np.abs(left_out(prior, sample, open_share)).mean())
    return replace(final, model=replace(final.model, spread=max(half, 1e-3) / Z_90))


def left_out(prior: KernelModel, sample: Sample, open_share: float) -> Array:
    """Errors of the logarithm at each point when its fold was not fitted."""
    fold = np.arange(len(sample.seconds)) % FOLDS
    errors = np.empty(len(fold))
    for i in range(min(FOLDS, len(fold))):
        kept, out = sample.rows(np.flatnonzero(fold != i)), sample.rows(np.flatnonzero(fold == i))
        adapted = _adapt_once(prior, kept, open_share)
        errors[fold == i] = np.log(out.seconds / adapted.seconds(out.sizes, out.chip))
    return errors


def _adapt_once(prior: KernelModel, sample: Sample, open_share: float) -> Adapted:
    spread = NEAR_SPREAD + (FAR_SPREAD - NEAR_SPREAD) * open_share
    model = fit_constants(prior.form, sample, prior, spread)
    base = kernel_seconds(model, sample.sizes, sample.chip)
    points = _features(prior.form, sample.sizes, base)
    mixed = np.zeros((len(points), 0))
    if prior.like:
        mixed = residuals_of(prior.form, list(prior.like), sample.sizes)
    mix = MIX * open_share
    noisy = _covariance(points, points) + mix**2 * mixed @ mixed.T + NOISE**2 * np.eye(len(points))
    alpha = cho_solve((cholesky(noisy, lower=True), True), np.log(sample.seconds / base))
    return Adapted(model, points, mixed, mix, alpha)


def _features(form: str, x: Sizes, seconds: Array) -> Array:
    names = [name for name in FORMS[form].sizes if name != "causal"]
    columns = [np.log(x[name]) / SCALE.get(name, USUAL_SCALE) for name in names]
    return np.column_stack([*columns, np.log(seconds) / USUAL_SCALE])


def _covariance(a: Array, b: Array) -> Array:
    return LEVEL**2 + SIGNAL**2 * smooth_covariance(a, b, np.ones(a.shape[1]))
