"""Fitting efficiency models, judging them on points left out, and choosing what to measure next.

Sources: Rasmussen, Williams, "Gaussian Processes for Machine Learning", MIT Press 2006: marginal
likelihood and its gradient (5.9), leaving points out in closed form (5.12). Cohn, "Neural network
exploration using optimal experiment design", NeurIPS 1993: measure where the summed variance of
all candidates falls most.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from hardware.efficiency import EfficiencyModel
from hardware.provenance import Provenance
from scheduler.cost_model.gaussian_process import LEVEL, Z_90, Array, condition, covariance

PRIOR_MEDIAN = {"slope": 0.05, "signal": 0.3, "noise": 0.05, "scale": 3.0}
PRIOR_SPREAD = {"slope": 1.0, "signal": 0.7, "noise": 0.7, "scale": 0.8}
"""Log-normal priors of the constants, in units of log seconds and log features: weak, so that a
dozen points decide, and enough that three points do not run away."""
NOISE_FLOOR = 0.005


def fit(
    features: Sequence[str],
    points: Array,
    residuals: Array,
    provenance: Provenance,
    groups: Sequence[object] | None = None,
) -> EfficiencyModel:
    """Fit a model to points (num_points, num_features) by maximum a posteriori.

    `residuals` are log(measured / roofline seconds). The interval is scaled so that it covers
    90 % of the points when each, or with `groups` each group, is left out. O(n^3) a step.

    Raises:
        ValueError: no points, or figures that are not finite.
    """
    points = np.atleast_2d(np.asarray(points, dtype=float))
    residuals = np.asarray(residuals, dtype=float)
    if not len(residuals) or points.shape != (len(residuals), len(features)):
        raise ValueError(f"points must be ({len(residuals)}, {len(features)}), got {points.shape}")
    if not (np.isfinite(points).all() and np.isfinite(residuals).all()):
        raise ValueError("points and residuals must be finite numbers")
    theta = _best_constants(points - points.mean(axis=0), residuals)
    slope, signal, noise, *scales = (_short(value) for value in np.exp(theta))
    model = EfficiencyModel(
        features=tuple(features),
        slope=slope,
        scales=tuple(scales),
        signal=signal,
        noise=max(noise, NOISE_FLOOR),
        points=tuple(tuple(_short(x) for x in row) for row in points),
        residuals=tuple(_short(x) for x in residuals),
        interval_scale=1.0,
        provenance=provenance,
    )
    return with_interval(model, groups)


def with_interval(
    model: EfficiencyModel, groups: Sequence[object] | None = None
) -> EfficiencyModel:
    """The model with its 90 % interval scaled to cover 90 % of the points left out."""
    errors, std = leave_out(model, groups)
    ratio = np.sort(np.abs(errors) / std)
    rank = min(len(ratio) - 1, int(np.ceil(0.9 * (len(ratio) + 1))) - 1)
    scale = float(np.clip(ratio[rank] / Z_90, 0.5, 4.0))
    return replace(model, interval_scale=_short(scale))


def leave_out(
    model: EfficiencyModel, groups: Sequence[object] | None = None
) -> tuple[Array, Array]:
    """Error (measured minus predicted logarithm) and deviation of points not fitted.

    Each point, or each group of points, is predicted from all the others; the constants stay.
    """
    posterior = condition(model)
    inverse = cho_solve((posterior.factor, True), np.eye(len(model.points)))
    errors, std = np.empty(len(model.points)), np.empty(len(model.points))
    labels = list(range(len(model.points))) if groups is None else list(groups)
    for label in dict.fromkeys(labels):
        rows = np.array([i for i, other in enumerate(labels) if other == label])
        block = np.linalg.inv(inverse[np.ix_(rows, rows)])
        errors[rows] = block @ posterior.alpha[rows]
        std[rows] = np.sqrt(np.diag(block))
    return errors, std


def most_telling(model: EfficiencyModel, candidates: Array, num: int) -> list[int]:
    """The `num` candidates whose measurement lowers the summed variance of all of them most."""
    posterior = condition(model)
    centred = candidates - posterior.centre
    across = covariance(model, posterior.points, centred)
    left = covariance(model, centred, centred)
    left -= across.T @ cho_solve((posterior.factor, True), across)
    chosen: list[int] = []
    for _ in range(min(num, len(candidates))):
        spread = np.maximum(np.diag(left), 0.0) + model.noise**2
        gain = (left**2).sum(axis=0) / spread
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        left -= np.outer(left[:, best], left[best]) / spread[best]
    return chosen


def farthest(candidates: Array, num: int) -> list[int]:
    """`num` candidates far from each other, from the middle outwards, each feature by its range.

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", TCS 38, 1985,
    doi:10.1016/0304-3975(85)90224-5.
    """
    span = np.ptp(candidates, axis=0)
    unit = (candidates - candidates.mean(axis=0)) / np.where(span > 0, span, 1.0)
    chosen = [int(np.argmin((unit**2).sum(axis=1)))]
    away = ((unit - unit[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(num, len(candidates)):
        chosen.append(int(np.argmax(away)))
        away = np.minimum(away, ((unit - unit[chosen[-1]]) ** 2).sum(axis=1))
    return chosen


def _best_constants(x: Array, y: Array) -> Array:
    num = x.shape[1]
    names = ["slope", "signal", "noise"] + ["scale"] * num
    median = np.log([PRIOR_MEDIAN[name] for name in names])
    spread = np.array([PRIOR_SPREAD[name] for name in names])
    squares = np.array([(column[:, None] - column[None, :]) ** 2 for column in x.T])

    def loss(theta: Array) -> tuple[float, Array]:
        value, gradient = _negative_log_likelihood(theta, x @ x.T, squares, y)
        away = (theta - median) / spread
        return value + 0.5 * float(away @ away), gradient + away / spread

    bounds = [(m - 4 * s, m + 4 * s) for m, s in zip(median, spread, strict=True)]
    found = minimize(loss, median, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x)


def _negative_log_likelihood(
    theta: Array, linear: Array, squares: Array, y: Array
) -> tuple[float, Array]:
    """-log p(y | theta) and its gradient: 0.5 tr((K^-1 - a a^T) dK), a = K^-1 y."""
    slope, signal, noise = np.exp(2 * theta[:3])
    shares = squares / np.exp(2 * theta[3:])[:, None, None]
    d = np.sqrt(5 * shares.sum(axis=0))
    decay = np.exp(-d)
    smooth = (1 + d + d * d / 3) * decay
    K = LEVEL**2 + slope * linear + signal * smooth + (noise + 1e-8) * np.eye(len(y))
    factor = cholesky(K, lower=True)
    alpha = cho_solve((factor, True), y)
    W = cho_solve((factor, True), np.eye(len(y))) - np.outer(alpha, alpha)
    changes = [2 * slope * linear, 2 * signal * smooth, 2 * noise * np.eye(len(y))]
    first = [0.5 * float((W * change).sum()) for change in changes]
    inner = W * (signal * 5 / 3) * (1 + d) * decay
    second = [0.5 * float((inner * share).sum()) for share in shares]
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor)).sum())
    return value, np.array(first + second)


def _short(value: float) -> float:
    """Seven digits: what a file holds is what was fitted."""
    return float(f"{value:.7g}")
