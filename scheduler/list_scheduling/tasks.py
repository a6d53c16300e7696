"""The problem as list schedulers see it: tasks, what they read, and the memory that they bring."""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Floats, Ints, csr
from scheduler.compiled import lean
from scheduler.evaluation.memory import memory_needs, surely_fits
from scheduler.plan import Stage, cut_runs
from scheduler.problem import Placement, Problem

MEMORY_ROUNDS = 6
"""Times that a schedule is made again, with less memory, because its activations did not fit."""


class Tasks(NamedTuple):
    """n tasks in topological order, d devices, t tensors, u colocation classes (units).

    Attributes:
        w: (n, d) seconds, infinite where the device or a pin forbids the task.
        ins_start, ins: tensors that a task reads, those that some task makes.
        outs_start, outs: tensors that a task makes and some task reads.
        producer, start, reader, num_bytes, latency_s, s_per_byte, table_s, ends_s, medium, unit:
            as in `Arrays`; `s_per_byte` is 0 where no link is, `latency_s` infinite.
        member_start, member: tasks of a unit.
        weight_start, weight: weights that the tasks of a unit read, each once.
        weight_bytes: of each weight; a device holds it once.
        own_bytes: (u,) states and gradients, which no other unit shares.
        limit_bytes: (d,).
    """

    w: Floats
    ins_start: Ints
    ins: Ints
    outs_start: Ints
    outs: Ints
    producer: Ints
    start: Ints
    reader: Ints
    num_bytes: Floats
    latency_s: Floats
    s_per_byte: Floats
    table_s: Floats
    ends_s: Floats
    medium: Ints
    unit: Ints
    member_start: Ints
    member: Ints
    weight_start: Ints
    weight: Ints
    weight_bytes: Floats
    own_bytes: Floats
    limit_bytes: Floats


Schedule = Callable[[Tasks], tuple[Ints, Floats]]
"""From tasks to the device and the start (s) of each."""


def tasks_of(problem: Problem) -> Tasks:
    """Write a problem as tasks. O(operators + tensor uses + weights)."""
    a, ops = problem.arrays, problem.graph.ops
    ins: list[list[int]] = [[] for _ in ops]
    for t, i in zip(a.edge_tensor.tolist(), a.reader.tolist(), strict=True):
        ins[i].append(t)
    outs: list[list[int]] = [[] for _ in ops]
    for t, i in enumerate(a.producer.tolist()):
        outs[i].append(t)
    members: list[list[int]] = [[] for _ in range(a.num_units)]
    weights: list[dict[int, None]] = [{} for _ in range(a.num_units)]
    own_bytes = np.zeros(a.num_units)
    number = {name: k for k, name in enumerate(problem.graph.weights())}
    for i, op in enumerate(ops):
        u = int(a.unit[i])
        members[u].append(i)
        weights[u].update(dict.fromkeys(number[name] for name in op.weights))
        own_bytes[u] += op.state_bytes
        if op.phase == "optimizer":
            own_bytes[u] += sum(problem.graph.tensors[t].num_bytes for t in op.inputs)
    sizes = problem.graph.weights().values()
    return Tasks(
        np.ascontiguousarray(a.seconds), *csr(ins), *csr(outs), a.producer, a.start, a.reader,
        a.num_bytes, a.latency_s, np.where(np.isfinite(a.s_per_byte), a.s_per_byte, 0.0),
        a.table_s, np.ascontiguousarray(a.ends_s), a.medium, a.unit, *csr(members),
        *csr([list(held) for held in weights]), np.array(list(sizes), dtype=float), own_bytes,
        a.limit_bytes.astype(float),
    )  # fmt: skip


@lean
def move_s(tasks: Tasks, t: int, p: int, q: int) -> float:
    """Seconds from the end of tensor t's producer on p until a task on q may start with it.

    Infinite where no link joins them.
    """
    if p == q:
        return 0.0
    if tasks.medium[p, q] < 0:
        return np.inf
    if len(tasks.ends_s):
        return tasks.ends_s[t, p] + tasks.ends_s[t, q]  # type: ignore[no-any-return]
    if len(tasks.table_s):
        return tasks.table_s[t, p, q]  # type: ignore[no-any-return]
    return tasks.latency_s[p, q] + tasks.num_bytes[t] * tasks.s_per_byte[p, q]  # type: ignore[no-any-return]


@lean
def need_bytes(tasks: Tasks, held: np.ndarray, u: int, p: int) -> float:
    """Bytes that unit u adds to device p; `held` (d, num_weights): units that use a weight."""
    need = tasks.own_bytes[u]
    for k in range(tasks.weight_start[u], tasks.weight_start[u + 1]):
        if held[p, tasks.weight[k]] == 0:
            need += tasks.weight_bytes[tasks.weight[k]]
    return need  # type: ignore[no-any-return]


@lean
def hold(tasks: Tasks, held: np.ndarray, used: np.ndarray, u: int, p: int, sign: int) -> None:
    """Put unit u on device p (sign 1) or take it away (sign -1): its weights and its bytes."""
    if sign > 0:
        used[p] += need_bytes(tasks, held, u, p)
    for k in range(tasks.weight_start[u], tasks.weight_start[u + 1]):
        held[p, tasks.weight[k]] += sign
    if sign < 0:
        used[p] -= need_bytes(tasks, held, u, p)


@numba.njit(cache=True)
def fits(tasks: Tasks, device: Ints) -> bool:
    """Whether tasks may run on their devices, units keep together, and weights have room."""
    d = tasks.w.shape[1]
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    for u in range(len(tasks.own_bytes)):
        members = tasks.member[tasks.member_start[u] : tasks.member_start[u + 1]]
        p = device[members[0]]
        hold(tasks, held, used, u, p, 1)
        for i in members:
            if device[i] != p or not np.isfinite(tasks.w[i, p]):
                return False
    return bool((used <= tasks.limit_bytes).all())


@numba.njit(cache=True)
def reads_of(tasks: Tasks) -> Ints:
    """(n,) tensors that each task reads and some task makes."""
    reads = np.empty(len(tasks.w), dtype=np.int64)
    for i in range(len(reads)):
        reads[i] = tasks.ins_start[i + 1] - tasks.ins_start[i]
    return reads


@numba.njit(cache=True)
def mean_seconds(tasks: Tasks) -> Floats:
    """(n,) mean time of each task over the devices that may run it."""
    n, d = tasks.w.shape
    mean = np.zeros(n)
    for i in range(n):
        able = 0
        for p in range(d):
            if np.isfinite(tasks.w[i, p]):
                mean[i] += tasks.w[i, p]
                able += 1
        mean[i] /= max(able, 1)
    return mean


@numba.njit(cache=True)
def mean_moves(tasks: Tasks) -> Floats:
    """(t,) mean transfer time of each tensor over the ordered pairs of devices with a link."""
    d, pairs = tasks.w.shape[1], 0
    mean, latency_s, s_per_byte = np.zeros(len(tasks.producer)), 0.0, 0.0
    for p in range(d):
        for q in range(d):
            if p == q or tasks.medium[p, q] < 0:
                continue
            pairs += 1
            if len(tasks.ends_s):
                mean += tasks.ends_s[:, p] + tasks.ends_s[:, q]
            elif len(tasks.table_s):
                mean += tasks.table_s[:, p, q]
            else:
                latency_s += tasks.latency_s[p, q]
                s_per_byte += tasks.s_per_byte[p, q]
    return (mean + latency_s + tasks.num_bytes * s_per_byte) / max(pairs, 1)


def placement_of(problem: Problem, device: Ints, start_s: Floats) -> Placement:
    """A schedule as a placement: device by operator, in the order in which operators start."""
    ops, devices = problem.graph.ops, problem.costs.devices
    order = np.lexsort((np.arange(len(ops)), start_s))
    return {ops[i].name: devices[device[i]] for i in order.tolist()}


def within_memory(problem: Problem, schedule: Schedule) -> Placement:
    """Place by a schedule that knows weights only, so that activations fit, too.

    Where they do not, the schedule is made again with the excess taken from the device's limit.
    The last one is returned even if it does not fit: the plan's own check words the refusal.
    """
    tasks = tasks_of(problem)
    limit = tasks.limit_bytes.copy()
    for _ in range(MEMORY_ROUNDS):
        placement = placement_of(problem, *schedule(tasks._replace(limit_bytes=limit)))
        excess = batch_excess_bytes(problem, placement)
        if not excess.any():
            break
        limit = limit - 1.05 * excess
    return placement


def one_stage_each(problem: Problem, placement: Placement) -> tuple[Stage, ...]:
    """What each device runs, in order; of several micro-batches in stages."""
    if problem.trains_in_parts:
        return cut_runs(problem.graph, placement)
    ops: dict[str, list[str]] = {}
    for name, device in placement.items():
        ops.setdefault(device, []).append(name)
    return tuple(Stage(device, tuple(names), (), ()) for device, names in ops.items())


def batch_excess_bytes(problem: Problem, placement: Placement) -> Floats:
    """(num_devices,) bytes by which one batch alone exceeds the devices' limits."""
    excess = np.zeros(len(problem.costs.devices))
    in_flight = problem.num_micro_batches if problem.pipelines_batch else 1
    if surely_fits(problem, placement, in_flight):
        return excess
    stages = one_stage_each(problem, placement)
    for name, need in memory_needs(problem, placement, stages, in_flight).items():
        excess[problem.device_index[name]] = max(0.0, need.num_bytes - need.limit_bytes)
    return excess
