"""Memory that a placement needs: parameters, live activations, gradients and states."""

from collections import defaultdict
from dataclasses import replace
from itertools import accumulate
from math import ceil

import numpy as np

from hardware.errors import InfeasibleError
from hardware.units import format_bytes
from scheduler.data_parallel.all_reduce import gradients
from scheduler.data_parallel.replicas import turns
from scheduler.evaluation.dispatch import most_waiting
from scheduler.evaluation.stage_work import stage_work
from scheduler.ir.graph import Graph
from scheduler.plan import MemoryNeed, Stage
from scheduler.problem import Placement, Problem


def memory_needs(
    problem: Problem, placement: Placement, stages: tuple[Stage, ...], num_micro_batches: int
) -> dict[str, MemoryNeed]:
    """Bytes needed on every device that runs something.

    Gradients of parameters, which optimizers read, are kept whole, as torch keeps them between
    backward and optimizer. States (of optimizers, of caches) lie where their operator runs.
    Activations: the peak over one micro-batch, plus what is sent and received for each further
    micro-batch in flight. In a training step of several micro-batches: plus what each further one
    holds between two of its stages on the device.
    """
    graph = problem.graph
    on_device: dict[str, list[str]] = defaultdict(list)
    buffers: dict[str, float] = defaultdict(float)
    for stage in stages:
        on_device[stage.device] += stage.ops
        crossing = (*stage.receives, *stage.sends)
        buffers[stage.device] += sum(transfer.num_bytes for transfer in crossing)
    team = {stage.device: stage for stage in stages}
    held = {
        device: ceil(num_micro_batches * share / len(stage.devices))
        for stage in team.values()
        for device, share in turns(stage).items()
    }
    first = {device: stage.device for stage in team.values() for device in turns(stage)}
    waiting = {d: (held[d] - 1) * buffers[first[d]] for d in first}
    if problem.trains_in_parts:
        waiting = _waiting_bytes(problem, stages, held)
    alone = {
        device: MemoryNeed(
            sum(graph.weights(ops).values()),
            peak_live_bytes(graph, ops),
            0.0,
            sum(gradients(graph, ops).values()),
            sum(graph.by_name[name].state_bytes for name in ops),
        )
        for device, ops in on_device.items()
    }
    return {
        device: replace(
            alone[like],
            activation_bytes=alone[like].activation_bytes + waiting[device],
            limit_bytes=problem.memory_limit_bytes(device),
        )
        for device, like in first.items()
    }


def surely_fits(problem: Problem, placement: Placement, in_flight: int) -> bool:
    """Whether a placement fits even if nothing is freed: quicker than `memory_needs`.

    False where only that can tell.
    """
    arrays = problem.arrays
    device = np.array([problem.device_index[placement[op.name]] for op in problem.graph.ops])
    made = np.array([sum(out.num_bytes for out in op.outputs) for op in problem.graph.ops])
    tensor, src, dst = arrays.crossings(device)
    alive = np.bincount(device, made, arrays.num_devices)
    for end in (src, dst):
        alive += np.bincount(end, arrays.num_bytes[tensor], arrays.num_devices)
    alive += sum(given.num_bytes for given in problem.graph.inputs)
    needed = arrays.held_bytes(device) + in_flight * alive
    return bool((needed <= arrays.limit_bytes).all())


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


def peak_live_bytes(graph: Graph, ops: list[str]) -> float:
    """Peak of the bytes alive while `ops` run in order on one device.

    A tensor lives from its production or first use here to its last use here; graph outputs live
    to the end. Views share the memory of their base.
    """
    change = [0.0] * (len(ops) + 2)
    for birth, death, num_bytes in _lives(graph, ops):
        change[birth] += num_bytes
        change[death + 1] -= num_bytes
    return max(accumulate(change))


def _waiting_bytes(
    problem: Problem, stages: tuple[Stage, ...], held: dict[str, int]
) -> dict[str, float]:
    """Activations of the micro-batches that wait on each device while another one runs.

    Those that wait for their next stage, most for their backward pass, have what later stages read;
    those that a faster device sent ahead have what was sent, on both ends where the sender waits
    for nothing; outputs stay until all is done. `held`: micro-batches in flight on each device.
    """
    work = stage_work(problem, stages)
    most = most_waiting(problem, work)
    graph, parts = problem.graph, defaultdict[str, list[tuple[str, ...]]](list)
    ahead, late, kept = (defaultdict[str, float](float) for _ in range(3))
    team = {stage.device: stage for stage in stages}
    for stage in stages:
        parts[stage.device].append(stage.ops)
        forward = graph.by_name[stage.ops[0]].phase == "forward"
        received = ahead if forward else late
        received[stage.device] += sum(got.num_bytes for got in stage.receives)
        if not stage.receives:
            ahead[stage.device] += sum(sent.num_bytes for sent in stage.sends)
        made = (out for name in stage.ops for out in graph.by_name[name].outputs)
        kept[stage.device] += sum(out.num_bytes for out in made if out.name in graph.outputs)
    waiting = {}
    for first, ops in parts.items():
        held_bytes = _held_bytes(graph, ops)
        for device in turns(team[first]):
            begun = int(most[problem.device_index[device]])
            waiting[device] = (
                late[first]
                + max(0, held[device] - begun) * ahead[first]
                + max(0, held[device] - 1) * kept[first]
                + (begun - 1) * held_bytes
            )
    return waiting


def _held_bytes(graph: Graph, parts: list[tuple[str, ...]]) -> float:
    """Most bytes that a micro-batch holds on a device between two of its stages there.

    After the forward pass what the backward pass reads of it; later what gradients wait for, as
    that of a weight that is used at both ends. The optimizer runs once, after the last of them.
    """
    ops = [name for part in parts for name in part]
    change = np.zeros(len(ops) + 2)
    for birth, death, num_bytes in _lives(graph, ops):
        change[birth + 1] += num_bytes
        change[death + 1] -= num_bytes
    sizes = [len(p) for p in parts if graph.by_name[p[0]].phase != "optimizer"]
    ends = np.cumsum(sizes, dtype=np.int64)[:-1]
    return float(change.cumsum()[ends].max(initial=0.0))


def _lives(graph: Graph, ops: list[str]) -> list[tuple[int, int, int]]:
    """Steps of birth and death, and bytes, of all activations of `ops` in order on one device."""
    mine, by_name, consumers = set(ops), graph.by_name, graph.consumers
    births: dict[str, int] = {}
    deaths: dict[str, int] = {}
    sent: list[str] = []
    for step, name in enumerate(ops):
        op = by_name[name]
        made = [out.name for out in op.outputs]
        sent += [tensor for tensor in made if not mine.issuperset(consumers.get(tensor, ()))]
        for tensor in (*op.inputs, *made):
            root = local_root(graph, tensor, mine) if tensor in graph.views else tensor
            births.setdefault(root, step)
            deaths[root] = step
    for tensor in graph.outputs:
        root = local_root(graph, tensor, mine)
        if root in births:
            deaths[root] = len(ops)
    for tensor in sent:
        deaths[local_root(graph, tensor, mine)] = len(ops)
    kept = {local_root(graph, tensor, mine) for tensor in gradients(graph, ops)}
    return [
        (birth, deaths[root], graph.tensors[root].num_bytes)
        for root, birth in births.items()
        if root not in kept and not has_own_memory(graph, root)
    ]


def has_own_memory(graph: Graph, tensor: str) -> bool:
    """Whether a tensor lies in a weight that it is a view of, or in its operator's state."""
    producer = graph.producer.get(tensor)
    if producer is None:
        return False
    op = graph.by_name[producer]
    in_cache = op.kind == "copy" and op.state_bytes > 0
    return in_cache or (op.kind == "view" and not op.inputs and bool(op.weights))


def local_root(graph: Graph, tensor: str, mine: set[str]) -> str:
    """The tensor that holds the memory on this device: views are followed only while local."""
    views = graph.views
    while tensor in views and graph.producer[tensor] in mine:
        tensor = views[tensor]
    return tensor
