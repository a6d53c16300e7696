"""Memory of every device over the time of a replay, its peak, and what holds it."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from scheduler.arrays import Floats
from scheduler.evaluation.memory import memory_needs
from scheduler.evaluation.memory_timeline import (
    Copies,
    alive_bytes,
    copies_of,
    in_turn,
    lives,
    turns_of,
)
from scheduler.evaluation.timeline import Timeline
from scheduler.plan import MemoryNeed, Plan
from scheduler.problem import Problem
from scheduler.report import Held, MemoryUse, Moment

MOST_HELD = 8
"""Tensors named at a moment."""
MOST_POINTS = 1000
"""Points kept of a device's memory over time."""


def memory_over_time(problem: Problem, plan: Plan, timeline: Timeline) -> dict[str, MemoryUse]:
    """What every device of a plan holds while a timeline runs.

    See `scheduler/evaluation/memory_timeline.py`. Followed until the first micro-batch enters that
    is none of the first `in_flight + num_micro_batches`.
    """
    m = len(timeline.times.start_s)
    followed = min(m, plan.in_flight + plan.num_micro_batches)
    copies = copies_of(problem, plan.stages)
    birth_s, death_s = lives(timeline, copies, followed)
    if followed < m:
        until_s = float(np.nanmin(timeline.times.start_s[followed]))
        birth_s = np.where(birth_s < until_s, birth_s, np.nan)
        death_s = np.where(death_s < until_s, death_s, np.inf)
    needs = memory_needs(problem, plan.placement, plan.stages, plan.in_flight)
    uses = {}
    for device, (turns, first) in turns_of(plan.stages).items():
        here_s = in_turn(birth_s, turns, device)
        number = problem.device_index[first]
        uses[device] = _use(needs[device], _Lives.of(copies, number, here_s, death_s))
    return uses


class _Lives(NamedTuple):
    """Activations on one device: names, bytes, birth and death (s), one for each micro-batch."""

    tensor: list[str]
    num_bytes: Floats
    birth_s: Floats
    death_s: Floats

    @classmethod
    def of(cls, copies: Copies, device: int, birth_s: Floats, death_s: Floats) -> "_Lives":
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
    times_s, alive = alive_bytes(lives.birth_s, lives.death_s, lives.num_bytes)
    constant = need.param_bytes + need.gradient_bytes + need.state_bytes
    above = np.flatnonzero(constant + alive > need.limit_bytes)
    times_kept, bytes_kept = _thinned(times_s, alive)
    return MemoryUse(
        need.param_bytes,
        need.gradient_bytes,
        need.state_bytes,
        need.limit_bytes,
        lives.at(float(times_s[np.argmax(alive)]), constant),
        lives.at(float(times_s[above[0]]), constant) if len(above) else None,
        tuple(times_kept.tolist()),
        tuple(bytes_kept.tolist()),
    )


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
