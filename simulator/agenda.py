"""What every device runs and every link carries, in the order of the scheduler's timeline."""

from typing import Literal, NamedTuple

import numpy as np

from scheduler.arrays import Ints
from scheduler.evaluation.stage_work import turn_of
from scheduler.evaluation.timeline import Timeline

Sharing = Literal["fair", "fifo"]
"""How links of one medium share it: each an equal part of the bandwidth, or one after the other."""


class Agenda(NamedTuple):
    """m micro-batches of s stages and t transfers on d devices and c carriers.

    A carrier moves one tensor at a time: a link, or a medium whose links take turns.

    Attributes:
        stage_start, stage: device p runs stage[stage_start[p]:stage_start[p + 1]], k * s + i each.
        transfer_start, transfer: carriers likewise, k * t + j each.
        carrier: carrier of a transfer, of those of all turns.
        medium: (c,) medium that a carrier shares with others, -1 where it has one of its own.
        in_flight: micro-batch k enters when k - in_flight has left.
    """

    stage_start: Ints
    stage: Ints
    transfer_start: Ints
    transfer: Ints
    carrier: Ints
    medium: Ints
    in_flight: int


def agenda_of(timeline: Timeline, in_flight: int, sharing: Sharing) -> Agenda:
    """Sort what a timeline starts by device and carrier. O(n log n)."""
    work = timeline.work
    used, carrier = np.unique(work.link if sharing == "fair" else work.medium, return_inverse=True)
    medium = np.full(len(used), -1, dtype=np.int64)
    if sharing == "fair":
        medium[carrier] = work.medium
        medium[np.bincount(medium)[medium] < 2] = -1
    stages = turn_of(work, timeline.stage_order, len(work.seconds) // work.turns)
    moved = turn_of(work, timeline.transfer_order, max(1, len(work.link) // work.turns))
    return Agenda(
        *_by(work.device[stages], timeline.stage_order),
        *_by(carrier[moved], timeline.transfer_order),
        carrier.astype(np.int64),
        medium,
        in_flight,
    )


def _by(resource: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Where each resource's share begins, and the order sorted by resource."""
    counts = np.bincount(resource) if len(resource) else np.zeros(0, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return start, order[np.argsort(resource, kind="stable")]
