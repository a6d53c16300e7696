"""Evaluating efficiency models: mean and standard deviation of g at new features.

Source: Rasmussen, Williams, "Gaussian Processes for Machine Learning", MIT Press 2006,
algorithm 2.1, and section 2.7 for the linear part.

Beyond the points g stays what it is at their edge, so that an efficiency saturates where a
straight line would run away; the deviation grows there with the distance.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from hardware.efficiency import EfficiencyModel

Array = NDArray[np.float64]

LEVEL = 1.0
"""Prior standard deviation of g's constant part: a factor of e on the roofline."""
Z_90 = 1.6448536
"""A normal value lies within this many standard deviations in 90 % of cases."""
BLOCK = 4096


@dataclass(frozen=True)
class Posterior:
    """A model conditioned on its points, ready to evaluate."""

    centre: Array
    points: Array
    factor: Array
    whitening: Array
    alpha: Array


def smooth_covariance(a: Array, b: Array, scales: Array) -> Array:
    """Matern 5/2 of unit variance between rows: (1 + d + d^2 / 3) exp(-d), d = sqrt(5) distance."""
    a, b = a / scales, b / scales
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    d = np.sqrt(5.0 * np.maximum(square, 0.0))
    return np.asarray((1 + d * (1 + d / 3)) * np.exp(-d))


def covariance(model: EfficiencyModel, a: Array, b: Array) -> Array:
    """Prior covariance of g between rows of centred features."""
    smooth = smooth_covariance(a, b, np.array(model.scales))
    return np.asarray(LEVEL**2 + model.slope**2 * (a @ b.T) + model.signal**2 * smooth)


@lru_cache(maxsize=256)
def condition(model: EfficiencyModel) -> Posterior:
    """Factorise the points' covariance, once per model; O(n^3)."""
    raw = np.array(model.points)
    centre = raw.mean(axis=0)
    points = raw - centre
    noisy = covariance(model, points, points) + model.noise**2 * np.eye(len(points))
    factor = cholesky(noisy, lower=True)
    whitening = solve_triangular(factor, np.eye(len(points)), lower=True)
    alpha = cho_solve((factor, True), np.array(model.residuals))
    return Posterior(centre, points, factor, whitening, alpha)


def predict(model: EfficiencyModel, features: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of log(seconds / roofline seconds) of a measurement.

    Rows of `features` (num_ops, num_features) may repeat: each distinct one is evaluated once.
    """
    distinct, back = np.unique(features, axis=0, return_inverse=True)
    blocks = [distinct[i : i + BLOCK] for i in range(0, len(distinct), BLOCK)]
    parts = [_evaluate(model, block) for block in blocks]
    mean = np.concatenate([m for m, _ in parts]) if parts else np.empty(0)
    std = np.concatenate([s for _, s in parts]) if parts else np.empty(0)
    return mean[back.ravel()], std[back.ravel()]


def _evaluate(model: EfficiencyModel, features: Array) -> tuple[Array, Array]:
    posterior = condition(model)
    centred = features - posterior.centre
    inside = np.clip(centred, posterior.points.min(axis=0), posterior.points.max(axis=0))
    outside = ((centred - inside) ** 2).sum(axis=1)
    across = covariance(model, posterior.points, inside)
    mean = across.T @ posterior.alpha
    shrink = posterior.whitening @ across
    prior = LEVEL**2 + model.slope**2 * (inside**2).sum(axis=1) + model.signal**2
    variance = np.maximum(prior - (shrink**2).sum(axis=0), 0.0)
    return mean, np.sqrt(variance + model.slope**2 * outside + model.noise**2)


def interval(model: EfficiencyModel, std: Array) -> Array:
    """Half of the 90 % interval in logarithms."""
    return np.asarray(Z_90 * model.interval_scale * std)
