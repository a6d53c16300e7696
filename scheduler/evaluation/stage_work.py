"""Stages and transfers of a plan as arrays: how long each takes and what it waits for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from scheduler.arrays import Floats, Ints
from scheduler.data_parallel.all_reduce import gradients, left_s, rings
from scheduler.data_parallel.replicas import copies, teams
from scheduler.plan import Stage
from scheduler.problem import Problem

FORWARD, BACKWARD, OPTIMIZER = range(3)
PHASES = {"forward": FORWARD, "backward": BACKWARD, "optimizer": OPTIMIZER}


class StageWork(NamedTuple):
    """One micro-batch: s stages of n operators, t transfers, d devices; or one for every turn.

    Where stages have replicas, micro-batch k does what stands here for turn k mod `turns`: its
    stage i is stage (k mod turns) * s + i here, and operators and transfers likewise.

    In a training step of several micro-batches optimizers run once, with the last micro-batch, on
    every replica, after a ring has summed the gradients.

    Attributes:
        turns: the cycle of the replicas.
        op: (n,) operators (rows of the problem's arrays), stage by stage.
        op_start: (s + 1,) operators op[op_start[i]:op_start[i + 1]] are those of stage i.
        begin_s, end_s: (n,) seconds from the start of its stage to an operator's start and end.
        seconds: (s,) that a stage occupies its device; in serialised communication it receives
            before its operators and sends after them, once per tensor.
        device: (s,).
        phase: (s,) FORWARD, BACKWARD or OPTIMIZER.
        once: (s,) whether the stage runs with the last micro-batch of its turn only.
        left_out: (s,) whether it is an optimizer that another turn of the same device runs.
        team: (d,) the same number for devices that sum gradients with each other.
        sum_s: (d,) by team: seconds from its last backward pass until gradients are summed.
        first: (turns, d) first stage of every device, -1 where none.
        following: (s,) next stage of the same device and micro-batch, -1 where none.
        send_start: (s + 1,) transfers send_start[i]:send_start[i + 1] leave when stage i ends;
            numbered as in `Plan.transfers`.
        link: (t,) src * d + dst.
        medium: (t,) resource that the transfer occupies.
        move_s: (t,) seconds of the transfer where nothing else uses its medium.
        latency_s: (t,) the part of it that takes no bandwidth.
        reader: (t,) stage that waits for it.
        gathered: (t,) whether it is a gradient that is then summed with those of other replicas.
    """

    turns: int
    op: Ints
    op_start: Ints
    begin_s: Floats
    end_s: Floats
    seconds: Floats
    device: Ints
    phase: Ints
    once: NDArray[np.bool_]
    left_out: NDArray[np.bool_]
    team: Ints
    sum_s: Floats
    first: Ints
    following: Ints
    send_start: Ints
    link: Ints
    medium: Ints
    move_s: Floats
    latency_s: Floats
    reader: Ints
    gathered: NDArray[np.bool_]


def stage_work(problem: Problem, stages: Sequence[Stage]) -> StageWork:
    """Write stages as arrays. O(operators + transfers).

    Raises:
        InfeasibleError: no link joins two devices between which a tensor must pass.
    """
    works = [_stage_work(problem, copy) for copy in copies(stages)]
    if len(works) == 1:
        return works[0]
    shift = {"op_start": "op", "send_start": "link", "reader": "seconds"}
    joined: dict[str, Any] = {"turns": len(works)}
    for name in StageWork._fields[1:]:
        parts = [getattr(w, name) for w in works]
        if name in shift:
            size = len(getattr(works[0], shift[name]))
            parts = [part + k * size for k, part in enumerate(parts)]
            if name != "reader":
                parts = [*(part[:-1] for part in parts[:-1]), parts[-1]]
        joined[name] = np.concatenate(parts)
    joined |= _updates_once(joined["once"], joined["device"], joined["reader"], len(works))
    joined["team"], joined["sum_s"] = works[0].team, works[0].sum_s
    work = _chained(StageWork(**joined))
    return _with_sums(problem, stages, work) if problem.trains_in_parts else work


def _updates_once(
    once: NDArray[np.bool_], device: Ints, reader: Ints, turns: int
) -> dict[str, np.ndarray]:
    """Keep the first turn of every device's optimizers, which read what the others' would."""
    num_stages = len(once) // turns
    kept = np.arange(len(once))
    for i in np.flatnonzero(once[:num_stages]).tolist():
        _, first, place = np.unique(device[i::num_stages], return_index=True, return_inverse=True)
        kept[i::num_stages] = first[place] * num_stages + i
    return {"left_out": kept != np.arange(len(once)), "reader": kept[reader]}


def _with_sums(problem: Problem, stages: Sequence[Stage], work: StageWork) -> StageWork:
    """The work with the time that replicas take to sum their gradients."""
    graph, team, sum_s = problem.graph, work.team.copy(), work.sum_s.copy()
    for turns in teams(stages).values():
        columns = [problem.device_index[name] for name in turns]
        team[columns] = columns[0]
    summed = {
        first: gradients(graph, [name for s in stages if s.device == first for name in s.ops])
        for first in teams(stages)
    }
    shared = [tuple(turns) for first, turns in teams(stages).items() if summed[first]]
    for devices, ring in zip(shared, rings(problem, shared), strict=True):
        columns = [problem.device_index[name] for name in devices]
        tensors = summed[devices[0]]
        num_bytes = np.array(list(tensors.values()), dtype=np.float64)
        made_s = _made_s(problem, work, columns, list(tensors))
        sum_s[columns[0]] = left_s(ring, made_s, num_bytes, not problem.arrays.serialised)
    sender = np.repeat(np.arange(len(work.seconds)), np.diff(work.send_start))
    several = np.bincount(team)[team[work.device[work.reader]]] > 1
    gathered = work.once[work.reader] & ~work.once[sender] & several
    return work._replace(team=team, sum_s=sum_s, gathered=gathered)


def _made_s(
    problem: Problem, work: StageWork, devices: Sequence[int], tensors: Sequence[str]
) -> Floats:
    """When replicas have made tensors, counted from the end of their last backward pass."""
    graph, made_s = problem.graph, np.full(len(tensors), -np.inf)
    maker = [problem.op_index[graph.producer[name]] for name in tensors]
    mine = set(devices)
    home = {
        int(o): int(work.device[i])
        for i in range(len(work.seconds) // work.turns)
        for o in work.op[work.op_start[i] : work.op_start[i + 1]]
    }
    away = np.array([home[o] not in mine for o in maker], dtype=bool)
    for device in devices:
        last = _last_stage(work, device)
        mine_last = slice(work.op_start[last], work.op_start[last + 1])
        end_s = dict(zip(work.op[mine_last].tolist(), work.end_s[mine_last], strict=True))
        here_s = [end_s.get(o, 0.0) for o in maker]
        made_s = np.maximum(made_s, np.array(here_s) - work.seconds[last])
    return np.where(away, 0.0, made_s)


def _last_stage(work: StageWork, device: int) -> int:
    """The last stage of the last turn of a device that is no optimizer."""
    i = int(work.first[:, device][work.first[:, device] >= 0][-1])
    while work.following[i] >= 0 and not work.once[work.following[i]]:
        i = int(work.following[i])
    return i


def _stage_work(problem: Problem, stages: Sequence[Stage]) -> StageWork:
    row, column = problem.op_index, problem.device_index
    op = np.array([row[name] for stage in stages for name in stage.ops], dtype=np.int64)
    op_start = _starts([len(stage.ops) for stage in stages])
    device = np.array([column[stage.device] for stage in stages], dtype=np.int64)
    phase = np.full(len(stages), FORWARD)
    if problem.trains_in_parts:
        phase[:] = [PHASES[problem.graph.ops[i].phase] for i in op[op_start[:-1]]]
    begin_s, end_s, seconds = _seconds(problem, stages, op, op_start, device)
    link, medium, move_s, latency_s, reader = _transfers(problem, stages)
    none = np.zeros(0, dtype=np.int64)
    work = StageWork(
        1, op, op_start, begin_s, end_s, seconds, device, phase, phase == OPTIMIZER,
        np.zeros(len(stages), dtype=np.bool_), np.arange(len(column)), np.zeros(len(column)),
        none, none,
        _starts([len(stage.sends) for stage in stages]), link, medium, move_s, latency_s, reader,
        np.zeros(len(link), dtype=np.bool_),
    )  # fmt: skip
    return _chained(work)


def turn_of(work: StageWork, tasks: Ints, size: int) -> Ints:
    """Where k * size + i, for the k-th micro-batch, stands among the turns' `size` each."""
    k, i = np.divmod(tasks, size)
    return np.asarray(k % work.turns * size + i)


def by_turn(work: StageWork, of_op: Floats, num_micro_batches: int) -> tuple[Ints, Floats]:
    """Stage (n,) of each operator of a micro-batch, and a figure of theirs (m, n): by turn."""
    num_stages, num_ops = len(work.seconds) // work.turns, len(work.op) // work.turns
    stage = np.repeat(np.arange(num_stages), np.diff(work.op_start[: num_stages + 1]))
    return stage, of_op.reshape(-1, num_ops)[np.arange(num_micro_batches) % work.turns]


def _starts(counts: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _chained(work: StageWork) -> StageWork:
    """The work with what follows what on each device in each turn: by phase, then as planned."""
    num_devices, num = len(work.team), len(work.seconds)
    first = np.full(work.turns * num_devices, -1, dtype=np.int64)
    following = np.full(num, -1, dtype=np.int64)
    place = np.arange(num) // (num // work.turns) * num_devices + work.device
    order = np.lexsort((np.arange(num), work.phase, place))
    order = order[~work.left_out[order]]
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    first[place[order[starts]]] = order[starts]
    same = place[order[:-1]] == place[order[1:]]
    following[order[:-1][same]] = order[1:][same]
    return work._replace(first=first.reshape(work.turns, num_devices), following=following)


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
