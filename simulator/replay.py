"""Replay of a plan: devices run its stages, links carry its transfers, and memory fills."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np

from hardware.documents import STRICT
from scheduler.arrays import Floats
from scheduler.data_parallel.replicas import copies
from scheduler.evaluation.dispatch import Times
from scheduler.evaluation.stage_work import StageWork, by_turn
from scheduler.evaluation.timeline import (
    Span,
    Timeline,
    last_end_s,
    num_steady,
    run_stages,
    spans_of,
    steady_window,
)
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.report import Quantiles, Report
from simulator.agenda import Agenda, Sharing, agenda_of
from simulator.fast_pipeline import run_fast
from simulator.memory import memory_over_time
from simulator.pipeline import run_simpy
from simulator.ring_traffic import RingTraffic, awaited_spans, ring_traffic

Engine = Literal["auto", "simpy", "fast"]
ENGINES: dict[str, Callable[[StageWork, Agenda, int], Times]] = {
    "simpy": run_simpy,
    "fast": run_fast,
}
FEW = 2000
"""Stages and operators that SimPy runs by itself; above, `auto` takes the compiled engine."""
MOST_SPANS = 20_000
"""Spans kept of the steady state."""


@dataclass(frozen=True)
class ReplayChoice:
    """How a plan is replayed.

    Attributes:
        engine: `simpy` is the reference, `fast` is compiled and gives the same times; `auto`
            chooses by size.
        sharing: links of one medium share its bandwidth fairly (`fair`), or a tensor has it to
            itself, first come first served (`fifo`), as the scheduler assumes.
    """

    __pydantic_config__ = STRICT

    engine: Engine = "auto"
    sharing: Sharing = "fair"


DEFAULT = ReplayChoice()


def replay(problem: Problem, plan: Plan, choice: ReplayChoice = DEFAULT) -> Report:
    """Predict one batch alone and the steady state with micro-batches in flight.

    Where one batch follows another without overlap (steps of training and generation, one
    micro-batch in flight) the steady state is that of a batch alone. Otherwise it runs at least 24
    micro-batches and is read in its `steady_window`.

    Raises:
        ValueError: the plan takes no time.
    """
    alone = replayed(problem, plan, plan.num_micro_batches, choice)
    latency_s = last_end_s(alone.times)
    if latency_s == 0:
        raise ValueError(f"plan of '{plan.model}': all its operators and transfers take 0 s")
    if problem.graph.is_sequential or plan.in_flight == 1:
        steady, window, done = alone, (0.0, latency_s), plan.num_micro_batches
    else:
        num = num_steady(plan.stages, plan.in_flight, plan.num_micro_batches)
        steady = replayed(problem, plan, num, choice)
        first, last = steady_window(plan.stages, plan.in_flight, num)
        ends = np.nanmax(steady.times.end_s, axis=1)
        window, done = (float(ends[first]), float(ends[last])), last - first
    throughput = done * problem.graph.samples / (window[1] - window[0])
    placed: dict[str, list[int]] = defaultdict(list)
    for row, op in enumerate(problem.graph.ops):
        placed[plan.placement[op.name]].append(row)
    low, high = problem.costs.band(placed)
    carried: dict[str, float] = defaultdict(float)
    alike = copies(plan.stages)
    for transfer in (sent for copy in alike for stage in copy for sent in stage.sends):
        carried[f"{transfer.src}->{transfer.dst}"] += transfer.num_bytes / len(alike)
    rings = ring_traffic(problem, plan)
    for ring in rings:
        for link in ring.links:
            carried[link] += ring.link_bytes / plan.num_micro_batches
    return Report(
        latency_s=Quantiles(*[latency_s] * 5),
        throughput_per_s=throughput,
        utilization=_utilization(plan, steady, window, rings),
        busy_s=_busy(plan, alone),
        link_bytes=dict(carried),
        latency_band_s=(latency_s * low, latency_s * high),
        throughput_band_per_s=(throughput / high, throughput / low),
        spans=_by_start(_op_spans(problem, plan, alone), awaited_spans(problem, rings, alone)),
        pipeline_spans=_by_start(
            stage_spans(plan, steady, MOST_SPANS), awaited_spans(problem, rings, steady)
        ),
        memory=memory_over_time(problem, plan, steady),
    )


def replayed(
    problem: Problem, plan: Plan, num_micro_batches: int, choice: ReplayChoice = DEFAULT
) -> Timeline:
    """Run micro-batches through a plan, every device in the order of the scheduler's timeline.

    Under `fifo` a medium keeps the timeline's order, too; else a link is first come first served.
    """
    planned = run_stages(problem, plan.stages, plan.in_flight, num_micro_batches)
    agenda = agenda_of(planned, plan.in_flight, choice.sharing)
    engine = choice.engine
    if engine == "auto":
        few = num_micro_batches * (len(plan.stages) + len(plan.placement)) <= FEW
        engine = "simpy" if few else "fast"
    times = ENGINES[engine](planned.work, agenda, num_micro_batches)
    return replace(planned, times=times)


def simulate(
    problem: Problem, plan: Plan, num_micro_batches: int, choice: ReplayChoice = DEFAULT
) -> list[Span]:
    """The spans of stages and transfers of a replay by start."""
    return stage_spans(plan, replayed(problem, plan, num_micro_batches, choice))


def stage_spans(plan: Plan, timeline: Timeline, most: int | None = None) -> list[Span]:
    """Spans of stages and transfers by start; the first `most` of each."""
    times = timeline.times
    stages = timeline.stage_order[np.argsort(times.start_s.flat[timeline.stage_order])][:most]
    moved = timeline.transfer_order[np.argsort(times.left_s.flat[timeline.transfer_order])][:most]
    spans = spans_of(plan.stages, times, stages, moved)
    return sorted(spans, key=lambda span: span.start_s)


def op_ends(work: StageWork, times: Times) -> Floats:
    """(m, n) seconds at which every operator, in the order of the plan's stages, ends."""
    stage, end_s = by_turn(work, work.end_s, len(times.start_s))
    return np.asarray(times.start_s[:, stage] + end_s)


def _op_spans(problem: Problem, plan: Plan, timeline: Timeline) -> list[Span]:
    """Operators that take time, and transfers, by start."""
    work, times = timeline.work, timeline.times
    stage, begin_s = by_turn(work, work.begin_s, len(times.start_s))
    start_s = times.start_s[:, stage] + begin_s
    end_s = op_ends(work, times)
    k, o = np.nonzero(end_s > start_s)
    order = np.argsort(start_s[k, o], kind="stable")
    k, o = k[order], o[order]
    names = [op.name for op in problem.graph.ops]
    devices = [[stage.device for stage in copy] for copy in copies(plan.stages)]
    spans = [
        Span(names[row], "op", devices[number % len(devices)][i], a, b, number)
        for row, i, a, b, number in zip(
            work.op[o].tolist(),
            stage[o].tolist(),
            start_s[k, o].tolist(),
            end_s[k, o].tolist(),
            k.tolist(),
            strict=True,
        )
    ]
    spans += spans_of(plan.stages, times, timeline.stage_order[:0], timeline.transfer_order)
    return sorted(spans, key=lambda span: span.start_s)


def _busy(plan: Plan, timeline: Timeline) -> Mapping[str, float]:
    """Seconds of work per micro-batch by device: the mean over the turns of replicas."""
    busy = defaultdict[str, float](float)
    ran = ~np.isnan(timeline.times.start_s)
    alike = copies(plan.stages)
    seconds = timeline.work.seconds.reshape(timeline.work.turns, -1)
    for k, copy in enumerate(alike):
        share = ran[k :: len(alike)].sum(axis=0) / len(ran) * seconds[k % len(seconds)]
        for stage, busy_s in zip(copy, share.tolist(), strict=True):
            busy[stage.device] += busy_s
    return dict(busy)


def _by_start(*spans: list[Span]) -> tuple[Span, ...]:
    return tuple(sorted(chain(*spans), key=lambda span: span.start_s))


def _utilization(
    plan: Plan, timeline: Timeline, window: tuple[float, float], rings: list[RingTraffic]
) -> dict[str, float]:
    """Share of a window that each device and link is busy."""
    times = timeline.times
    busy = defaultdict[str, float](float)
    alike = copies(plan.stages)
    start_s = np.concatenate([times.start_s, times.left_s], axis=1)
    end_s = np.concatenate([times.end_s, times.arrived_s], axis=1)
    overlap_s = np.minimum(end_s, window[1]) - np.maximum(start_s, window[0])
    for k, copy in enumerate(alike):
        names = [stage.device for stage in copy]
        names += [f"{sent.src}->{sent.dst}" for stage in copy for sent in stage.sends]
        total_s = np.nansum(np.fmax(overlap_s[k :: len(alike)], 0), axis=0)
        for name, seconds in zip(names, total_s.tolist(), strict=True):
            busy[name] += seconds
    for ring in rings:  # only steps have any, and a step is the whole window
        for link in ring.links:
            busy[link] += ring.busy_s
    return {name: seconds / (window[1] - window[0]) for name, seconds in busy.items()}
