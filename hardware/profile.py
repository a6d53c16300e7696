"""Device profiles: what one kind of device can do."""

import math
from dataclasses import dataclass, field
from typing import Literal

from hardware.documents import STRICT

DeviceKind = Literal["gpu", "tpu", "cpu", "fpga", "npu"]
Level = Literal["datasheet", "fitted", "calibrated", "measured", "literal"]

ERROR_BAND: dict[Level, tuple[float, float]] = {
    # Factors on a predicted time that 90 % of true times lie between. measured and calibrated:
    # from the runs of benchmarks/main_job.py. datasheet and fitted: ASSUMED from published errors
    # of rooflines (30 to 55 % in the median, most of them too fast).
    "datasheet": (0.6, 2.2),
    "fitted": (0.7, 1.6),
    "calibrated": (0.75, 1.35),
    "measured": (0.85, 1.25),
    "literal": (1.0, 1.0),
}


@dataclass(frozen=True)
class Provenance:
    """Where a figure comes from: its level, when it was taken and on what."""

    __pydantic_config__ = STRICT

    level: Level
    source: str
    date: str = ""

    def __str__(self) -> str:
        """Word it for a person: 'calibrated 2026-11-23 on ...'."""
        return " ".join(part for part in (self.level, self.date, f"({self.source})") if part)


@dataclass(frozen=True)
class DeviceProfile:
    """A kind of device.

    Attributes:
        peak_flops_per_s: dense peak by dtype (FLOP/s). A dtype that is not listed is not supported.
        memory_bytes: capacity for parameters and activations.
        memory_bytes_per_s: main-memory bandwidth, reads plus writes.
        launch_overhead_s: seconds added to every operator, whatever its size.
        efficiency: share of peak (compute kinds) or of bandwidth (memory kinds) that operators
            of a kind reach, 0 to 1; `default` stands for kinds that are not listed.
        power_w: board power under load.
        num_compute_units: what works side by side: streaming multiprocessors, compute units, cores.
        cache_bytes: last-level cache on the chip (L2 of a GPU, L3 of a CPU).
        clock_hz: boost clock, at which the peaks are reached.
    """

    __pydantic_config__ = STRICT

    name: str
    kind: DeviceKind
    peak_flops_per_s: dict[str, float]
    memory_bytes: int
    memory_bytes_per_s: float
    provenance: Provenance
    launch_overhead_s: float = 0.0
    efficiency: dict[str, float] = field(default_factory=dict)
    power_w: float | None = None
    num_compute_units: int | None = None
    cache_bytes: int | None = None
    clock_hz: float | None = None

    def __post_init__(self) -> None:
        """Refuse figures that no device can have."""
        if not self.peak_flops_per_s:
            raise ValueError(f"device '{self.name}': peak_flops_per_s lists no dtype")
        figures = {f"peak_flops_per_s.{k}": v for k, v in self.peak_flops_per_s.items()}
        figures |= {
            "memory_bytes": self.memory_bytes,
            "memory_bytes_per_s": self.memory_bytes_per_s,
        }
        figures |= {f"efficiency.{k}": v for k, v in self.efficiency.items()}
        for key in ("power_w", "num_compute_units", "cache_bytes", "clock_hz"):
            if getattr(self, key) is not None:
                figures[key] = getattr(self, key)
        for key, value in figures.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"device '{self.name}': {key} must be positive, got {value}")
        if not (math.isfinite(self.launch_overhead_s) and self.launch_overhead_s >= 0):
            raise ValueError(
                f"device '{self.name}': launch_overhead_s must not be negative, "
                f"got {self.launch_overhead_s}"
            )

    def flops_per_s(self, dtype: str) -> float:
        """Dense peak for a dtype (FLOP/s).

        Raises:
            ValueError: the device does not support the dtype.
        """
        if dtype not in self.peak_flops_per_s:
            known = ", ".join(sorted(self.peak_flops_per_s))
            raise ValueError(
                f"device '{self.name}' has no figure for dtype {dtype}; it has: {known}"
            )
        return self.peak_flops_per_s[dtype]
