"""Memory that a placement needs: parameters, live activations, gradients and states."""

from collections import defaultdict

from hardware.errors import InfeasibleError
from hardware.units import format_bytes
from scheduler.graph import Graph
from scheduler.plan import MemoryNeed, Stage
from scheduler.problem import Placement, Problem


def memory_needs(
    problem: Problem, placement: Placement, stages: tuple[Stage, ...], num_micro_batches: int
) -> dict[str, MemoryNeed]:
    """Bytes needed on every device that runs something.

    Gradients of parameters, which optimizers read, are kept whole, as torch keeps them between
    backward and optimizer. States (of optimizers, of caches) lie where their operator runs.
    Activations: the peak over one micro-batch, plus what is sent and received for each further
    micro-batch in flight.
    """
    graph = problem.graph
    on_device: dict[str, list[str]] = defaultdict(list)
    buffers: dict[str, float] = defaultdict(float)
    for stage in stages:
        on_device[stage.device] += stage.ops
        crossing = (*stage.receives, *stage.sends)
        buffers[stage.device] += sum(transfer.num_bytes for transfer in crossing)
    return {
        device: MemoryNeed(
            sum(graph.weights(ops).values()),
            _peak_live_bytes(graph, ops) + (num_micro_batches - 1) * buffers[device],
            problem.memory_limit_bytes(device),
            sum(_gradients(graph, ops).values()),
            sum(graph.by_name[name].state_bytes for name in ops),
        )
        for device, ops in on_device.items()
    }


def check_memory(needs: dict[str, MemoryNeed]) -> None:
    """Refuse a plan that does not fit.

    Raises:
        InfeasibleError: naming the device, the need and the limit.
    """
    for device, need in needs.items():
        if need.num_bytes > need.limit_bytes:
            raise InfeasibleError(
                f"device '{device}': the plan needs {format_bytes(need.num_bytes)} "
                f"({_worded(need)}), "
                f"the limit is {format_bytes(need.limit_bytes)}"
            )


def _worded(need: MemoryNeed) -> str:
    parts = {
        "parameters": need.param_bytes,
        "activations": need.activation_bytes,
        "gradients": need.gradient_bytes,
        "optimizer states or cache": need.state_bytes,
    }
    always = ("parameters", "activations")
    return ", ".join(f"{format_bytes(v)} {k}" for k, v in parts.items() if v or k in always)


def _gradients(graph: Graph, ops: list[str]) -> dict[str, int]:
    """Bytes by tensor of the gradients that the optimizers among the operators read."""
    return {
        tensor: graph.tensors[tensor].num_bytes
        for name in ops
        if graph.by_name[name].phase == "optimizer"
        for tensor in graph.by_name[name].inputs
    }


def _peak_live_bytes(graph: Graph, ops: list[str]) -> float:
    """Peak of the bytes alive while `ops` run in order on one device.

    A tensor lives from its production or first use here to its last use here; graph outputs live
    to the end. Views share the memory of their base.
    """
    mine = set(ops)
    births: dict[str, int] = {}
    deaths: dict[str, int] = {}
    for step, name in enumerate(ops):
        op = graph.by_name[name]
        for tensor in (*op.inputs, *(out.name for out in op.outputs)):
            root = _local_root(graph, tensor, mine)
            births.setdefault(root, step)
            deaths[root] = step
    for tensor in graph.outputs:
        root = _local_root(graph, tensor, mine)
        if root in births:
            deaths[root] = len(ops)
    for tensor, producer in graph.producer.items():
        if producer in mine and any(c not in mine for c in graph.consumers.get(tensor, ())):
            deaths[_local_root(graph, tensor, mine)] = len(ops)
    change = [0.0] * (len(ops) + 2)
    kept = {_local_root(graph, tensor, mine) for tensor in _gradients(graph, ops)}
    for root, birth in births.items():
        if root in kept or _has_own_memory(graph, root):
            continue
        num_bytes = graph.tensors[root].num_bytes
        change[birth] += num_bytes
        change[deaths[root] + 1] -= num_bytes
    live = peak = 0.0
    for delta in change:
        live += delta
        peak = max(peak, live)
    return peak


def _has_own_memory(graph: Graph, tensor: str) -> bool:
    """Whether a tensor lies in a weight that it is a view of, or in its operator's state."""
    producer = graph.producer.get(tensor)
    if producer is None:
        return False
    op = graph.by_name[producer]
    in_cache = op.kind == "copy" and op.state_bytes > 0
    return in_cache or (op.kind == "view" and not op.inputs and bool(op.weights))


def _local_root(graph: Graph, tensor: str, mine: set[str]) -> str:
    """The tensor that holds the memory on this device: views are followed only while local."""
    while (producer := graph.producer.get(tensor)) in mine:
        op = graph.by_name[producer]
        if op.kind != "view" or not op.inputs:
            return tensor
        tensor = op.inputs[0]
    return tensor
