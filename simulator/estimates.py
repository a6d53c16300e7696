"""Estimates from independent runs, each with its confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from scipy.special import stdtrit

from scheduler.report import Quantiles, quantiles
from simulator.trace import Array

CONFIDENCE = 0.95
NUM_BLOCKS = 10
"""Parts of a single run, in order, that stand in for independent runs."""

Intervals = dict[str, tuple[float, float]]
"""Lowest and highest by statistic: mean, p50, p90, p95, p99."""


def blocks(values: Array) -> tuple[Quantiles, ...]:
    """Mean and quantiles of 10 parts of a run's values, in order."""
    return tuple(quantiles(part) for part in np.array_split(values, NUM_BLOCKS) if len(part))


def average(each: Sequence[Quantiles]) -> Quantiles:
    """The mean of each statistic over runs."""
    return Quantiles(*(float(np.mean([getattr(q, f.name) for q in each])) for f in _STATISTICS))


def around(
    center: Quantiles, each: Sequence[Quantiles], confidence: float = CONFIDENCE
) -> Intervals:
    """Student's confidence interval of each statistic about a center, from its values by run."""
    return {
        f.name: student(getattr(center, f.name), [getattr(q, f.name) for q in each], confidence)
        for f in _STATISTICS
    }


def student(
    center: float, values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Student's interval of a mean of times: center -+ t s / sqrt(n), not below 0.

    A single value says nothing of the spread: the interval is the center alone.
    """
    if len(values) < 2:
        return (center, center)
    t = float(stdtrit(len(values) - 1, 0.5 + confidence / 2))
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return (max(0.0, center - half), center + half)


_STATISTICS = fields(Quantiles)
