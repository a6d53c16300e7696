"""Stages and transfers of a plan as arrays: how long each takes and what it waits for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from scheduler.arrays import Floats, Ints
from scheduler.plan import Stage
from scheduler.problem import Problem
from scheduler.replicas import copies

FORWARD, BACKWARD, OPTIMIZER = range(3)
PHASES = {"forward": FORWARD, "backward": BACKWARD, "optimizer": OPTIMIZER}


class StageWork(NamedTuple):
    """One micro-batch: s stages of n operators, t transfers, d devices.

    In a training step of several micro-batches optimizers run once, with the last micro-batch.

    Attributes:
        op: (n,) operators (rows of the problem's arrays), stage by stage.
        op_start: (s + 1,) operators op[op_start[i]:op_start[i + 1]] are those of stage i.
        begin_s, end_s: (n,) seconds from the start of its stage to an operator's start and end.
        seconds: (s,) that a stage occupies its device; in serialised communication it receives
            before its operators and sends after them, once per tensor.
        device: (s,).
        phase: (s,) FORWARD, BACKWARD or OPTIMIZER.
        once: (s,) whether the stage runs with the last micro-batch only.
        first: (d,) first stage of every device, -1 where none.
        following: (s,) next stage of the same device and micro-batch, -1 where none.
        send_start: (s + 1,) transfers send_start[i]:send_start[i + 1] leave when stage i ends;
            numbered as in `Plan.transfers`.
        link: (t,) src * d + dst.
        medium: (t,) resource that the transfer occupies.
        move_s: (t,) seconds of the transfer where nothing else uses its medium.
        latency_s: (t,) the part of it that takes no bandwidth.
        reader: (t,) stage that waits for it.
        num_receives: (s,) transfers that a stage waits for.
    """

    op: Ints
    op_start: Ints
    begin_s: Floats
    end_s: Floats
    seconds: Floats
    device: Ints
    phase: Ints
    once: NDArray[np.bool_]
    first: Ints
    following: Ints
    send_start: Ints
    link: Ints
    medium: Ints
    move_s: Floats
    latency_s: Floats
    reader: Ints
    num_receives: Ints


def stage_work(problem: Problem, stages: Sequence[Stage]) -> StageWork:
    """Write stages as arrays. O(operators + transfers).

    Where stages have replicas, a whole cycle of micro-batches counts as one: stage i of its k-th is
    stage k * s + i.

    Raises:
        InfeasibleError: no link joins two devices between which a tensor must pass.
    """
    works = [_stage_work(problem, copy) for copy in copies(stages)]
    if len(works) == 1:
        return works[0]
    device = np.concatenate([work.device for work in works])
    phase = np.concatenate([work.phase for work in works])
    first, following = _chains(device, phase, len(problem.device_index))
    shift = {"op_start": "op", "send_start": "link", "reader": "seconds"}
    joined: dict[str, Any] = {}
    for name in StageWork._fields:
        parts = [getattr(w, name) for w in works]
        if name in shift:
            size = len(getattr(works[0], shift[name]))
            parts = [part + k * size for k, part in enumerate(parts)]
            if name != "reader":
                parts = [*(part[:-1] for part in parts[:-1]), parts[-1]]
        joined[name] = np.concatenate(parts)
    return StageWork(**{**joined, "first": first, "following": following})


def _stage_work(problem: Problem, stages: Sequence[Stage]) -> StageWork:
    row, column = problem.op_index, problem.device_index
    op = np.array([row[name] for stage in stages for name in stage.ops], dtype=np.int64)
    op_start = _starts([len(stage.ops) for stage in stages])
    device = np.array([column[stage.device] for stage in stages], dtype=np.int64)
    phase = np.full(len(stages), FORWARD)
    if problem.trains_in_parts:
        phase[:] = [PHASES[problem.graph.ops[i].phase] for i in op[op_start[:-1]]]
    begin_s, end_s, seconds = _seconds(problem, stages, op, op_start, device)
    first, following = _chains(device, phase, len(column))
    link, medium, move_s, latency_s, reader = _transfers(problem, stages)
    return StageWork(
        op, op_start, begin_s, end_s, seconds, device, phase, phase == OPTIMIZER, first, following,
        _starts([len(stage.sends) for stage in stages]), link, medium, move_s, latency_s, reader,
        np.bincount(reader, minlength=len(stages)),
    )  # fmt: skip


def _starts(counts: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _chains(device: Ints, phase: Ints, num_devices: int) -> tuple[Ints, Ints]:
    """First stage of every device and the stage that follows each: by phase, then as planned."""
    first = np.full(num_devices, -1, dtype=np.int64)
    following = np.full(len(device), -1, dtype=np.int64)
    order = np.lexsort((np.arange(len(device)), phase, device))
    starts = np.flatnonzero(np.diff(device[order], prepend=-1))
    first[device[order[starts]]] = order[starts]
    same = device[order[:-1]] == device[order[1:]]
    following[order[:-1][same]] = order[1:][same]
    return first, following


def _transfers(
    problem: Problem, stages: Sequence[Stage]
) -> tuple[Ints, Ints, Floats, Floats, Ints]:
    """Link, medium, seconds, latency and reading stage of every transfer."""
    arrays, column, number = problem.arrays, problem.device_index, problem.tensor_index
    sends = [sent for stage in stages for sent in stage.sends]
    tensor = np.array([number[sent.tensor] for sent in sends], dtype=np.int64)
    src = np.array([column[sent.src] for sent in sends], dtype=np.int64)
    dst = np.array([column[sent.dst] for sent in sends], dtype=np.int64)
    medium = arrays.medium[src, dst]
    if (medium < 0).any():
        sent = sends[int(np.argmax(medium < 0))]
        problem.medium(sent.src, sent.dst)
    link = src * arrays.num_devices + dst
    reader = _readers(stages, tensor * arrays.num_devices + dst, number, column)
    nothing = np.zeros(len(sends))
    if arrays.serialised:
        return link, medium, nothing, nothing, reader
    move_s = arrays.transfer_s(tensor, src, dst)
    latency_s = nothing if len(arrays.table_s) else arrays.latency_s[src, dst]
    return link, medium, move_s, latency_s, reader


def _readers(
    stages: Sequence[Stage], sent: Ints, number: Mapping[str, int], column: Mapping[str, int]
) -> Ints:
    """The stage that receives each of the tensors sent, both known by tensor * d + device."""
    received = [
        number[got.tensor] * len(column) + column[got.dst]
        for stage in stages
        for got in stage.receives
    ]
    order = np.argsort(received)
    at = order[np.searchsorted(received, sent, sorter=order)]
    return np.repeat(np.arange(len(stages)), [len(stage.receives) for stage in stages])[at]


def _seconds(
    problem: Problem, stages: Sequence[Stage], op: Ints, op_start: Ints, device: Ints
) -> tuple[Floats, Floats, Floats]:
    """Start and end of every operator within its stage, and the seconds of every stage."""
    took_s = problem.costs.seconds[op, np.repeat(device, np.diff(op_start))]
    received_s, sent_s = np.zeros(len(stages)), np.zeros(len(stages))
    if problem.arrays.serialised:
        for i, stage in enumerate(stages):
            received_s[i] = sum(problem.end_s(got.tensor, stage.device) for got in stage.receives)
            sent = dict.fromkeys(sent.tensor for sent in stage.sends)
            sent_s[i] = sum(problem.end_s(tensor, stage.device) for tensor in sent)
    begin_s, end_s = _one_after_another(took_s, op_start, received_s)
    return begin_s, end_s, end_s[op_start[1:] - 1] + sent_s


@numba.njit(cache=True)
def _one_after_another(took_s: Floats, start: Ints, lead_s: Floats) -> tuple[Floats, Floats]:
    begin_s, end_s = np.empty(len(took_s)), np.empty(len(took_s))
    for i in range(len(start) - 1):
        now_s = lead_s[i]
        for k in range(start[i], start[i + 1]):
            begin_s[k] = now_s
            now_s += took_s[k]
            end_s[k] = now_s
    return begin_s, end_s
