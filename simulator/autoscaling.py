"""How many replicas are wanted. Each policy is a function and an entry in the dictionary.

every interval_s: look at the fleet ─→ policy ─→ after delay_s: rent, or give back
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hardware.documents import STRICT
from simulator.arrivals import positive

DEFAULT_TARGET = {"utilization": 0.7, "queue": 8.0}

TOLERANCE = 1e-6
"""Of a replica: what is above a whole number by less asks for no further one."""


@dataclass(frozen=True)
class Step:
    """From `at_s` on, so many replicas."""

    __pydantic_config__ = STRICT
    at_s: float
    replicas: int


@dataclass(frozen=True)
class Autoscaling:
    """By what, and how fast, the number of replicas follows the load.

    Attributes:
        policy: `utilization` (share of the time that replicas compute), `queue` (requests that
            wait or run, by replica), or `schedule`.
        target: what the policy holds: 0.7 of the time, or 8 requests, unless given.
        interval_s: between two looks at the fleet.
        delay_s: from a look until what it decided is done.
        cooldown_s: after a change, as long is no replica given back.
        schedule: of the policy of that name; repeats every `period_s`.
    """

    __pydantic_config__ = STRICT
    max: int
    policy: Literal["utilization", "queue", "schedule"] = "utilization"
    min: int = 1
    target: float | None = None
    interval_s: float = 15.0
    delay_s: float = 0.0
    cooldown_s: float = 300.0
    schedule: tuple[Step, ...] = ()
    period_s: float = 86_400.0

    def __post_init__(self) -> None:
        """Refuse bounds that contradict, targets out of reach, and schedules out of order."""
        where = "serving.autoscaling"
        if self.min < 1:
            raise ValueError(f"{where}: min must be at least 1, got {self.min}")
        if self.max < self.min:
            raise ValueError(f"{where}: max must be at least min ({self.min}), got {self.max}")
        positive(where, target=self.target, interval_s=self.interval_s, period_s=self.period_s)
        for key in ("delay_s", "cooldown_s"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{where}: {key} must not be negative, got {value}")
        if self.policy == "utilization" and self.target is not None and self.target > 1:
            raise ValueError(f"{where}: target is a share of the time, 0 to 1, got {self.target}")
        if (self.policy == "schedule") != bool(self.schedule):
            raise ValueError(
                f"{where}: policy schedule and the key schedule belong together, "
                "e.g. schedule: [{at_s: 0, replicas: 2}, {at_s: 28800, replicas: 6}]"
            )
        if self.policy == "schedule" and self.target is not None:
            raise ValueError(f"{where}: a schedule has no target, got {self.target}")
        self._check_schedule()

    def _check_schedule(self) -> None:
        times = [step.at_s for step in self.schedule]
        if times and (times[0] != 0 or times != sorted(set(times)) or times[-1] >= self.period_s):
            raise ValueError(
                "serving.autoscaling: schedule must begin with at_s: 0 and rise, each below "
                f"period_s ({self.period_s:g}), got {times}"
            )
        for step in self.schedule:
            if not self.min <= step.replicas <= self.max:
                raise ValueError(
                    f"serving.autoscaling: schedule asks for {step.replicas} replicas at "
                    f"{step.at_s:g} s; min is {self.min} and max {self.max}"
                )

    @property
    def goal(self) -> float:
        """The target that counts."""
        return DEFAULT_TARGET[self.policy] if self.target is None else self.target


@dataclass(frozen=True)
class Look:
    """What a policy sees.

    Attributes:
        busy: replicas that computed since the last look, on average.
        present: requests that wait or run now.
    """

    now_s: float
    busy: float
    present: int


def utilization(autoscaling: Autoscaling, look: Look) -> int:
    """As many as make the busy ones the target's share: ceil(busy / target).

    The rule of Kubernetes' horizontal autoscaler, ceil(replicas * utilization / target), with
    replicas that do not serve yet left out.
    """
    return math.ceil(look.busy / autoscaling.goal - TOLERANCE)


def queue(autoscaling: Autoscaling, look: Look) -> int:
    """As many as bring the requests that wait or run at each to the target."""
    return math.ceil(look.present / autoscaling.goal - TOLERANCE)


def schedule(autoscaling: Autoscaling, look: Look) -> int:
    """As the schedule says for the time of its period."""
    time_s = look.now_s % autoscaling.period_s
    return [step.replicas for step in autoscaling.schedule if step.at_s <= time_s][-1]


POLICIES: dict[str, Callable[[Autoscaling, Look], int]] = {
    "utilization": utilization,
    "queue": queue,
    "schedule": schedule,
}


def wanted(autoscaling: Autoscaling, look: Look) -> int:
    """Replicas that the policy asks for, within the bounds."""
    asked = POLICIES[autoscaling.policy](autoscaling, look)
    return max(autoscaling.min, min(autoscaling.max, asked))
