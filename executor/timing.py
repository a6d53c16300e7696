"""How an operator is timed on a device: many short samples, the median, and how far they spread."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from executor.worker import Context

SAMPLE_S = 200e-6
"""A sample repeats a call until about this long, so that reading the clock does not count."""
MIN_SAMPLES = 5
MAX_SAMPLES = 25


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call, and the half-width of the middle half of the samples."""

    seconds: float
    spread_s: float


def time_call(context: Context, run: Callable[[], object], budget_s: float) -> Timing:
    """Time a call for about `budget_s`, at least `MIN_SAMPLES` samples.

    Two calls come first that do not count: libraries choose their kernels then.
    """
    run()
    start_s = context.clock()
    run()
    once_s = max(context.clock() - start_s, 1e-7)
    inner = max(1, round(SAMPLE_S / once_s))
    samples: list[float] = []
    begin_s = context.clock()
    while len(samples) < MIN_SAMPLES or (
        len(samples) < MAX_SAMPLES and context.clock() - begin_s < budget_s
    ):
        start_s = context.clock()
        for _ in range(inner):
            run()
        samples.append((context.clock() - start_s) / inner)
    low, middle, high = statistics.quantiles(samples, n=4)
    return Timing(middle, (high - low) / 2)
