"""How many tokens requests bring and ask for."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.documents import STRICT


@dataclass(frozen=True)
class Lengths:
    """Token counts: lognormal about a mean, from 1 up to `max`.

    Attributes:
        cv: coefficient of variation; 0: all are the mean.
    """

    __pydantic_config__ = STRICT
    mean: float
    cv: float = 0.0
    max: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        if not (math.isfinite(self.mean) and self.mean >= 1):
            raise ValueError(f"tokens: mean must be at least 1, got {self.mean}")
        if not (math.isfinite(self.cv) and self.cv >= 0):
            raise ValueError(f"tokens: cv must not be negative, got {self.cv}")
        if self.max is not None and self.max < self.mean:
            raise ValueError(f"tokens: max must be at least the mean ({self.mean}), got {self.max}")


def draw_lengths(lengths: Lengths, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Token counts of `num` requests."""
    if lengths.cv == 0:
        return np.full(num, round(lengths.mean), np.int64)
    variance = math.log1p(lengths.cv**2)
    drawn = rng.lognormal(math.log(lengths.mean) - variance / 2, math.sqrt(variance), num)
    limit = np.inf if lengths.max is None else lengths.max
    return np.clip(np.rint(drawn), 1, limit).astype(np.int64)
