"""Plans: where each operator runs, in which stages, and how good that is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hardware.documents import STRICT
from scheduler.ir.graph import Graph, Phase
from scheduler.problem import Objective, Placement
from scheduler.tensor_parallel.split_rules import Splits


@dataclass(frozen=True)
class Transfer:
    """A tensor that crosses from one device to another, once per micro-batch."""

    __pydantic_config__ = STRICT

    tensor: str
    src: str
    dst: str
    num_bytes: int


@dataclass(frozen=True)
class Stage:
    """Operators that run one after the other on one device.

    A stage starts when all it receives has arrived, and sends when its last operator is done.

    Attributes:
        receives, sends: between the devices that `placement` names.
        replicas: further devices that run the stage, each with its weights: micro-batch k is run by
            `devices[k mod n]`. All stages of a device have the same.
    """

    __pydantic_config__ = STRICT

    device: str
    ops: tuple[str, ...]
    receives: tuple[Transfer, ...] = ()
    sends: tuple[Transfer, ...] = ()
    replicas: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """The device and its replicas."""
        return (self.device, *self.replicas)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a plan needs on one device.

    Attributes:
        activation_bytes: peak of the tensors alive, those kept for the backward pass included.
        gradient_bytes: gradients of parameters, in training.
        state_bytes: optimizer states, or the cache of keys and values of a generation.
    """

    __pydantic_config__ = STRICT

    param_bytes: float
    activation_bytes: float
    limit_bytes: float
    gradient_bytes: float = 0.0
    state_bytes: float = 0.0

    @property
    def num_bytes(self) -> float:
        """Parameters, the peak of live activations, gradients and states."""
        return self.param_bytes + self.activation_bytes + self.gradient_bytes + self.state_bytes


@dataclass(frozen=True)
class Plan:
    """What a scheduler answers.

    Attributes:
        value: of the objective: seconds of one batch alone (latency), seconds per batch in steady
            state (throughput), or USD per 1,000 inferences (cost); of a generation, of the whole
            answer: `prefill_value` + `num_steps` times that of the decode step, which is planned.
        lower_bound: no plan on this hardware is below it.
        gap: (value - lower_bound) / value.
        bound_by: what the bound comes from: `loads` of devices and media, the longest `path`,
            `device sets`, `integer programme`, or `modules` of a graph in series.
        placement: device by operator, in the order in which operators start.
        stages: in an order in which they can run.
        num_micro_batches: runs of the graph that make one batch.
        in_flight: micro-batches in the pipeline at once.
        splits: the operators of the model that are split into parts, which `placement` places.
    """

    __pydantic_config__ = STRICT

    model: str
    algorithm: str
    objective: Objective
    value: float
    lower_bound: float
    gap: float
    solve_s: float
    placement: Placement
    stages: tuple[Stage, ...]
    num_micro_batches: int
    in_flight: int
    memory: Mapping[str, MemoryNeed] = field(default_factory=dict)
    splits: Splits = field(default_factory=dict)
    bound_by: str = ""
    prefill_value: float = 0.0
    num_steps: int = 1
    schema: Literal["apportion.plan/1"] = "apportion.plan/1"

    @property
    def step_value(self) -> float:
        """Value of one run of the graph that is planned: of a generation, of a decode step."""
        if not self.num_steps:
            return 0.0
        return (self.value - self.prefill_value) / self.num_steps

    @property
    def devices(self) -> list[str]:
        """The devices that run something, in stage order."""
        return list(dict.fromkeys(device for stage in self.stages for device in stage.devices))

    @property
    def transfers(self) -> list[Transfer]:
        """All that crosses between devices in one micro-batch."""
        return [transfer for stage in self.stages for transfer in stage.sends]


def cut_stages(graph: Graph, placement: Placement) -> tuple[Stage, ...]:
    """Group operators by phase, device and the number of changes of either on the way to them.

    An operator's level is the largest number of changes of device or phase (forward, backward,
    optimizer) on a path that leads to it, so a stage only waits for stages of lower levels, and
    running a phase after the other and stages by level never deadlocks.
    """
    level: dict[str, int] = {}
    phases = get_args(Phase)
    key: dict[str, tuple[int, int, str]] = {}
    for op in graph.ops:
        place = (phases.index(op.phase), placement[op.name])
        level[op.name] = max(
            (
                level[p] + (key[p][::2] != place)
                for p in (graph.producer[i] for i in op.inputs if i in graph.producer)
            ),
            default=0,
        )
        key[op.name] = (place[0], level[op.name], place[1])
    members: dict[tuple[int, int, str], list[str]] = {}
    for name, k in key.items():
        members.setdefault(k, []).append(name)
    keys = sorted(members, key=lambda k: k[:2])
    receives: dict[tuple[int, int, str], list[Transfer]] = {k: [] for k in keys}
    sends: dict[tuple[int, int, str], list[Transfer]] = {k: [] for k in keys}
    for tensor, producer in graph.producer.items():
        src = placement[producer]
        first: dict[str, tuple[int, int, str]] = {}
        for consumer in graph.consumers.get(tensor, ()):
            dst = placement[consumer]
            if dst != src:
                first[dst] = min(first.get(dst, key[consumer]), key[consumer])
        for dst, reader in first.items():
            transfer = Transfer(tensor, src, dst, graph.tensors[tensor].num_bytes)
            sends[key[producer]].append(transfer)
            receives[reader].append(transfer)
    return tuple(Stage(k[2], tuple(members[k]), tuple(receives[k]), tuple(sends[k])) for k in keys)


def cut_runs(graph: Graph, placement: Placement) -> tuple[Stage, ...]:
    """Cut the order in which each device runs its operators wherever a tensor comes or leaves.

    The order is that of `placement`, or of the graph where that is none in which operators can
    run. A tensor arrives before its first reader on a device and leaves right after its producer,
    so stages wait no longer than their operators would. O(operators + tensor uses).
    """
    order = runnable(graph, placement)
    place = {name: k for k, name in enumerate(order)}
    receives: dict[str, list[Transfer]] = {name: [] for name in order}
    sends: dict[str, list[tuple[int, Transfer]]] = {name: [] for name in order}
    for tensor, producer in graph.producer.items():
        src = placement[producer]
        away = [reader for reader in graph.consumers.get(tensor, ()) if placement[reader] != src]
        first: dict[str, str] = {}
        for reader in sorted(away, key=place.__getitem__) if len(away) > 1 else away:
            first.setdefault(placement[reader], reader)
        for dst, reader in first.items():
            transfer = Transfer(tensor, src, dst, graph.tensors[tensor].num_bytes)
            receives[reader].append(transfer)
            sends[producer].append((place[reader], transfer))
    runs: list[list[str]] = []
    open_run: dict[str, list[str]] = {}
    for name in order:
        run = open_run.get(placement[name])
        if run is None or receives[name] or sends[run[-1]]:
            run = open_run[placement[name]] = []
            runs.append(run)
        run.append(name)
    return tuple(
        Stage(
            placement[run[0]],
            tuple(run),
            tuple(receives[run[0]]),
            tuple(sent for _, sent in sorted(sends[run[-1]], key=lambda pair: pair[0])),
        )
        for run in runs
    )


def runnable(graph: Graph, placement: Placement) -> list[str]:
    """Operators in the order of a placement, or of the graph where they cannot run in that."""
    seen: set[str] = set()
    for name in placement:
        for tensor in graph.by_name[name].inputs:
            if graph.producer.get(tensor, name) not in seen and tensor in graph.producer:
                return list(graph.by_name)
        seen.add(name)
    return list(placement)
