"""How operators are timed: in turn as in a model, many times over, and the median of each."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psutil
import torch

from executor.recipes import Call
from executor.worker import Context

MIN_PASSES = 5
MAX_PASSES = 200
WAIT_SHARE, WAIT_S = 0.03, 5e-6
"""A sample whose thread was off its core for longer than this was disturbed by others."""
MAX_BUDGETS = 2
CUDA_REPEATS = 10
"""Calls between two CUDA events: as in a model, the next is launched while one computes."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the middle half of the samples."""

    seconds: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and for how many of them the thread was off its core."""

    seconds: float
    off_core_s: float


def time_in_turn(
    context: Context, operators: Sequence[Sequence[Call]], budget_s: float
) -> list[Timing]:
    """Time every operator for about `budget_s` in all; at least `MIN_PASSES` samples of each.

    Each pass runs every operator once, one after another, with the next of its calls: code and
    data are then as warm as in a model, where in a loop of its own an operator is up to a third
    faster. Two passes come first that do not count: libraries choose their kernels there. Disturbed
    samples are repeated, for at most `MAX_BUDGETS` times the budget.
    """
    samples: list[list[Sample]] = [[] for _ in operators]
    for turn in range(2):
        for calls in operators:
            calls[turn % len(calls)]()
    begin_s = context.clock()
    turn = 0
    while turn < MAX_PASSES:
        budgets = (context.clock() - begin_s) / budget_s if budget_s > 0 else math.inf
        if turn >= MIN_PASSES and (budgets >= MAX_BUDGETS or (budgets >= 1 and _enough(samples))):
            break
        for found, calls in zip(samples, operators, strict=True):
            found.append(_watched(context, calls, turn))
        turn += 1
    return [timing(calmest(found)) for found in samples]


def _enough(samples: Sequence[Sequence[Sample]]) -> bool:
    return all(len(undisturbed(found)) >= MIN_PASSES for found in samples)


def undisturbed(samples: Sequence[Sample]) -> list[float]:
    """Seconds of the samples during which the thread kept its core."""
    return [s.seconds for s in samples if s.off_core_s <= WAIT_SHARE * s.seconds + WAIT_S]


def calmest(samples: Sequence[Sample]) -> list[float]:
    """Seconds of the undisturbed samples, or of the `MIN_PASSES` that were disturbed least."""
    calm = undisturbed(samples)
    if len(calm) >= MIN_PASSES:
        return calm
    best = sorted(samples, key=lambda s: s.off_core_s / s.seconds)
    return [s.seconds for s in best[:MIN_PASSES]]


def _watched(context: Context, calls: Sequence[Call], turn: int) -> Sample:
    if context.device.kind == "gpu":
        return Sample(sample(context, calls, turn), 0.0)
    on_core_s = time.thread_time()
    seconds = sample(context, calls, turn)
    return Sample(seconds, seconds - (time.thread_time() - on_core_s))


def timing(samples: Sequence[float]) -> Timing:
    """Median and quartiles of samples."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(middle, low, high)


def sample(context: Context, calls: Sequence[Call], turn: int) -> float:
    """Seconds of one call.

    On a device of one core those that the thread was on its core, so that others who take the
    core away do not count; several threads wait for each other, which only the clock sees.
    """
    if context.device.kind == "gpu":
        return _cuda_sample(calls, turn)
    clock = time.thread_time if len(context.device.cores) == 1 else context.clock
    call = calls[turn % len(calls)]
    start_s = clock()
    call()
    return clock() - start_s


def _cuda_sample(calls: Sequence[Call], turn: int) -> float:
    event = partial(torch.cuda.Event, enable_timing=True)
    start, end = event(), event()
    start.record()
    for i in range(CUDA_REPEATS):
        calls[(turn + i) % len(calls)]()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / CUDA_REPEATS


BUSY_SHARE = 0.1
"""Of a machine: others that take more make measured times doubtful."""
PAUSES_S = (0.0, 2.0)
"""Before each attempt to measure on a calm machine."""

T = TypeVar("T")


def calmly(measure: Callable[[], T], pauses_s: Sequence[float] = PAUSES_S) -> tuple[T, float]:
    """What is measured while others leave the machine alone, and the share that they took.

    Attempts follow until one is calm; where none is, the calmest counts. The share is 0 where it
    is too small to matter.
    """
    found: list[tuple[float, int, T]] = []
    for attempt, pause_s in enumerate(pauses_s):
        time.sleep(pause_s)
        load = Load()
        figures = measure()
        found.append((load.share(), attempt, figures))
        if found[-1][0] <= BUSY_SHARE:
            break
    share, _, figures = min(found, key=lambda one: one[:2])
    return figures, share if share > BUSY_SHARE else 0.0


class Load:
    """How busy other processes keep the machine from now on."""

    def __init__(self) -> None:
        self._start = self._figures()

    def others(self) -> float:
        """Cores that others kept busy, or that the host took away, since the start."""
        return self.share() * (psutil.cpu_count() or 1)

    def share(self) -> float:
        """The share of the machine's cores that others took, below 1."""
        all_s, busy_s, own_s = (
            now - then for now, then in zip(self._figures(), self._start, strict=True)
        )
        return min(0.99, max(0.0, (busy_s - own_s) / all_s)) if all_s > 0 else 0.0

    def _figures(self) -> tuple[float, float, float]:
        """Seconds of all cores, of those the busy ones, and this process's with its children's."""
        cpu = psutil.cpu_times()
        idle = cpu.idle + getattr(cpu, "iowait", 0.0)
        me = psutil.Process()
        mine = [me, *me.children(recursive=True)]
        own = sum(sum(process.cpu_times()[:2]) for process in mine)
        return sum(cpu[:8]), sum(cpu[:8]) - idle, own
