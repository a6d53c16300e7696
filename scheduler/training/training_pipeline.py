"""Training steps as pipelines: each layer's backward pass and update stay with its forward pass.

    device 0   f0 f0 f0 b0    b0    b0 u     1F1B: a device runs forward and backward passes of the
    device 1      f1 b1 f1 b1 f1 b1    u     same layers, then updates their weights once

Every backward operator and every optimizer joins a forward operator; the interval dynamic
programme then splits the forward order on the loads of all three.

Source: PipeDream (Narayanan et al., SOSP 2019, section 3.1, doi:10.1145/3341301.3359646), with
one update per batch as in PipeDream-Flush (Narayanan et al., ICML 2021, arXiv:2006.09503).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.evaluation.evaluate import in_flight_of
from scheduler.evaluation.memory import has_own_memory, memory_needs
from scheduler.evaluation.timeline import stage_makespan
from scheduler.list_scheduling.tasks import MEMORY_ROUNDS
from scheduler.plan import cut_stages
from scheduler.problem import Placement, Problem
from scheduler.throughput.contiguous import MOST_TRANSITIONS, Saved, split_table, transitions
from scheduler.throughput.contract import contract
from scheduler.training.folding import folded
from scheduler.training.stage_moves import descended

REPLAYED = 12
"""Splits of an order that are timed: those that promise most."""


def training_pipeline(problem: Problem) -> Placement:
    """Split a training step by layers over as many devices as make one batch end first.

    Where activations do not fit, the devices' limits are lowered by what is missing and all is
    done again; the last placement is returned even so: the plan's own check words the refusal.

    Raises:
        InfeasibleError: the graph is no training step, or no split of its layers fits.
    """
    if problem.graph.mode != "training":
        raise InfeasibleError(f"a {problem.graph.mode} graph has no backward pass")
    arrays = replace(problem.arrays, seconds=problem.seconds_per_micro_batch)
    found: list[tuple[float, float, Placement]] = []
    for _ in range(MEMORY_ROUNDS):
        found = [_valued(problem, device) for device in _splits(problem, arrays)] or found
        if not found or min(excess for excess, _, _ in found) == 0:
            break
        missing = min(excess for excess, _, _ in found)
        arrays = replace(arrays, limit_bytes=arrays.limit_bytes - 1.05 * missing)
    if not found:
        raise InfeasibleError("no split of the layers fits the devices' memory, pins and links")
    return descended(problem, min(found, key=lambda one: one[:2])[2])


def _splits(problem: Problem, arrays: Arrays) -> Iterator[Ints]:
    """(num_ops,) devices of the splits that promise most, over any number of devices.

    A pipeline of m micro-batches takes the largest load m - 1 times, and the sum of all once.
    """
    if transitions(kinds(arrays)) > MOST_TRANSITIONS:
        raise InfeasibleError("too many kinds of devices to split the layers over")
    saved = _saved_bytes(problem)
    m = problem.num_micro_batches
    copies = np.full(arrays.num_devices + 1, m, dtype=np.int64)
    if problem.pipeline == "1f1b":
        copies = np.minimum(copies, np.arange(len(copies)))
    for last in (False, True):
        unit = np.unique(folded(problem, last), return_inverse=True)[1].astype(np.int64)
        layers = contract(arrays, unit)
        last_first = np.arange(layers.num_ops)[::-1]
        bytes_of = np.bincount(unit, saved).astype(np.float64)
        table = split_table(layers, last_first, Saved(bytes_of, copies))
        splits = [(table.load(end), table.devices(end)) for end in table.ends]
        every = np.arange(layers.num_ops)
        splits.sort(key=lambda one: (m - 1) * one[0] + layers.seconds[every, one[1]].sum())
        for _, split in splits[:REPLAYED]:
            yield split[unit]


def _saved_bytes(problem: Problem) -> Floats:
    """(num_ops,) what an operator is the first to read of the forward pass in the backward pass."""
    graph = problem.graph
    saved, known = np.zeros(len(graph.ops)), set[str]()
    for i, op in enumerate(graph.ops):
        if op.phase == "forward":
            continue
        for root in (graph.storage[name] for name in op.inputs):
            maker = graph.producer.get(root)
            late = maker is not None and graph.by_name[maker].phase != "forward"
            if root not in known and not late and not has_own_memory(graph, root):
                known.add(root)
                saved[i] += graph.tensors[root].num_bytes
    return saved


def _valued(problem: Problem, device: Ints) -> tuple[float, float, Placement]:
    """Bytes that do not fit, seconds of a batch, and the placement."""
    names = problem.costs.devices
    placement = {o.name: names[d] for o, d in zip(problem.graph.ops, device, strict=True)}
    stages = cut_stages(problem.graph, placement)
    in_flight = in_flight_of(problem, stages)
    needs = memory_needs(problem, placement, stages, in_flight).values()
    excess = max(0.0, *(need.num_bytes - need.limit_bytes for need in needs))
    return excess, stage_makespan(problem, stages, in_flight, problem.num_micro_batches), placement
