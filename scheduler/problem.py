"""The placement problem: what every algorithm is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware.cluster import Cluster, Link
from hardware.documents import nearest
from scheduler.costs import CostTable
from scheduler.graph import Graph

Objective = Literal["latency", "throughput", "cost"]
Placement = Mapping[str, str]


@dataclass(frozen=True)
class Problem:
    """A graph, a cluster, the times of the former on the latter, and what is asked for.

    Attributes:
        pins: operator name, or module path, to the device that it must run on.
        memory_headroom: share of every device's memory that must stay free, 0 to 1.
        usd_per_hour: rent of the whole cluster; needed by the objective `cost`.
        num_micro_batches: runs of the graph that make one batch; they follow each other through
            the pipeline.
    """

    graph: Graph
    cluster: Cluster
    costs: CostTable
    objective: Objective = "throughput"
    pins: Mapping[str, str] = field(default_factory=dict)
    memory_headroom: float = 0.1
    usd_per_hour: float | None = None
    num_micro_batches: int = 1

    def __post_init__(self) -> None:
        """Refuse pins that name nothing and a headroom that leaves nothing."""
        if not 0 <= self.memory_headroom < 1:
            raise ValueError(
                f"memory_headroom must be at least 0 and below 1, got {self.memory_headroom}"
            )
        if self.num_micro_batches < 1:
            raise ValueError(f"num_micro_batches must be at least 1, got {self.num_micro_batches}")
        if self.objective == "cost" and self.usd_per_hour is None:
            raise ValueError(
                f"objective cost needs a price, and cluster '{self.cluster.name}' has none; "
                "name instances with a price, or set prices.usd_per_hour"
            )
        for target, device in self.pins.items():
            if device not in self.cluster.devices:
                known = list(self.cluster.devices)
                raise ValueError(
                    f"pin '{target}': unknown device '{device}'{nearest(device, known)}"
                )
            if not any(_matches(target, op.name, op.module) for op in self.graph.ops):
                names = [*self.graph.by_name, *(op.module for op in self.graph.ops if op.module)]
                close = nearest(target, names) if len(names) < 50 else ""
                raise ValueError(f"pin '{target}': no operator or module has this name{close}")

    @property
    def batch(self) -> int:
        """Inferences in one batch."""
        return self.graph.samples * self.num_micro_batches

    @cached_property
    def pinned(self) -> dict[str, str]:
        """Device by operator name, for the operators that a pin names; the last pin wins."""
        return {
            op.name: device
            for target, device in self.pins.items()
            for op in self.graph.ops
            if _matches(target, op.name, op.module)
        }

    @cached_property
    def device_index(self) -> dict[str, int]:
        """Column of each device in the cost table."""
        return {device: j for j, device in enumerate(self.costs.devices)}

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Times (num_ops, num_devices), infinite where a pin forbids the device."""
        seconds = self.costs.seconds.copy()
        for i, op in enumerate(self.graph.ops):
            if op.name in self.pinned:
                allowed = self.device_index[self.pinned[op.name]]
                seconds[i, [j for j in range(seconds.shape[1]) if j != allowed]] = np.inf
        return seconds

    @cached_property
    def links(self) -> dict[tuple[str, str], Link]:
        """Links by (src, dst)."""
        return {(link.src, link.dst): link for link in self.cluster.links}

    def transfer_s(self, num_bytes: float, src: str, dst: str) -> float:
        """Seconds to move bytes between two devices; infinite where no link joins them."""
        if src == dst:
            return 0.0
        link = self.links.get((src, dst))
        return link.seconds(num_bytes) if link else np.inf

    def memory_limit_bytes(self, device: str) -> float:
        """Memory that a plan may use on a device."""
        return self.cluster.devices[device].memory_bytes * (1 - self.memory_headroom)


def _matches(target: str, name: str, module: str) -> bool:
    return target == name or module == target or module.startswith(target + ".")
