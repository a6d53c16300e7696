"""What activations a timeline holds on every device, and for how long.

An activation lives from the start of the operator that makes it, or of the transfer that brings it,
to the end of the last operator or transfer that reads it; inputs of the graph from their first use,
its outputs until the micro-batch is done. Views share the memory of their base.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.arrays import Floats, Ints, csr
from scheduler.data_parallel.all_reduce import gradients
from scheduler.evaluation.memory import has_own_memory, local_root
from scheduler.evaluation.stage_work import by_turn
from scheduler.evaluation.timeline import Timeline, run_stages
from scheduler.plan import Stage
from scheduler.problem import Problem


def peak_bytes(problem: Problem, stages: Sequence[Stage], in_flight: int) -> dict[str, float]:
    """Most bytes of activations that every device holds while one batch runs alone.

    O(operators + tensor uses + stages) a micro-batch.
    """
    timeline = run_stages(problem, tuple(stages), in_flight, problem.num_micro_batches)
    copies = copies_of(problem, stages)
    birth_s, death_s = lives(timeline, copies, problem.num_micro_batches)
    peaks = {}
    for device, (turns, first) in turns_of(stages).items():
        here_s = in_turn(birth_s, turns, device)
        mine = copies.device == problem.device_index[first]
        k, column = np.nonzero(~np.isnan(here_s) & mine)
        born_s, dead_s = here_s[k, column], death_s[k, column]
        peaks[device] = float(alive_bytes(born_s, dead_s, copies.num_bytes[column])[1].max())
    return peaks


def turns_of(stages: Sequence[Stage]) -> dict[str, tuple[tuple[str, ...], str]]:
    """By device, the devices that take turns with it, and the first of these."""
    return {device: (s.devices, s.device) for s in stages for device in s.devices}


def in_turn(birth_s: Floats, turns: tuple[str, ...], device: str) -> Floats:
    """Births (micro-batches, copies), NaN in the micro-batches that another device runs."""
    here_s = birth_s.copy()
    takes_turn = np.array([name == device for name in turns])
    here_s[~takes_turn[np.arange(len(birth_s)) % len(turns)]] = np.nan
    return here_s


@dataclass(frozen=True)
class Copies:
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


def copies_of(problem: Problem, stages: Sequence[Stage]) -> Copies:
    """All that lives on some device, in the order of the stages' operators."""
    graph, transfers = problem.graph, [sent for stage in stages for sent in stage.sends]
    mine: dict[str, list[str]] = defaultdict(list)
    for stage in stages:
        mine[stage.device] += stage.ops
    here = {device: set(ops) for device, ops in mine.items()}
    apart = {(local_root(graph, t, here[d]), d) for d in mine for t in gradients(graph, mine[d])}
    begins: dict[tuple[str, str], list[int]] = {}
    ends: dict[tuple[str, str], list[int]] = defaultdict(list)
    leaves: dict[tuple[str, str], list[int]] = defaultdict(list)
    brought = {(got.tensor, got.dst): t for t, got in enumerate(transfers)}
    ordered = ((name, stage.device) for stage in stages for name in stage.ops)
    for position, (name, device) in enumerate(ordered):
        op = graph.by_name[name]
        for tensor in (*op.inputs, *(out.name for out in op.outputs)):
            key = (local_root(graph, tensor, here[device]), device)
            ends[key].append(position)
            if graph.producer.get(key[0]) in here[device]:
                begins.setdefault(key, [position])
            elif key not in brought:
                begins.setdefault(key, []).append(position)
    for t, sent in enumerate(transfers):
        leaves[local_root(graph, sent.tensor, here[sent.src]), sent.src].append(t)
    outputs = {
        (local_root(graph, tensor, here[device]), device)
        for device in mine
        for tensor in graph.outputs
    }
    keys = [k for k in ends if k not in apart and not has_own_memory(graph, k[0])]
    return Copies(
        [tensor for tensor, _ in keys],
        np.array([problem.device_index[device] for _, device in keys], dtype=np.int64),
        np.array([graph.tensors[tensor].num_bytes for tensor, _ in keys], dtype=float),
        csr([begins.get(key, []) for key in keys]),
        np.array([-1 if key in begins else brought[key] for key in keys], dtype=np.int64),
        csr([ends[key] for key in keys]),
        csr([leaves.get(key, []) for key in keys]),
        np.array([key in outputs for key in keys], dtype=bool),
    )


def lives(timeline: Timeline, copies: Copies, followed: int) -> tuple[Floats, Floats]:
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


def alive_bytes(birth_s: Floats, death_s: Floats, num_bytes: Floats) -> tuple[Floats, Floats]:
    """Times, and the bytes alive from each on, beginning with none at time zero."""
    ends = np.isfinite(death_s)
    time_s = np.concatenate([[0.0], birth_s, death_s[ends]])
    change = np.concatenate([[0.0], num_bytes, -num_bytes[ends]])
    order = np.argsort(time_s, kind="stable")
    time_s, alive = time_s[order], np.cumsum(change[order])
    last = np.append(time_s[1:] != time_s[:-1], True)
    return time_s[last], alive[last]
