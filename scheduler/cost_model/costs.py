"""The cost model: seconds per operator and device.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model",
CACM 52(4), 2009, doi:10.1145/1498765.1498785: time is the larger of compute and memory time. A
profile's efficiency models multiply it where it has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hardware.cluster import Cluster
from hardware.efficiency import LinearModel
from hardware.profile import DeviceProfile
from hardware.provenance import Level, Provenance
from scheduler.cost_model.features import (
    COMPUTE_KINDS,
    OpColumns,
    by_class,
    compute_seconds,
    feature_matrix,
    memory_seconds,
)
from scheduler.cost_model.gaussian_process import Z_90, interval, predict
from scheduler.cost_model.kernel_times import kernel_times
from scheduler.ir.graph import Graph, Op

Array = NDArray[np.float64]

COMMON_SHARE: dict[Level, float] = {
    # Share of the variance of an operator's error that all operators of a device have in common
    # (the state of the machine, a wrong peak); the rest averages out in a sum. ASSUMED.
    "datasheet": 1.0,
    "fitted": 0.5,
    "calibrated": 0.5,
    "measured": 1.0,
    "literal": 1.0,
}


@dataclass(frozen=True)
class CostTable:
    """Seconds per (operator, device), with the 90 % interval and where the figures come from.

    Attributes:
        devices: device ids, the columns.
        seconds: (num_ops, num_devices), in the graph's operator order; infinite where a device
            cannot run an operator.
        provenance: per device.
        low_s, high_s: the 90 % interval of each; by default that of the provenance's level.
        common: (num_ops, num_devices) share of the variance of each operator's error that it has in
            common with the others of its device; by default that of the provenance's level.
        levels: per device, the level of each operator class where it is not the device's own.
        transfers: seconds (num_devices, num_devices), src by dst, of the tensors whose transfer
            times are literal; all others take those of the cluster's links.
        ends: of those tensors, the seconds (num_devices,) that each device itself spends to send
            or to receive it, where transfers keep devices busy.
    """

    devices: tuple[str, ...]
    seconds: Array
    provenance: Mapping[str, Provenance]
    low_s: Array = field(default=cast(Array, None))
    high_s: Array = field(default=cast(Array, None))
    common: Array = field(default=cast(Array, None))
    levels: Mapping[str, Mapping[str, Level]] = field(default_factory=dict)
    transfers: Mapping[str, Array] = field(default_factory=dict)
    ends: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse NaN, negative times and intervals that do not hold them."""
        if not (self.seconds >= 0).all():
            raise ValueError("operator times must be numbers from 0")
        for tensor, seconds in (*self.transfers.items(), *self.ends.items()):
            if not (seconds >= 0).all():
                raise ValueError(f"tensor '{tensor}': transfer times must be numbers from 0")
        bands = np.array([self.provenance[d].band for d in self.devices])
        if self.low_s is None:
            object.__setattr__(self, "low_s", self.seconds * bands[:, 0])
        if self.high_s is None:
            object.__setattr__(self, "high_s", self.seconds * bands[:, 1])
        if self.common is None:
            shares = np.array([COMMON_SHARE[self.provenance[d].level] for d in self.devices])
            object.__setattr__(self, "common", np.broadcast_to(shares, self.seconds.shape))
        if not ((self.low_s <= self.seconds) & (self.seconds <= self.high_s)).all():
            raise ValueError("operator times must lie in their intervals")

    def origin(self, device: str) -> str:
        """Where a device's times come from; operator classes of another level after it."""
        kinds: dict[Level, list[str]] = {}
        for kind, level in sorted(self.levels.get(device, {}).items()):
            kinds.setdefault(level, []).append(kind)
        others = [f"{', '.join(names)}: {level}" for level, names in kinds.items()]
        return "; ".join([str(self.provenance[device]), *others])

    def levels_of(self, devices: Sequence[str]) -> str:
        """The levels of all times on some devices: 'datasheet and fitted'."""
        own = {self.provenance[device].level for device in devices}
        return " and ".join(sorted(own.union(*(self.levels.get(d, {}).values() for d in devices))))

    def sum_s(self, device: str, rows: Sequence[int] | None = None) -> tuple[float, float, float]:
        """Low end, value and high end of the time of several operators on a device (90 %).

        Half-widths h of the operators add up as they are in their common part (share c of the
        variance) and as squares in their own: sqrt((sum sqrt(c) h)^2 + sum (1 - c) h^2).
        """
        column = self.devices.index(device)
        chosen = np.isfinite(self.seconds[:, column])
        if rows is not None:
            chosen &= np.isin(np.arange(len(chosen)), rows)
        seconds, low, high, share = (
            table[chosen, column] for table in (self.seconds, self.low_s, self.high_s, self.common)
        )
        total = float(seconds.sum())
        below, above = (_joined(half, share) for half in (seconds - low, high - seconds))
        return max(0.0, total - below), total, total + above

    def band(self, placed: Mapping[str, Sequence[int]]) -> tuple[float, float]:
        """Factors (low, high) that 90 % of measured over predicted times lie between.

        Those of the sum over all devices of their operators (rows by device), as if the errors of
        two devices were one: a device counts by its share of the time.
        """
        sums = np.array([self.sum_s(device, rows) for device, rows in placed.items()])
        low, total, high = sums.reshape(-1, 3).sum(axis=0)
        return (float(low / total), float(high / total)) if total > 0 else (1.0, 1.0)


def _joined(half: Array, common: Array) -> float:
    shared = float((np.sqrt(common) * half).sum())
    return float(np.sqrt(shared**2 + ((1 - common) * half**2).sum()))


def roofline_seconds(ops: OpColumns, profile: DeviceProfile) -> Array:
    """Seconds of operators of one class on one kind of device; a view costs nothing.

    max(flops / (peak * efficiency), bytes / (bandwidth * efficiency)) + launch overhead.

    Raises:
        ValueError: the device does not support the operators' dtype.
    """
    if ops.kind == "view":
        return np.zeros(len(ops.ops))
    default = profile.efficiency.get("default", 1.0)
    memory_kind = "copy" if ops.kind in COMPUTE_KINDS else ops.kind
    seconds = memory_seconds(ops, profile) / profile.efficiency.get(memory_kind, default)
    if ops.kind in COMPUTE_KINDS:
        share = profile.efficiency.get(ops.kind, default)
        seconds = np.maximum(seconds, compute_seconds(ops, profile) / share)
    return np.asarray(seconds + profile.launch_overhead_s)


def plain_roofline_seconds(ops: OpColumns, profile: DeviceProfile) -> Array:
    """As `roofline_seconds`, at full peak and bandwidth."""
    return roofline_seconds(ops, replace(profile, efficiency={}))


def op_seconds(op: Op, profile: DeviceProfile) -> float:
    """Roofline seconds of one operator, as `roofline_seconds`."""
    return float(roofline_seconds(OpColumns(op.kind, op.dtype, (op,)), profile)[0])


def class_seconds(ops: OpColumns, profile: DeviceProfile) -> tuple[Array, Array, Array, Level]:
    """Low end, value and high end (90 %) of operators of one class, and the level of the figures.

    From the profile's efficiency model of the class; operators that lack a size it needs, and
    classes without one, by the roofline. Infinite where the dtype is not supported.
    """
    level = profile.provenance.level
    if ops.kind in COMPUTE_KINDS and ops.dtype not in profile.peak_flops_per_s:
        never = np.full(len(ops.ops), np.inf)
        return never, never, never, level
    seconds = roofline_seconds(ops, profile)
    low, high = (seconds * factor for factor in profile.provenance.band)
    kernels = kernel_times(ops, profile)
    if kernels is not None:
        timed, spread, kernel = kernels
        there = np.isfinite(timed)
        breadth = np.exp(Z_90 * spread[there])
        seconds[there] = timed[there]
        low[there], high[there] = seconds[there] / breadth, seconds[there] * breadth
        return low, seconds, high, kernel.provenance.level
    model = None if ops.kind == "view" else profile.op_time(ops.kind, ops.dtype)
    if model is None:
        return low, seconds, high, level
    features = feature_matrix(model.features, ops, profile)
    known = np.isfinite(features).all(axis=1)
    if isinstance(model, LinearModel):
        seconds[known] = plain_roofline_seconds(ops, profile)[known]
        mean = model.intercept + features[known] @ np.array(model.weights)
        half = np.full(len(mean), Z_90 * model.spread)
    else:
        mean, std = predict(model, features[known])
        half = interval(model, std)
    seconds[known] *= np.exp(mean)
    width = np.exp(half)
    low[known], high[known] = seconds[known] / width, seconds[known] * width
    return low, seconds, high, model.provenance.level


def cost_table(graph: Graph, cluster: Cluster) -> CostTable:
    """Predict every operator on every device of a cluster.

    Raises:
        ValueError: no device supports the dtype of an operator.
    """
    classes = {
        key: (rows, OpColumns(*key, tuple(graph.ops[i] for i in rows)))
        for key, rows in by_class(graph.ops).items()
    }
    profiles = {id(profile): profile for profile in cluster.devices.values()}
    low_s, seconds, high_s, common = (np.empty((len(graph.ops), len(profiles))) for _ in range(4))
    levels: dict[int, dict[str, Level]] = {key: {} for key in profiles}
    for column, (key, profile) in enumerate(profiles.items()):
        for rows, ops in classes.values():
            low_s[rows, column], seconds[rows, column], high_s[rows, column], level = class_seconds(
                ops, profile
            )
            common[rows, column] = COMMON_SHARE[level]
            if level != profile.provenance.level:
                levels[key][ops.kind] = level
    never = np.isinf(seconds).all(axis=1)
    if never.any():
        _refuse(graph.ops[int(np.argmax(never))], cluster)
    keys = list(profiles)
    columns = [keys.index(id(profile)) for profile in cluster.devices.values()]
    return CostTable(
        tuple(cluster.devices),
        seconds[:, columns],
        {device: profile.provenance for device, profile in cluster.devices.items()},
        low_s[:, columns],
        high_s[:, columns],
        common[:, columns],
        {device: levels[id(profile)] for device, profile in cluster.devices.items()},
    )


def _refuse(op: Op, cluster: Cluster) -> None:
    has = {p.name: ", ".join(p.peak_flops_per_s) for p in cluster.devices.values()}
    listed = "; ".join(f"{name} has {dtypes}" for name, dtypes in has.items())
    raise ValueError(f"operator '{op.name}': no device supports dtype {op.dtype}; {listed}")


def rescale(measured: CostTable, base: CostTable, varied: CostTable) -> CostTable:
    """Carry measured times over to a varied graph: measured * (predicted varied / predicted base).

    `base` and `varied` are predictions of one cluster for the measured and the varied graph.
    """
    known = np.isfinite(base.seconds) & (base.seconds > 0)
    ratio = np.where(known, varied.seconds, 1.0) / np.where(known, base.seconds, 1.0)
    return CostTable(
        measured.devices,
        measured.seconds * ratio,
        measured.provenance,
        measured.low_s * ratio,
        measured.high_s * ratio,
        measured.common,
        measured.levels,
    )
