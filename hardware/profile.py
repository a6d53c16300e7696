"""Device profiles: what one kind of device can do."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from hardware.documents import STRICT, nearest
from hardware.efficiency import EfficiencyModel, LinearModel
from hardware.provenance import ERROR_BAND, Level, Provenance

__all__ = ["ERROR_BAND", "DeviceKind", "DeviceProfile", "Level", "Provenance"]

DeviceKind = Literal["gpu", "tpu", "cpu", "fpga", "npu"]

OPTIONAL_FIGURES = (
    *("power_w", "num_compute_units", "cache_bytes", "clock_hz"),
    *("process_nm", "issue_share", "idle_power_w"),
)


DTYPES = (
    *("float64", "float32", "tfloat32", "bfloat16", "float16", "float8", "float4"),
    *("int8", "int4"),
)
OP_CLASSES = (
    *("matmul", "conv", "attention", "elementwise", "norm", "softmax"),
    *("pool", "embedding", "reduce", "copy", "other", "default"),
)


@dataclass(frozen=True)
class DeviceProfile:
    """A kind of device.

    Attributes:
        peak_flops_per_s: dense peak by dtype (FLOP/s). A dtype that is not listed is not supported.
        memory_bytes: capacity for parameters and activations.
        memory_bytes_per_s: main-memory bandwidth, reads plus writes. Unknown where the
            operator times are literal and no peak is listed.
        launch_overhead_s: seconds added to every operator, whatever its size.
        efficiency: share of peak (compute kinds) or of bandwidth (memory kinds) that operators
            of a kind reach, 0 to 1; `default` stands for kinds that are not listed.
        power_w: board power under load.
        idle_power_w: power of the device when it is on and does nothing.
        num_compute_units: what works side by side: streaming multiprocessors, compute units, cores.
        cache_bytes: last-level cache on the chip (L2 of a GPU, L3 of a CPU).
        clock_hz: boost clock, at which the peaks are reached.
        process_nm: name of the chip's process node, in nm.
        issue_share: share of the instruction issue slots that float32 arithmetic takes at peak, 0
            to 1; what is left is for loads and addresses.
        op_times: efficiency models by operator class ('conv'), or by class and dtype
            ('matmul/bfloat16') where they differ; a class without one is costed by the roofline.
        aliases: other names that find it, e.g. what torch reports.
        sources: where single figures come from, by name: `memory_bytes`,
            `peak_flops_per_s.int8`.
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
    process_nm: float | None = None
    issue_share: float | None = None
    idle_power_w: float | None = None
    op_times: dict[str, EfficiencyModel | LinearModel] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse figures that no device can have."""
        if not (self.peak_flops_per_s or self.provenance.level == "literal"):
            raise ValueError(f"device '{self.name}': peak_flops_per_s lists no dtype")
        positive = self.figures | {f"efficiency.{k}": v for k, v in self.efficiency.items()}
        for key, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"device '{self.name}': {key} must be positive, got {value}")
        if not (math.isfinite(self.launch_overhead_s) and self.launch_overhead_s >= 0):
            raise ValueError(
                f"device '{self.name}': launch_overhead_s must not be negative, "
                f"got {self.launch_overhead_s}"
            )
        self._check_names("peak_flops_per_s", self.peak_flops_per_s, DTYPES)
        self._check_names("efficiency", self.efficiency, OP_CLASSES)
        known = {field.name for field in fields(self)}
        for key in self.sources:
            if key.split(".")[0] not in known:
                raise ValueError(f"device '{self.name}': sources names '{key}', which is no figure")

    def _check_names(self, key: str, found: Iterable[str], known: tuple[str, ...]) -> None:
        for name in found:
            if name not in known:
                hint = nearest(name, list(known))
                raise ValueError(f"device '{self.name}': {key} names '{name}'{hint}")

    @property
    def figures(self) -> dict[str, float]:
        """Its figures by name, peaks as `peak_flops_per_s.DTYPE`; what is not known is left out."""
        known = {f"peak_flops_per_s.{k}": v for k, v in self.peak_flops_per_s.items()}
        known["memory_bytes"] = self.memory_bytes
        if self.peak_flops_per_s:
            known["memory_bytes_per_s"] = self.memory_bytes_per_s
        optional = {key: getattr(self, key) for key in OPTIONAL_FIGURES}
        return known | {key: value for key, value in optional.items() if value is not None}

    def source(self, figure: str) -> str:
        """Where a figure comes from; the profile's own provenance unless `sources` says more."""
        whole = figure.split(".")[0]
        return self.sources.get(figure) or self.sources.get(whole) or str(self.provenance)

    def op_time(self, kind: str, dtype: str) -> EfficiencyModel | LinearModel | None:
        """The efficiency model of an operator class and dtype, if there is one."""
        return self.op_times.get(f"{kind}/{dtype}") or self.op_times.get(kind)

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
