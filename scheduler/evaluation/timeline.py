"""Timelines: when each operator and each transfer of a plan runs."""

from collections import defaultdict
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from hardware.documents import STRICT
from scheduler.arrays import Ints
from scheduler.data_parallel.replicas import copies, cycle
from scheduler.evaluation.dispatch import (
    ALL_FORWARD_FIRST,
    OLDEST_FIRST,
    ONE_FORWARD_ONE_BACKWARD,
    Times,
    dispatch,
    most_waiting,
    no_times,
)
from scheduler.evaluation.stage_work import StageWork, stage_work
from scheduler.plan import Plan, Stage
from scheduler.problem import Problem

RULES = {"1f1b": ONE_FORWARD_ONE_BACKWARD, "gpipe": ALL_FORWARD_FIRST}


@dataclass(frozen=True)
class Span:
    """Something that occupied a device or a link: planned, simulated or measured."""

    __pydantic_config__ = STRICT

    name: str
    kind: Literal["op", "stage", "transfer"]
    resource: str
    start_s: float
    end_s: float
    micro_batch: int = 0

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s


def loads(problem: Problem, stages: tuple[Stage, ...]) -> dict[str, float]:
    """Seconds of work per micro-batch of every device and shared medium that a plan uses.

    The mean over a cycle of micro-batches, where stages have replicas.
    """
    names = [*problem.costs.devices, *problem.media]
    load: dict[str, list[float]] = defaultdict(list)
    alike = copies(stages)
    for copy in alike:
        device = np.zeros(len(problem.op_index), dtype=np.int64)
        for stage in copy:
            rows = [problem.op_index[name] for name in stage.ops]
            device[rows] = problem.device_index[stage.device]
        used = {stage.device for stage in copy}
        if not problem.arrays.serialised:
            used |= {problem.medium(sent.src, sent.dst) for s in copy for sent in s.sends}
        of_copy = dict(zip(names, problem.arrays.loads(device).tolist(), strict=False))
        for name in names:
            if name in used:
                load[name].append(of_copy[name])
    return {name: sum(load[name]) / len(alike) for name in names if name in load}


def stage_timeline(
    problem: Problem, stages: tuple[Stage, ...], in_flight: int = 1, num_micro_batches: int = 1
) -> list[Span]:
    """Run stages and transfers as early as possible; at most `in_flight` micro-batches at once.

    A free device takes the ready stage of the oldest micro-batch, in training that which
    `problem.pipeline` lets it take; a medium carries transfers one at a time in the order in which
    they were asked for.
    """
    timeline = run_stages(problem, stages, in_flight, num_micro_batches)
    return spans_of(stages, timeline.times, timeline.stage_order, timeline.transfer_order)


@dataclass(frozen=True)
class Timeline:
    """When stages and transfers run, and in which order they start.

    Attributes:
        stage_order: k * s + i for stage i of micro-batch k.
        transfer_order: k * t + j for transfer j of micro-batch k.

    """

    work: StageWork
    times: Times
    stage_order: Ints
    transfer_order: Ints


def run_stages(
    problem: Problem, stages: tuple[Stage, ...], in_flight: int, num_micro_batches: int
) -> Timeline:
    """What `stage_timeline` draws, as arrays.

    Raises:
        InfeasibleError: no link joins two devices between which a tensor must pass.
    """
    work = stage_work(problem, stages if num_micro_batches > 1 else copies(stages)[0])
    times = no_times(num_micro_batches, work)
    most = most_waiting(problem, work)
    rule = RULES[problem.pipeline] if problem.trains_in_parts else OLDEST_FIRST
    return Timeline(work, times, *dispatch(work, rule, most, in_flight, times))


def spans_of(
    stages: tuple[Stage, ...], times: Times, stage_order: Ints, transfer_order: Ints
) -> list[Span]:
    """Stages and transfers as spans, in the given orders."""
    spans = []
    alike = copies(stages)
    for task in stage_order.tolist():
        k, i = divmod(task, len(stages))
        start_s, end_s = times.start_s.item(k, i), times.end_s.item(k, i)
        spans.append(
            Span(f"stage {i}", "stage", alike[k % len(alike)][i].device, start_s, end_s, k)
        )
    sends = [[sent for stage in copy for sent in stage.sends] for copy in alike]
    for task in transfer_order.tolist():
        k, t = divmod(task, len(sends[0]))
        sent = sends[k % len(alike)][t]
        link = f"{sent.src}->{sent.dst}"
        start_s, end_s = times.left_s.item(k, t), times.arrived_s.item(k, t)
        spans.append(Span(sent.tensor, "transfer", link, start_s, end_s, k))
    return spans


def makespan(spans: list[Span]) -> float:
    """Seconds from zero to the end of the last span."""
    return max(span.end_s for span in spans)


def stage_makespan(
    problem: Problem, stages: tuple[Stage, ...], in_flight: int = 1, num_micro_batches: int = 1
) -> float:
    """Seconds from zero to the end of the last stage or transfer of `stage_timeline`."""
    return last_end_s(run_stages(problem, stages, in_flight, num_micro_batches).times)


def last_end_s(times: Times) -> float:
    """Seconds from zero to the end of the last stage or transfer."""
    return float(max(np.nanmax(times.end_s), np.nanmax(times.arrived_s, initial=0.0)))


def num_steady(stages: tuple[Stage, ...], in_flight: int, num_micro_batches: int) -> int:
    """Micro-batches that show the steady state, in whole turns of replicated stages."""
    turn = cycle(stages)
    return turn * ceil(max(24, 6 * in_flight + 4 * num_micro_batches) / turn)


def steady_window(
    stages: tuple[Stage, ...], in_flight: int, num_micro_batches: int
) -> tuple[int, int]:
    """The micro-batches between whose ends a run is in its steady state.

        fills | first ......... last | drains

    It has filled when `in_flight` + 3 have left, and drains when nothing enters any more: from the
    end of the `in_flight` + 1st from last. Whole turns of replicated stages lie between the two.
    """
    first, last = in_flight + 2, num_micro_batches - 1 - in_flight
    return first + (last - first) % cycle(stages), last


def slowdown(problem: Problem, stages: tuple[Stage, ...], in_flight: int) -> float:
    """Seconds per micro-batch in steady state over the largest load, at least 1.

    A micro-batch that comes back to a device waits for others there, so that a plan of many stages
    may stay below the throughput that its loads would allow. 1 where one batch follows another, and
    for published instances (serialised transfers), whose value is the load.
    """
    if in_flight == 1 or problem.graph.is_sequential or problem.arrays.serialised:
        return 1.0
    num = num_steady(stages, in_flight, problem.num_micro_batches)
    ends_s = np.nanmax(run_stages(problem, stages, in_flight, num).times.end_s, axis=1)
    first, last = steady_window(stages, in_flight, num)
    load_s = max(loads(problem, stages).values()) * (last - first)
    return max(1.0, float(ends_s[last] - ends_s[first]) / load_s) if load_s > 0 else 1.0


def device_order(
    problem: Problem, plan: Plan, num_micro_batches: int
) -> dict[str, list[tuple[int, int]]]:
    """The (micro-batch, stage) pairs of every device in the order in which it runs them."""
    timeline = run_stages(problem, plan.stages, plan.in_flight, num_micro_batches)
    order: dict[str, list[tuple[int, int]]] = defaultdict(list)
    alike = copies(plan.stages)
    for task in timeline.stage_order.tolist():
        k, i = divmod(task, len(plan.stages))
        order[alike[k % len(alike)][i].device].append((k, i))
    return dict(order)
