"""When hardware is not there: failures, and spot instances that the cloud takes back.

replica  | up          | down   | up               | down ...
         0        down_s        up_s          down_s
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from hardware.documents import STRICT

Cause = Literal["failed", "preempted"]


class Outage(NamedTuple):
    """A replica's hardware is gone from `down_s`; from `up_s` it can be had again."""

    down_s: float
    up_s: float
    cause: Cause = "failed"


Outages = tuple[tuple[Outage, ...], ...]
"""Of every replica, in order of time; they do not overlap."""


@dataclass(frozen=True)
class Failures:
    """Hardware that breaks and is repaired, each replica's by itself.

    Attributes:
        mtbf_s: mean time from repair to the next failure.
        mttr_s: mean time to repair, drawn as exponential.
        shape: of the Weibull times between failures: 1 is exponential, below 1 failures follow
            one another, above 1 hardware wears out.
    """

    __pydantic_config__ = STRICT
    mtbf_s: float
    mttr_s: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        """Refuse times that are not positive."""
        for key in ("mtbf_s", "shape"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"serving.failures: {key} must be positive, got {value}")
        if not (math.isfinite(self.mttr_s) and self.mttr_s >= 0):
            raise ValueError(f"serving.failures: mttr_s must not be negative, got {self.mttr_s}")

    def up_s(self, rng: np.random.Generator) -> float:
        """A time between failures: mean `mtbf_s` = scale * gamma(1 + 1/shape)."""
        scale = self.mtbf_s / math.gamma(1 + 1 / self.shape)
        return scale * float(rng.weibull(self.shape))

    def outages(
        self, num_replicas: int, until_s: float, rng: np.random.Generator
    ) -> tuple[tuple[Outage, ...], ...]:
        """Failures of every replica that begin before `until_s`; all work at 0."""

        def down_s() -> float:
            return float(rng.exponential(self.mttr_s))

        return tuple(
            alternate(lambda: self.up_s(rng), down_s, until_s, "failed")
            for _ in range(num_replicas)
        )


def alternate(
    up_s: Callable[[], float], down_s: Callable[[], float], until_s: float, cause: Cause
) -> tuple[Outage, ...]:
    """Draw up and down times in turn, from up at 0, until `until_s`."""
    found, now = [], up_s()
    while now < until_s:
        end = now + down_s()
        found.append(Outage(now, end, cause))
        now = end + up_s()
    return tuple(found)


def merge(*several: Outages) -> Outages:
    """Outages of the same replicas for several causes; of those that overlap the first counts."""
    return tuple(_merge_one(sorted(sum(each, ()))) for each in zip(*several, strict=True))


def _merge_one(outages: Sequence[Outage]) -> tuple[Outage, ...]:
    merged: list[Outage] = []
    for outage in outages:
        if merged and outage.down_s < merged[-1].up_s:
            merged[-1] = merged[-1]._replace(up_s=max(merged[-1].up_s, outage.up_s))
        else:
            merged.append(outage)
    return tuple(merged)
