"""What replicas send to sum their gradients: bytes and busy time of links, and what is awaited."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scheduler.data_parallel.all_reduce import Ring, gradients, rings
from scheduler.data_parallel.replicas import teams
from scheduler.evaluation.stage_work import BACKWARD, FORWARD
from scheduler.evaluation.timeline import Span, Timeline
from scheduler.plan import Plan
from scheduler.problem import Problem


@dataclass(frozen=True)
class RingTraffic:
    """The sum of one team's gradients, once a batch.

    Attributes:
        links: 'src->dst' of the ring.
        link_bytes: that each of them carries, 2 (r - 1) / r of the gradients.
        busy_s: that each of them is busy.
    """

    devices: tuple[str, ...]
    links: tuple[str, ...]
    link_bytes: float
    busy_s: float


def ring_traffic(problem: Problem, plan: Plan) -> list[RingTraffic]:
    """The rings of a training step's replicas; none where no gradients are summed."""
    if not problem.trains_in_parts:
        return []
    num_bytes: dict[tuple[str, ...], int] = {}
    for first, turns in teams(plan.stages).items():
        ops = [name for stage in plan.stages if stage.device == first for name in stage.ops]
        if summed := sum(gradients(problem.graph, ops).values()):
            num_bytes[tuple(turns)] = summed
    found = rings(problem, list(num_bytes))
    return [_traffic(*one) for one in zip(num_bytes, num_bytes.values(), found, strict=True)]


def _traffic(devices: tuple[str, ...], num_bytes: int, ring: Ring) -> RingTraffic:
    links = tuple(f"{src}->{dst}" for src, dst in pairwise([*devices, devices[0]]))
    latency_s, s_per_byte = ring
    share = 2 * (len(devices) - 1) / len(devices)
    return RingTraffic(devices, links, share * num_bytes, latency_s + s_per_byte * num_bytes)


def awaited_spans(problem: Problem, rings: list[RingTraffic], timeline: Timeline) -> list[Span]:
    """What is left of every ring when the last of its gradients is there, on each of its links."""
    return [
        Span("sum of gradients", "transfer", link, start_s, end_s)
        for ring, start_s, end_s in _awaited(problem, rings, timeline)
        for link in ring.links
    ]


def _awaited(
    problem: Problem, rings: list[RingTraffic], timeline: Timeline
) -> Iterator[tuple[RingTraffic, float, float]]:
    """Each ring that is waited for, from the last gradient to the sum (s)."""
    work, times = timeline.work, timeline.times
    device = _by_micro_batch(work.device, work.turns, len(times.start_s))
    phase = _by_micro_batch(work.phase, work.turns, len(times.start_s))
    reader = _by_micro_batch(work.reader, work.turns, len(times.start_s))
    for ring in rings:
        team = [problem.device_index[name] for name in ring.devices]
        left_s = float(work.sum_s[team[0]])
        made = np.isin(device, team) & np.isin(phase, (FORWARD, BACKWARD))
        last_s = np.nanmax(np.where(made, times.end_s, np.nan))
        sent = _by_micro_batch(work.gathered, work.turns, len(times.start_s))
        sent &= np.isin(work.device[reader], team)
        last_s = max(last_s, np.nanmax(np.where(sent, times.arrived_s, 0.0), initial=0.0))
        if left_s > 0:
            yield ring, float(last_s), float(last_s) + left_s


def _by_micro_batch(of_turn: np.ndarray, turns: int, num_micro_batches: int) -> np.ndarray:
    """(turns x s,) of a cycle as (m, s)."""
    return np.asarray(of_turn.reshape(turns, -1)[np.arange(num_micro_batches) % turns])
