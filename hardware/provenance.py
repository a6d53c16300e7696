"""Where figures come from, and how far predictions of each level may be off."""

from dataclasses import dataclass
from typing import Literal

from hardware.documents import STRICT

Level = Literal["datasheet", "fitted", "calibrated", "measured", "literal"]

ERROR_BAND: dict[Level, tuple[float, float]] = {
    # Factors on a predicted time that 90 % of true times lie between, where no model of an
    # operator class gives its own. measured and calibrated: from the runs of
    # benchmarks/main_job.py. datasheet and fitted: ASSUMED from published errors of rooflines
    # (30 to 55 % in the median, most of them too fast).
    "datasheet": (0.6, 2.2),
    "fitted": (0.7, 1.6),
    "calibrated": (0.75, 1.35),
    "measured": (0.85, 1.25),
    "literal": (1.0, 1.0),
}


@dataclass(frozen=True)
class Provenance:
    """Where a figure comes from: its level, when it was taken and on what.

    Attributes:
        busy_share: of the machine that other processes kept busy while it was measured, 0 to 1.
    """

    __pydantic_config__ = STRICT

    level: Level
    source: str
    date: str = ""
    busy_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.busy_share < 1:
            raise ValueError(f"busy_share must be from 0 and below 1, got {self.busy_share}")

    @property
    def band(self) -> tuple[float, float]:
        """Factors on a predicted time that 90 % of true times lie between.

        A time measured on a busy machine may have been spent waiting, by the share of the others.
        """
        low, high = ERROR_BAND[self.level]
        return low * (1 - self.busy_share), high

    def __str__(self) -> str:
        """Word it for a person: 'calibrated 2026-11-23 on ...'."""
        busy = f"while others kept {self.busy_share:.0%} of the machine busy"
        parts = (self.level, self.date, f"({self.source})", busy if self.busy_share else "")
        return " ".join(part for part in parts if part)
