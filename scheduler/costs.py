"""The cost model: seconds per operator and device.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model",
CACM 52(4), 2009, doi:10.1145/1498765.1498785: time is the larger of compute and memory time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.cluster import Cluster
from hardware.profile import ERROR_BAND, DeviceProfile, Provenance
from scheduler.graph import Graph, Op

COMPUTE_KINDS = frozenset({"matmul", "conv", "attention"})


@dataclass(frozen=True)
class CostTable:
    """Seconds per (operator, device), with the 90 % interval and where the figures come from.

    Attributes:
        devices: device ids, the columns.
        seconds: (num_ops, num_devices), in the graph's operator order; infinite where a device
            cannot run an operator.
        provenance: per device.
    """

    devices: tuple[str, ...]
    seconds: NDArray[np.float64]
    provenance: Mapping[str, Provenance]

    def __post_init__(self) -> None:
        """Refuse NaN and negative times."""
        if not (self.seconds >= 0).all():
            raise ValueError("operator times must be numbers from 0")

    def band(self, devices: list[str] | None = None) -> tuple[float, float]:
        """Factors (low, high) that 90 % of measured over predicted times lie between."""
        bands = [ERROR_BAND[self.provenance[d].level] for d in devices or self.devices]
        return min(low for low, _ in bands), max(high for _, high in bands)


def op_seconds(op: Op, profile: DeviceProfile) -> float:
    """Seconds for one operator on one kind of device.

    max(flops / (peak * efficiency), bytes / (bandwidth * efficiency)) + launch overhead;
    a view costs nothing.

    Raises:
        ValueError: the device does not support the operator's dtype.
    """
    if op.kind == "view":
        return 0.0
    share = profile.efficiency.get(op.kind, profile.efficiency.get("default", 1.0))
    memory_kind = "copy" if op.kind in COMPUTE_KINDS else op.kind
    params_read = 0 if op.kind == "embedding" else op.param_bytes  # only the rows looked up
    memory_share = profile.efficiency.get(memory_kind, profile.efficiency.get("default", 1.0))
    num_bytes = op.bytes_read + op.bytes_written + params_read
    memory_s = num_bytes / (profile.memory_bytes_per_s * memory_share)
    compute_s = 0.0
    if op.kind in COMPUTE_KINDS:
        compute_s = op.flops / (profile.flops_per_s(op.dtype) * share)
    return max(compute_s, memory_s) + profile.launch_overhead_s


def _seconds_or_never(op: Op, profile: DeviceProfile) -> float:
    supported = op.kind not in COMPUTE_KINDS or op.dtype in profile.peak_flops_per_s
    return op_seconds(op, profile) if supported else np.inf


def cost_table(graph: Graph, cluster: Cluster) -> CostTable:
    """Predict every operator on every device of a cluster.

    Raises:
        ValueError: no device supports the dtype of an operator.
    """
    by_profile = {
        id(profile): [_seconds_or_never(op, profile) for op in graph.ops]
        for profile in cluster.devices.values()
    }
    columns = [by_profile[id(profile)] for profile in cluster.devices.values()]
    for op, *times in zip(graph.ops, *columns, strict=True):
        if np.isinf(times).all():
            has = {p.name: ", ".join(p.peak_flops_per_s) for p in cluster.devices.values()}
            listed = "; ".join(f"{name} has {dtypes}" for name, dtypes in has.items())
            raise ValueError(f"operator '{op.name}': no device supports dtype {op.dtype}; {listed}")
    provenance = {device: profile.provenance for device, profile in cluster.devices.items()}
    return CostTable(tuple(cluster.devices), np.array(columns).T, provenance)


def rescale(measured: CostTable, base: CostTable, varied: CostTable) -> CostTable:
    """Carry measured times over to a varied graph: measured * (predicted varied / predicted base).

    `base` and `varied` are predictions of one cluster for the measured and the varied graph.
    """
    known = np.isfinite(base.seconds) & (base.seconds > 0)
    ratio = np.where(known, varied.seconds, 1.0) / np.where(known, base.seconds, 1.0)
    return CostTable(measured.devices, measured.seconds * ratio, measured.provenance)
