"""Efficiency models: how far the time of an operator class is from its roofline."""

import math
from dataclasses import dataclass

from hardware.documents import STRICT
from hardware.provenance import Provenance


@dataclass(frozen=True)
class EfficiencyModel:
    """The logarithm of seconds over roofline seconds, as a Gaussian process of named features.

    seconds = roofline seconds * exp(g(features)); g has a linear part and a smooth part (Matern
    5/2), conditioned on the points. `scheduler/cost_model/gaussian_process.py` evaluates it.

    Attributes:
        features: names of the features; what they mean stands in
            `scheduler/cost_model/features.py`.
        slope: prior standard deviation of the linear part, per unit of every feature.
        scales: length of each feature over which the smooth part changes.
        signal: standard deviation of the smooth part.
        noise: standard deviation of a point's measurement.
        points: (num_points, num_features), what was measured.
        residuals: log(measured / roofline seconds) of each point.
        interval_scale: factor on the standard deviation with which the 90 % interval covers 90 %
            of the points when each is left out of the fit.
    """

    __pydantic_config__ = STRICT

    features: tuple[str, ...]
    slope: float
    scales: tuple[float, ...]
    signal: float
    noise: float
    points: tuple[tuple[float, ...], ...]
    residuals: tuple[float, ...]
    interval_scale: float
    provenance: Provenance

    def __post_init__(self) -> None:
        """Refuse figures that are not numbers, and lists whose lengths do not agree."""
        if not self.features or not self.points:
            raise ValueError("an efficiency model needs at least one feature and one point")
        if len(self.scales) != len(self.features):
            raise ValueError(f"scales must be {len(self.features)}, got {len(self.scales)}")
        if len(self.residuals) != len(self.points):
            raise ValueError(f"residuals must be {len(self.points)}, got {len(self.residuals)}")
        for point in self.points:
            if len(point) != len(self.features) or not all(map(math.isfinite, point)):
                raise ValueError(f"a point must be {len(self.features)} finite numbers: {point}")
        if not all(map(math.isfinite, self.residuals)):
            raise ValueError("residuals must be finite numbers")
        positive = {"signal": self.signal, "noise": self.noise, "slope": self.slope}
        positive |= {"interval_scale": self.interval_scale}
        positive |= {f"scales.{k}": v for k, v in zip(self.features, self.scales, strict=True)}
        for key, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key} must be positive, got {value}")


@dataclass(frozen=True)
class LinearModel:
    """The logarithm of seconds over roofline seconds as a weighted sum of named features.

    seconds = plain roofline seconds * exp(intercept + weights . features): what devices of a kind
    have in common, for those that were never measured. Plain: without assumed efficiencies.

    Attributes:
        features: names of the features; what they mean stands in
            `scheduler/cost_model/features.py`.
        spread: deviation of the logarithm, such that +- 1.645 of it hold 90 % of the operators of
            devices that were left out of the fit.
    """

    __pydantic_config__ = STRICT

    features: tuple[str, ...]
    intercept: float
    weights: tuple[float, ...]
    spread: float
    provenance: Provenance

    def __post_init__(self) -> None:
        """Refuse figures that are not numbers, and lists whose lengths do not agree."""
        if len(self.weights) != len(self.features):
            raise ValueError(f"weights must be {len(self.features)}, got {len(self.weights)}")
        if not all(map(math.isfinite, (self.intercept, *self.weights))):
            raise ValueError("intercept and weights must be finite numbers")
        if not (math.isfinite(self.spread) and self.spread > 0):
            raise ValueError(f"spread must be positive, got {self.spread}")
