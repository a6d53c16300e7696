"""The placement problem: what every algorithm is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from hardware.cluster import Cluster, Link
from hardware.documents import nearest
from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints
from scheduler.cost_model.costs import CostTable
from scheduler.ir.graph import Graph

if TYPE_CHECKING:
    from scheduler.bounds.parting import Parting

Objective = Literal["latency", "throughput", "cost"]
Communication = Literal["overlapped", "serialised"]
Pipeline = Literal["1f1b", "gpipe"]
Placement = Mapping[str, str]
MOST_MICRO_BATCHES = 100_000
"""Of one batch: each is timed."""


@dataclass(frozen=True)
class Problem:
    """A graph, a cluster, the times of the former on the latter, and what is asked for.

    Algorithms compute on `arrays`.

    Attributes:
        pins: operator name, or module path, to the device that it must run on.
        memory_headroom: share of every device's memory that must stay free, 0 to 1.
        usd_per_hour: rent of the whole cluster; needed by the objective `cost`.
        num_micro_batches: runs of the graph that make one batch; they follow each other through
            the pipeline.
        forbidden: operator name, or module path, to devices that it must not run on.
        colocated: groups of operators that must share a device.
        communication: `overlapped`: transfers occupy links (those of one medium together), and
            devices compute meanwhile. `serialised`: a device spends time on what it sends (once
            per tensor) and on what it receives, over its fastest link; CPUs pay nothing.
        replicate: whether `auto` may put a stage on several devices, micro-batches in turn; for
            throughput and cost.
        latency_bound_s: with objective `cost`, plans slower than this are refused.
        pipeline: order of forward and backward passes where a training step has several
            micro-batches; see `scheduler/evaluation/dispatch.py`.
    """

    graph: Graph
    cluster: Cluster
    costs: CostTable
    objective: Objective = "throughput"
    pins: Mapping[str, str] = field(default_factory=dict)
    memory_headroom: float = 0.1
    usd_per_hour: float | None = None
    num_micro_batches: int = 1
    forbidden: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    colocated: tuple[tuple[str, ...], ...] = ()
    communication: Communication = "overlapped"
    latency_bound_s: float | None = None
    replicate: bool = False
    pipeline: Pipeline = "1f1b"

    def __post_init__(self) -> None:
        """Refuse pins that name nothing and a headroom that leaves nothing."""
        if not 0 <= self.memory_headroom < 1:
            raise ValueError(
                f"memory_headroom must be at least 0 and below 1, got {self.memory_headroom}"
            )
        if self.latency_bound_s is not None and self.objective != "cost":
            raise ValueError(
                f"latency_bound_s goes with objective cost, and the objective is {self.objective}; "
                "set objective: cost, or leave it out"
            )
        if self.latency_bound_s is not None and not 0 < self.latency_bound_s < np.inf:
            raise ValueError(f"latency_bound_s must be seconds above 0, got {self.latency_bound_s}")
        if not 1 <= self.num_micro_batches <= MOST_MICRO_BATCHES:
            raise ValueError(
                f"num_micro_batches must be from 1 to {MOST_MICRO_BATCHES:,}, "
                f"got {self.num_micro_batches:,}"
            )
        if self.objective == "cost" and self.usd_per_hour is None:
            raise ValueError(
                f"objective cost needs a price, and cluster '{self.cluster.name}' has none; "
                "name instances with a price, or set prices.usd_per_hour"
            )
        self._check_names()
        self._check_pins()

    def _check_names(self) -> None:
        known = set(self.graph.by_name) | _modules(self.graph)
        rules: list[tuple[str, str, tuple[str, ...]]] = [
            ("pin", target, (device,)) for target, device in self.pins.items()
        ]
        rules += [("forbidden", target, devices) for target, devices in self.forbidden.items()]
        for rule, target, devices in rules:
            for device in devices:
                if device not in self.cluster.devices:
                    close = nearest(device, list(self.cluster.devices))
                    raise ValueError(f"{rule} '{target}': unknown device '{device}'{close}")
            if target not in known:
                close = nearest(target, list(known)) if len(known) < 50 else ""
                raise ValueError(f"{rule} '{target}': no operator or module has this name{close}")
        for name in (name for group in self.colocated for name in group):
            if name not in self.graph.by_name:
                raise ValueError(f"colocated '{name}': no operator has this name")

    def _check_pins(self) -> None:
        """Refuse two pins that pull one colocation group apart."""
        names = list(self.graph.by_name)
        first: dict[int, int] = {}
        row = self.op_index
        for name, device in self.pinned.items():
            unit = int(self.unit[row[name]])
            other = names[first.setdefault(unit, row[name])]
            if self.pinned[other] != device:
                raise ValueError(
                    f"pins contradict colocation: '{other}' is pinned to '{self.pinned[other]}', "
                    f"'{name}' to '{device}', and both must share a device; pin them alike"
                )

    @property
    def batch(self) -> int:
        """Inferences in one batch."""
        return self.graph.samples * self.num_micro_batches

    @property
    def trains_in_parts(self) -> bool:
        """Whether a training step has several micro-batches: their gradients add up."""
        return self.graph.mode == "training" and self.num_micro_batches > 1

    @property
    def pipelines_batch(self) -> bool:
        """Whether the latency of inference is asked for, of several micro-batches in a pipeline."""
        several = self.num_micro_batches > 1 and not self.graph.is_sequential
        return several and self.objective == "latency"

    @property
    def may_replicate(self) -> bool:
        """Whether plans with replicated stages are asked for, and the objective has any."""
        in_turn = not self.graph.is_sequential or self.trains_in_parts
        return self.replicate and in_turn and self.objective != "latency"

    @cached_property
    def pinned(self) -> dict[str, str]:
        """Device by operator name, for the operators that a pin names; the last pin wins."""
        return {
            op.name: device
            for target, device in self.pins.items()
            for op in self.graph.ops
            if matches(target, op.name, op.module)
        }

    @cached_property
    def op_index(self) -> dict[str, int]:
        """Row of each operator in the cost table."""
        return {op.name: i for i, op in enumerate(self.graph.ops)}

    @cached_property
    def device_index(self) -> dict[str, int]:
        """Column of each device in the cost table."""
        return {device: j for j, device in enumerate(self.costs.devices)}

    @cached_property
    def unit(self) -> Ints:
        """(num_ops,) colocation class of each operator, numbered in order of first appearance."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        row = self.op_index
        pairs = [(row[group[0]], row[name]) for group in self.colocated for name in group[1:]]
        src, dst = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        n = len(self.graph.ops)
        joined = coo_array((np.ones(len(src)), (src, dst)), shape=(n, n))
        label = connected_components(joined, directed=False)[1]
        _, first, unit = np.unique(label, return_index=True, return_inverse=True)
        return first.argsort().argsort()[unit].astype(np.int64)

    @cached_property
    def seconds(self) -> Floats:
        """Times (num_ops, num_devices), infinite where the device or a pin forbids the operator.

        What forbids one operator of a colocation group forbids it for all.
        """
        allowed = np.isfinite(self.costs.seconds)
        for name, device in self.pinned.items():
            others = np.arange(allowed.shape[1]) != self.device_index[device]
            allowed[self.op_index[name], others] = False
        for target, devices in self.forbidden.items():
            rows = [i for i, op in enumerate(self.graph.ops) if matches(target, op.name, op.module)]
            allowed[np.ix_(rows, [self.device_index[d] for d in devices])] = False
        for_unit = np.ones((int(self.unit.max(initial=-1)) + 1, allowed.shape[1]), dtype=bool)
        np.logical_and.at(for_unit, self.unit, allowed)
        return np.where(for_unit[self.unit], self.costs.seconds, np.inf)

    @property
    def seconds_per_micro_batch(self) -> Floats:
        """`seconds`, with its share of those of an optimizer, which runs once per batch."""
        if not self.trains_in_parts:
            return self.seconds
        once = np.array([op.phase == "optimizer" for op in self.graph.ops])
        return np.where(once[:, None], self.seconds / self.num_micro_batches, self.seconds)

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

    @cached_property
    def media(self) -> dict[str, int]:
        """Resource number by name of every medium; devices have the numbers below."""
        names = dict.fromkeys(link.shared_medium for link in self.cluster.links)
        if not names and self.costs.transfers:
            ends = [(p, q) for p in self.costs.devices for q in self.costs.devices if p != q]
            names = dict.fromkeys(f"{p}->{q}" for p, q in ends)
        return {name: len(self.costs.devices) + k for k, name in enumerate(names)}

    def medium(self, src: str, dst: str) -> str:
        """Medium that carries tensors from one device to another.

        Raises:
            InfeasibleError: no link joins them.
        """
        link = self.links.get((src, dst))
        name = link.shared_medium if link else f"{src}->{dst}"
        if name not in self.media:
            raise InfeasibleError(f"no link between '{src}' and '{dst}'; add one to the cluster")
        return name

    def move_s(self, tensor: str, src: str, dst: str) -> float:
        """Seconds that a medium is busy with a tensor; 0 where its ends are busy in its place."""
        if self.arrays.serialised:
            return 0.0
        if tensor in self.costs.transfers:
            at = self.device_index[src], self.device_index[dst]
            return float(self.costs.transfers[tensor][at])
        return self.transfer_s(self.graph.tensors[tensor].num_bytes, src, dst)

    def end_s(self, tensor: str, device: str) -> float:
        """Seconds that a device spends to send or to receive a tensor (serialised only)."""
        if not self.arrays.serialised:
            return 0.0
        return float(self.arrays.ends_s[self.tensor_index[tensor], self.device_index[device]])

    @cached_property
    def tensor_index(self) -> dict[str, int]:
        """Row of each tensor that some operator reads in `arrays`."""
        read = [name for name in self.graph.producer if self.graph.consumers.get(name)]
        return {name: t for t, name in enumerate(read)}

    def memory_limit_bytes(self, device: str) -> float:
        """Memory that a plan may use on a device."""
        return self.cluster.devices[device].memory_bytes * (1 - self.memory_headroom)

    @cached_property
    def arrays(self) -> Arrays:
        """The problem as arrays."""
        from scheduler.lower import lower

        return lower(self)

    @cached_property
    def parting(self) -> "Parting | None":
        """Placements on two sides of devices; none where these are alike or no media carry."""
        from scheduler.bounds.media_bound import best_parting

        return best_parting(self)


def matches(target: str, name: str, module: str) -> bool:
    """Whether a rule's target is this operator, or a module that it lies in."""
    return target == name or module == target or module.startswith(target + ".")


def _modules(graph: Graph) -> set[str]:
    """Module paths of the operators, and the paths above them."""
    paths = {op.module for op in graph.ops if op.module}
    return {".".join(p.split(".")[:i]) for p in paths for i in range(1, p.count(".") + 2)}
