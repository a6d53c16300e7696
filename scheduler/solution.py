"""What is asked of the portfolio, what it has found so far, and what it returns."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.bounds.lower_bound import named_bound
from scheduler.evaluation.evaluate import with_bound
from scheduler.evaluation.timeline import slowdown
from scheduler.large.portfolio import is_large
from scheduler.plan import Plan
from scheduler.problem import Problem

Tell = Callable[[float, float], None]
"""Called with the best value and bound so far, in the objective's unit."""

REPLICAS_PAY = 0.99
"""Part of the best value without replicas that one with them must reach in `auto`."""


@dataclass(frozen=True)
class Query:
    """A problem, the name of an algorithm or `auto`, and the seconds that searches may take."""

    problem: Problem
    algorithm: str
    time_limit_s: float
    tell: Tell

    @property
    def is_auto(self) -> bool:
        """Whether all algorithms run that suit the problem."""
        return self.algorithm == "auto"

    @property
    def is_timed(self) -> bool:
        """Whether there is time for searches."""
        return self.time_limit_s > 0


@dataclass(frozen=True)
class Solution:
    """The best plan, all plans from best to worst, and why the other algorithms gave none.

    Attributes:
        stopped: whether Ctrl-C ended the search; the plans are the best until then.
    """

    best: Plan
    plans: tuple[Plan, ...]
    refusals: dict[str, str]
    stopped: bool = False


@dataclass
class Found:
    """What algorithms have given so far: plans, refusals, and the best bound.

    Attributes:
        began_s: when the time limit began, by `time.perf_counter`.
        finish_s: the longest that it took to make a checked plan of a placement.
    """

    bound: float
    bound_by: str
    began_s: float
    plans: list[Plan] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    finish_s: float = 0.0
    stopped: bool = False

    def add(self, name: str, make: Callable[[], Plan]) -> None:
        """Add a plan or a refusal; after Ctrl-C nothing is tried any more."""
        try:
            if not self.stopped:
                self.plans.append(make())
        except InfeasibleError as refusal:
            self.refusals[name] = str(refusal)
        except KeyboardInterrupt:
            if not self.plans:
                raise
            self.stopped = True

    def prove(self, bound: float, by: str) -> None:
        """Take a bound where it is higher."""
        if bound > self.bound:
            self.bound, self.bound_by = bound, by

    def allow_replicas(self, problem: Problem) -> None:
        """Lower the bound to what holds for plans with replicas, too."""
        self.bound, self.bound_by = min(
            (self.bound, self.bound_by), named_bound(problem, replicas=True)
        )

    def solution(self, problem: Problem) -> Solution:
        """The plans from best to worst, each algorithm's best; replicas must pay."""
        best: dict[str, Plan] = {}
        for plan in _from_best(problem, self.plans):
            best.setdefault(plan.algorithm, with_bound(plan, self.bound, self.bound_by))
        plans = tuple(best.values())
        return Solution(plans[0], plans, self.refusals, self.stopped)


def nothing_found(problem: Problem) -> Found:
    """The bound that is known before anything runs; the clock starts.

    Raises:
        InfeasibleError: an operator can run on no device.
    """
    began_s = time.perf_counter()
    return Found(*named_bound(problem), began_s)


def _rank(plan: Plan) -> tuple[float, int, int]:
    pays = REPLICAS_PAY if any(stage.replicas for stage in plan.stages) else 1.0
    return plan.value / pays, len(plan.devices), len(plan.stages)


def _from_best(problem: Problem, plans: list[Plan]) -> list[Plan]:
    """Plans by value; first that which is best as it runs, which pipelines may fall short of."""
    plans = sorted(plans, key=_rank)
    if problem.objective == "latency" or is_large(problem):
        return plans
    best, least = 0, np.inf
    for k, plan in enumerate(plans):
        value = _rank(plan)[0]
        if value >= least:
            break
        value *= slowdown(problem, plan.stages, plan.in_flight)
        if value < least:
            best, least = k, value
    return [plans.pop(best), *plans]
