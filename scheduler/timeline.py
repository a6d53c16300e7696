"""Timelines: when each operator and each transfer of a plan runs."""

import heapq
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from hardware.documents import STRICT
from scheduler.plan import Plan, Stage
from scheduler.problem import Problem


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
    """Seconds of work per micro-batch of every device and shared medium that a plan uses."""
    device = np.zeros(len(problem.op_index), dtype=np.int64)
    for stage in stages:
        device[[problem.op_index[name] for name in stage.ops]] = problem.device_index[stage.device]
    load = problem.arrays.loads(device)
    used = {stage.device for stage in stages}
    if not problem.arrays.serialised:
        used |= {problem.medium(sent.src, sent.dst) for s in stages for sent in s.sends}
    names = [*problem.costs.devices, *problem.media]
    return {name: float(load[i]) for i, name in enumerate(names) if name in used}


def stage_seconds(problem: Problem, stages: tuple[Stage, ...]) -> list[float]:
    """Seconds that each stage occupies its device.

    Its operators; in serialised communication also what it receives, and what it sends, once
    per tensor.
    """
    row, seconds = problem.op_index, []
    for stage in stages:
        column = problem.device_index[stage.device]
        busy = sum(problem.costs.seconds[row[name], column] for name in stage.ops)
        ends = [t.tensor for t in stage.receives] + list({t.tensor: 0 for t in stage.sends})
        seconds.append(float(busy) + sum(problem.end_s(t, stage.device) for t in ends))
    return seconds


def stage_timeline(
    problem: Problem, stages: tuple[Stage, ...], in_flight: int = 1, num_micro_batches: int = 1
) -> list[Span]:
    """Run stages and transfers as early as possible; at most `in_flight` micro-batches at once.

    A free device takes the ready stage of the oldest micro-batch; a medium carries transfers one
    at a time in the order in which they were asked for. O(n log n) in stages x micro-batches.
    """
    seconds = stage_seconds(problem, stages)
    receiver = {(r.tensor, r.dst): i for i, s in enumerate(stages) for r in s.receives}
    missing = {
        (k, i): len(stage.receives)
        for k in range(num_micro_batches)
        for i, stage in enumerate(stages)
    }
    unfinished = [len(stages)] * num_micro_batches
    ready: dict[str, list[tuple[int, int]]] = defaultdict(list)
    free_s: dict[str, float] = defaultdict(float)
    running: set[str] = set()
    spans: list[Span] = []
    # (end, tie break, micro-batch, stage, whether it is a transfer that arrives at the stage)
    events: list[tuple[float, int, int, int, bool]] = []
    tie = count()
    first, follower = _device_chains(stages)
    turn: set[tuple[int, int]] = set()

    def offer(k: int, i: int) -> None:
        if missing[k, i] == 0 and (k, i) in turn:
            heapq.heappush(ready[stages[i].device], (k, i))

    def admit(k: int) -> None:
        for i in first:
            turn.add((k, i))
            offer(k, i)

    def dispatch(now_s: float) -> None:
        for device in list(ready):
            if device not in running and ready[device]:
                k, i = heapq.heappop(ready[device])
                running.add(device)
                end_s = now_s + seconds[i]
                spans.append(Span(f"stage {i}", "stage", device, now_s, end_s, k))
                heapq.heappush(events, (end_s, next(tie), k, i, False))

    admitted = min(in_flight, num_micro_batches)
    for k in range(admitted):
        admit(k)
    dispatch(0.0)
    while events:
        now_s, _, k, i, arrives = heapq.heappop(events)
        if not arrives:
            running.discard(stages[i].device)
            unfinished[k] -= 1
            for sent in stages[i].sends:
                medium = problem.medium(sent.src, sent.dst)
                start_s = max(now_s, free_s[medium])
                free_s[medium] = end_s = start_s + problem.move_s(sent.tensor, sent.src, sent.dst)
                resource = f"{sent.src}->{sent.dst}"
                spans.append(Span(sent.tensor, "transfer", resource, start_s, end_s, k))
                target = receiver[sent.tensor, sent.dst]
                heapq.heappush(events, (end_s, next(tie), k, target, True))
            if i in follower:
                turn.add((k, follower[i]))
                offer(k, follower[i])
            if unfinished[k] == 0 and admitted < num_micro_batches:
                admit(admitted)
                admitted += 1
        else:
            missing[k, i] -= 1
            offer(k, i)
        if not events or events[0][0] > now_s:
            dispatch(now_s)
    return spans


def _device_chains(stages: tuple[Stage, ...]) -> tuple[list[int], dict[int, int]]:
    """First stage of every device, and the stage that follows each on its device."""
    last: dict[str, int] = {}
    first, follower = [], {}
    for i, stage in enumerate(stages):
        if stage.device in last:
            follower[last[stage.device]] = i
        else:
            first.append(i)
        last[stage.device] = i
    return first, follower


def makespan(spans: list[Span]) -> float:
    """Seconds from zero to the end of the last span."""
    return max(span.end_s for span in spans)


def device_order(
    problem: Problem, plan: Plan, num_micro_batches: int
) -> dict[str, list[tuple[int, int]]]:
    """The (micro-batch, stage) pairs of every device in the order in which it runs them."""
    spans = stage_timeline(problem, plan.stages, plan.in_flight, num_micro_batches)
    order: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for span in sorted((s for s in spans if s.kind == "stage"), key=lambda s: s.start_s):
        order[span.resource].append((span.micro_batch, int(span.name.split()[1])))
    return dict(order)
