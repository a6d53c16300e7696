"""Memory of every device over the time of a replay, its peak, and what holds it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from scheduler.all_reduce import gradients
from scheduler.arrays import Floats, Ints, csr
from scheduler.memory import has_own_memory, local_root, memory_needs
from scheduler.plan import MemoryNeed, Plan
from scheduler.problem import Problem
from scheduler.report import Held, MemoryUse, Moment
from scheduler.stage_work import by_turn
from scheduler.timeline import Timeline

MOST_HELD = 8
"""Tensors named at a moment."""
MOST_POINTS = 1000
"""Points kept of a device's memory over time."""


def memory_over_time(problem: Problem, plan: Plan, timeline: Timeline) -> dict[str, MemoryUse]:
    """What every device of a plan holds while a timeline runs.

    An activation lives from the start of the operator that makes it, or of the transfer that
    brings it, to the end of the last operator or transfer that reads it; inputs of the graph from
    their first use, its outputs until the micro-batch is done. Views share the memory of their
    base. Followed until the first micro-batch enters that is none of the first
    `in_flight + num_micro_batches`.
    """
    m = len(timeline.times.start_s)
    followed = min(m, plan.in_flight + plan.num_micro_batches)
    copies = _copies(problem, plan)
    birth_s, death_s = _lives(timeline, copies, followed)
    if followed < m:
        until_s = float(np.nanmin(timeline.times.start_s[followed]))
        birth_s = np.where(birth_s < until_s, birth_s, np.nan)
        death_s = np.where(death_s < until_s, death_s, np.inf)
    needs = memory_needs(problem, plan.placement, plan.stages, plan.in_flight)
    team = {device: stage.devices for stage in plan.stages for device in stage.devices}
    uses = {}
    for device, need in needs.items():
        takes_turn = np.array([name == device for name in team[device]])
        here_s = birth_s.copy()
        here_s[~takes_turn[np.arange(followed) % len(takes_turn)]] = np.nan
        first = problem.device_index[team[device][0]]
        uses[device] = _use(need, _Lives.of(copies, first, here_s, death_s))
    return uses


@dataclass(frozen=True)
class _Copies:
    """Tensors that take memory, once for every device that holds them.

    Attributes:
        begins: operators (positions in the plan's stages) of which the first begins its life.
        brought: the transfer that brings it, -1 where it is made here.
        ends, leaves: operators and transfers that read it, as (start, numbers).
        is_output: whether it stays until its micro-batch is done.
    """

    tensor: list[str]
    device: Ints
    num_bytes: Floats
    begins: tuple[Ints, Ints]
    brought: Ints
    ends: tuple[Ints, Ints]
    leaves: tuple[Ints, Ints]
    is_output: np.ndarray


def _copies(problem: Problem, plan: Plan) -> _Copies:
    graph = problem.graph
    mine: dict[str, list[str]] = defaultdict(list)
    for stage in plan.stages:
        mine[stage.device] += stage.ops
    here = {device: set(ops) for device, ops in mine.items()}
    apart = {(local_root(graph, t, here[d]), d) for d in mine for t in gradients(graph, mine[d])}
    begins: dict[tuple[str, str], list[int]] = {}
    ends: dict[tuple[str, str], list[int]] = defaultdict(list)
    leaves: dict[tuple[str, str], list[int]] = defaultdict(list)
    brought = {(got.tensor, got.dst): t for t, got in enumerate(plan.transfers)}
    ordered = ((name, stage.device) for stage in plan.stages for name in stage.ops)
    for position, (name, device) in enumerate(ordered):
        op = graph.by_name[name]
        for tensor in (*op.inputs, *(out.name for out in op.outputs)):
            key = (local_root(graph, tensor, here[device]), device)
            ends[key].append(position)
            if graph.producer.get(key[0]) in here[device]:
                begins.setdefault(key, [position])
            elif key not in brought:
                begins.setdefault(key, []).append(position)
    for t, sent in enumerate(plan.transfers):
        leaves[local_root(graph, sent.tensor, here[sent.src]), sent.src].append(t)
    outputs = {
        (local_root(graph, tensor, here[device]), device)
        for device in mine
        for tensor in graph.outputs
    }
    keys = [k for k in ends if k not in apart and not has_own_memory(graph, k[0])]
    return _Copies(
        [tensor for tensor, _ in keys],
        np.array([problem.device_index[device] for _, device in keys], dtype=np.int64),
        np.array([graph.tensors[tensor].num_bytes for tensor, _ in keys], dtype=float),
        csr([begins.get(key, []) for key in keys]),
        np.array([-1 if key in begins else brought[key] for key in keys], dtype=np.int64),
        csr([ends[key] for key in keys]),
        csr([leaves.get(key, []) for key in keys]),
        np.array([key in outputs for key in keys], dtype=bool),
    )


def _lives(timeline: Timeline, copies: _Copies, followed: int) -> tuple[Floats, Floats]:
    """(followed, copies) seconds of birth and death; NaN in micro-batches that lack the tensor."""
    work, times = timeline.work, timeline.times
    stage, begin_s = by_turn(work, work.begin_s, followed)
    end_s = by_turn(work, work.end_s, followed)[1]
    start_s = times.start_s[:followed][:, stage]
    born_s = _reduce(np.fmin, start_s + begin_s, copies.begins)
    came = copies.brought >= 0
    born_s[:, came] = times.left_s[:followed][:, copies.brought[came]]
    dead_s = np.fmax(
        _reduce(np.fmax, start_s + end_s, copies.ends),
        _reduce(np.fmax, times.arrived_s[:followed], copies.leaves),
    )
    done_s = np.nanmax(times.end_s[:followed], axis=1, keepdims=True)
    return born_s, np.where(copies.is_output & ~np.isnan(dead_s), done_s, dead_s)


def _reduce(ufunc: np.ufunc, values: Floats, groups: tuple[Ints, Ints]) -> Floats:
    """Reduce columns of values in groups (start, columns); NaN for an empty group."""
    start, column = groups
    out = np.full((len(values), len(start) - 1), np.nan)
    some = np.diff(start) > 0
    if some.any():
        out[:, some] = ufunc.reduceat(values[:, column], start[:-1][some], axis=1)
    return out


class _Lives(NamedTuple):
    """Activations on one device: names, bytes, birth and death (s), one for each micro-batch."""

    tensor: list[str]
    num_bytes: Floats
    birth_s: Floats
    death_s: Floats

    @classmethod
    def of(cls, copies: _Copies, device: int, birth_s: Floats, death_s: Floats) -> "_Lives":
        """The activations of one device."""
        mine = np.flatnonzero(copies.device == device)
        k, column = np.nonzero(~np.isnan(birth_s[:, mine]))
        column = mine[column]
        return cls(
            [copies.tensor[c] for c in column.tolist()],
            copies.num_bytes[column],
            birth_s[k, column],
            death_s[k, column],
        )

    def at(self, time_s: float, constant_bytes: float) -> Moment:
        """All that is alive at a time."""
        held: dict[str, list[float]] = defaultdict(list)
        alive = np.flatnonzero((self.birth_s <= time_s) & (time_s < self.death_s))
        for c in alive.tolist():
            held[self.tensor[c]].append(float(self.num_bytes[c]))
        largest = sorted(held.items(), key=lambda item: -sum(item[1]))[:MOST_HELD]
        return Moment(
            time_s,
            constant_bytes + float(self.num_bytes[alive].sum()),
            tuple(Held(name, sum(sizes), len(sizes)) for name, sizes in largest),
        )


def _use(need: MemoryNeed, lives: _Lives) -> MemoryUse:
    times_s, alive_bytes = _curve(lives)
    constant = need.param_bytes + need.gradient_bytes + need.state_bytes
    above = np.flatnonzero(constant + alive_bytes > need.limit_bytes)
    times_kept, bytes_kept = _thinned(times_s, alive_bytes)
    return MemoryUse(
        need.param_bytes,
        need.gradient_bytes,
        need.state_bytes,
        need.limit_bytes,
        lives.at(float(times_s[np.argmax(alive_bytes)]), constant),
        lives.at(float(times_s[above[0]]), constant) if len(above) else None,
        tuple(times_kept.tolist()),
        tuple(bytes_kept.tolist()),
    )


def _curve(lives: _Lives) -> tuple[Floats, Floats]:
    """Bytes alive from each time on, beginning with none at time zero."""
    ends = np.isfinite(lives.death_s)
    time_s = np.concatenate([[0.0], lives.birth_s, lives.death_s[ends]])
    change = np.concatenate([[0.0], lives.num_bytes, -lives.num_bytes[ends]])
    order = np.argsort(time_s, kind="stable")
    time_s, alive = time_s[order], np.cumsum(change[order])
    last = np.append(time_s[1:] != time_s[:-1], True)
    return time_s[last], alive[last]


def _thinned(time_s: Floats, num_bytes: Floats) -> tuple[Floats, Floats]:
    """At most MOST_POINTS points: the largest value of each part, at its own time."""
    if len(time_s) <= MOST_POINTS:
        return time_s, num_bytes
    starts = np.linspace(0, len(time_s), MOST_POINTS + 1).astype(np.int64)
    largest = [a + int(np.argmax(num_bytes[a:b])) for a, b in pairwise(starts)]
    return time_s[largest], num_bytes[largest]


def overflows(memory: Mapping[str, MemoryUse]) -> dict[str, Moment]:
    """By device, the moment at which it runs out of memory."""
    return {device: use.overflow for device, use in memory.items() if use.overflow}
