"""What became of the machines that a fleet rented."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardware.documents import STRICT
from scheduler.report import Quantiles, quantiles
from simulator.billing import Item, charges, rentals_of
from simulator.served import Rental, Served


@dataclass(frozen=True)
class RunUpkeep:
    """The machines of one run.

    Attributes:
        ended: how many, by what ended their rent.
        boot_s: seconds from renting a machine until it served, of those that came to it.
        rented_s: machine-seconds.
        items: what they were charged for.
    """

    ended: Counter[str]
    boot_s: tuple[float, ...]
    rented_s: float
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Upkeep:
    """The machines of a fleet, on average over the runs.

    Attributes:
        machines: rented in a run.
        rented: at a time.
        given_back, failed, preempted: machines in a run that ended so.
        boot_s: from renting a machine until it served; None where none was rented after the start.
        notes: where the figures of boot, failures and spot come from.
    """

    __pydantic_config__ = STRICT

    machines: float
    rented: float
    given_back: float
    failed: float
    preempted: float
    boot_s: Quantiles | None
    notes: tuple[str, ...] = ()


def run_upkeep(run: Served) -> RunUpkeep:
    """The machines of a run, and their charges."""
    return upkeep_of(rentals_of(run), charges(run))


def upkeep_of(rentals: Sequence[Rental], items: tuple[Item, ...]) -> RunUpkeep:
    """What became of machines that were charged for so."""
    return RunUpkeep(
        Counter(rental.ended_by for rental in rentals),
        tuple(r.up_s - r.booked_s for r in rentals if r.booked_s > 0 and r.up_s is not None),
        sum(rental.end_s - rental.booked_s for rental in rentals),
        items,
    )


def mean_upkeep(runs: Sequence[RunUpkeep], seconds: float) -> Upkeep:
    """The mean over runs of `seconds` together."""
    ended = sum((run.ended for run in runs), Counter[str]())
    boot_s = np.array([seconds for run in runs for seconds in run.boot_s])
    num = len(runs)
    return Upkeep(
        machines=ended.total() / num,
        rented=sum(run.rented_s for run in runs) / seconds if seconds else 0.0,
        given_back=ended["given_back"] / num,
        failed=ended["failed"] / num,
        preempted=ended["preempted"] / num,
        boot_s=quantiles(boot_s) if len(boot_s) else None,
    )
