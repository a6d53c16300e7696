"""Traffic: how many requests arrive, and when."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hardware.documents import STRICT
from simulator.lengths import Lengths
from simulator.trace import MAX_ROWS, Array, Requests, read_trace

DURATION_S = 600.0
"""Of traffic that says nothing of its duration and is no trace."""


def positive(subject: str, **values: float | None) -> None:
    """Refuse values that are not positive and finite; None passes.

    Raises:
        ValueError: one is not.
    """
    for key, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{subject}: {key} must be positive, got {value}")


@dataclass(frozen=True)
class Slo:
    """What is promised to 95 % of the requests, or to `share` of them.

    Attributes:
        p95_s: seconds until the answer, or the whole of it.
        p99_s: of generations, in its place: what 99 % are promised.
        ttft_s, tpot_s: of generations, seconds until the first token and for each further one.
        share: of generations, of the requests that meet all of the promise.
    """

    __pydantic_config__ = STRICT
    p95_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    p99_s: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """Refuse promises of nothing, such that are not positive, and such that contradict."""
        positive("slo", p95_s=self.p95_s, ttft_s=self.ttft_s, tpot_s=self.tpot_s, p99_s=self.p99_s)
        if not any((self.p95_s, self.p99_s, self.ttft_s, self.tpot_s)):
            raise ValueError("slo: p95_s is missing; generations may have ttft_s and tpot_s")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"slo: share must be above 0 and below 1, got {self.share}")
        shares = {"p95_s": 0.95, "p99_s": 0.99}
        named = [key for key in shares if getattr(self, key) is not None]
        if len(named) > 1:
            raise ValueError("slo: p95_s and p99_s are two promises; leave one out")
        if named and self.share not in (None, shares[named[0]]):
            raise ValueError(
                f"slo: {named[0]} is a promise to {shares[named[0]]:.0%} of the requests, share is "
                f"{self.share}; leave one out"
            )

    @property
    def promised_share(self) -> float:
        """Of the requests, those that the promise covers."""
        return self.share or (0.99 if self.p99_s else 0.95)

    @property
    def whole_s(self) -> float | None:
        """Seconds until the whole answer, if promised."""
        return self.p95_s or self.p99_s

    @property
    def answer_s(self) -> float:
        """Seconds until the answer of an inference, promised to 95 %.

        Raises:
            ValueError: what is promised is for generations.
        """
        if self.p95_s is None:
            raise ValueError(
                "slo: p95_s is missing; p99_s, ttft_s, tpot_s and share are for generations"
            )
        return self.p95_s


@dataclass(frozen=True)
class Traffic:
    """Requests per second, how they arrive, for how long, and the promise.

    Attributes:
        rate: requests per second on average.
        cv: of gamma arrivals, the coefficient of variation of the gaps: 1 is Poisson, above it
            requests come in bursts.
        peak_to_trough: of diurnal arrivals, the highest rate over the lowest (default 4).
        period_s: of diurnal arrivals (default a day); they begin at the trough.
        trace: CSV of recorded requests, in place of rate and arrivals.
        prompt_tokens, output_tokens: of generations, a number or how they spread; those of the
            model unless given.
        duration_s: 600 unless given; of a trace, all of it.
    """

    __pydantic_config__ = STRICT
    rate: float | None = None
    arrivals: Literal["poisson", "gamma", "deterministic", "diurnal"] = "poisson"
    duration_s: float | None = None
    slo: Slo | None = None
    seed: int = 0
    cv: float | None = None
    peak_to_trough: float | None = None
    period_s: float | None = None
    trace: str | None = None
    prompt_tokens: Lengths | int | None = None
    output_tokens: Lengths | int | None = None

    def __post_init__(self) -> None:
        """Refuse rates and durations that are not positive, and keys of another process."""
        positive("traffic", rate=self.rate, duration_s=self.duration_s, cv=self.cv)
        positive("traffic", period_s=self.period_s)
        if (self.rate is None) == (self.trace is None):
            raise ValueError("traffic: either rate or trace is needed, e.g. rate: 40")
        if self.seed < 0:
            raise ValueError(f"traffic: seed must not be negative, got {self.seed}")
        if self.peak_to_trough is not None and not 1 <= self.peak_to_trough < math.inf:
            raise ValueError(f"traffic: peak_to_trough is at least 1, got {self.peak_to_trough}")
        for key, process in (
            ("cv", "gamma"),
            ("peak_to_trough", "diurnal"),
            ("period_s", "diurnal"),
        ):
            if getattr(self, key) is not None and self.arrivals != process:
                raise ValueError(
                    f"traffic: {key} needs arrivals: {process}, got arrivals: {self.arrivals}"
                )

    def __str__(self) -> str:
        """Word it for a person: '40 requests/s, poisson' or the trace's name."""
        return self.trace or f"{self.rate:g} requests/s, {self.arrivals}"


def draw(traffic: Traffic, rng: np.random.Generator) -> Requests:
    """The requests of one run: drawn, or read from the trace.

    Raises:
        ValueError: the trace cannot be read, or the requests are too many to hold.
    """
    if traffic.trace is not None:
        requests = read_trace(Path(traffic.trace))
        return requests.until(traffic.duration_s) if traffic.duration_s else requests
    assert traffic.rate is not None
    duration_s = traffic.duration_s or DURATION_S
    if traffic.rate * duration_s > MAX_ROWS:
        raise ValueError(
            f"traffic: {traffic.rate:g}/s for {duration_s:g} s are {traffic.rate * duration_s:.3g} "
            f"requests, at most {MAX_ROWS:,} are simulated in a run; shorten duration_s"
        )
    return Requests(ARRIVALS[traffic.arrivals](traffic, traffic.rate, duration_s, rng), duration_s)


def poisson(traffic: Traffic, rate: float, duration_s: float, rng: np.random.Generator) -> Array:
    """Independent exponential gaps of mean 1/rate."""
    return _renewal(lambda num: rng.exponential(1 / rate, num), rate, duration_s)


def gamma(traffic: Traffic, rate: float, duration_s: float, rng: np.random.Generator) -> Array:
    """Independent gamma gaps of mean 1/rate and coefficient of variation `cv`."""
    shape = 1 / (traffic.cv or 1.0) ** 2
    return _renewal(lambda num: rng.gamma(shape, 1 / (shape * rate), num), rate, duration_s)


def deterministic(
    traffic: Traffic, rate: float, duration_s: float, rng: np.random.Generator
) -> Array:
    """Equal gaps of 1/rate."""
    arrival_s = np.arange(1, math.ceil(rate * duration_s) + 1) / rate
    return arrival_s[arrival_s < duration_s]


def diurnal(traffic: Traffic, rate: float, duration_s: float, rng: np.random.Generator) -> Array:
    """A Poisson process whose rate swings as a sine: rate (1 - a cos(2 pi t / period)).

    a = (r - 1) / (r + 1) for r = peak_to_trough. Drawn at the peak's rate and thinned (Lewis and
    Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", Naval Research Logistics
    Quarterly 26(3), 1979, doi:10.1002/nav.3800260304).
    """
    ratio = 4.0 if traffic.peak_to_trough is None else traffic.peak_to_trough
    swing = (ratio - 1) / (ratio + 1)
    candidates_s = poisson(traffic, rate * (1 + swing), duration_s, rng)
    phase = 2 * math.pi / (traffic.period_s or 86_400.0) * candidates_s
    kept = rng.random(len(candidates_s)) * (1 + swing) < 1 - swing * np.cos(phase)
    return candidates_s[kept]


ARRIVALS: dict[str, Callable[[Traffic, float, float, np.random.Generator], Array]] = {
    "poisson": poisson,
    "gamma": gamma,
    "deterministic": deterministic,
    "diurnal": diurnal,
}


def _renewal(draw_gaps: Callable[[int], Array], rate: float, duration_s: float) -> Array:
    """Arrivals below `duration_s` whose gaps are drawn independently."""
    parts, end_s = [], 0.0
    while end_s < duration_s:
        expected = rate * (duration_s - end_s)
        part = end_s + np.cumsum(draw_gaps(int(expected + 4 * math.sqrt(expected)) + 16))
        parts.append(part)
        end_s = float(part[-1])
    arrival_s = np.concatenate(parts)
    return arrival_s[: np.searchsorted(arrival_s, duration_s)]
