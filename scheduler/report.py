"""What a plan does, simulated or measured: one type for both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hardware.documents import STRICT
from scheduler.evaluation.timeline import Span


@dataclass(frozen=True)
class Quantiles:
    """Mean and quantiles of a quantity."""

    __pydantic_config__ = STRICT

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


def quantiles(values: Sequence[float] | np.ndarray) -> Quantiles:
    """Summarize values; the unit is theirs.

    Raises:
        ValueError: there are none.
    """
    if len(values) == 0:
        raise ValueError("no values to summarize")
    p50, p90, p95, p99 = (float(q) for q in np.quantile(values, (0.5, 0.9, 0.95, 0.99)))
    return Quantiles(float(np.mean(values)), p50, p90, p95, p99)


@dataclass(frozen=True)
class Held:
    """Bytes that one tensor takes on a device, over all micro-batches that hold it."""

    __pydantic_config__ = STRICT

    tensor: str
    num_bytes: float
    micro_batches: int


@dataclass(frozen=True)
class Moment:
    """What a device holds at one time: bytes in all, and the largest activations."""

    __pydantic_config__ = STRICT

    at_s: float
    num_bytes: float
    held: tuple[Held, ...]


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a device over time.

    Parameters, gradients and states (of optimizers; of generation the cache of keys and values)
    stay from beginning to end; activations come and go.

    Attributes:
        peak: the first moment with the most bytes.
        overflow: the first moment above the limit; None where it is never exceeded.
        times_s, activation_bytes: from each time on; of long runs the largest value of each part.
    """

    __pydantic_config__ = STRICT

    param_bytes: float
    gradient_bytes: float
    state_bytes: float
    limit_bytes: float
    peak: Moment
    overflow: Moment | None
    times_s: tuple[float, ...] = field(default=(), repr=False)
    activation_bytes: tuple[float, ...] = field(default=(), repr=False)

    @property
    def constant_bytes(self) -> float:
        """Parameters, gradients and states."""
        return self.param_bytes + self.gradient_bytes + self.state_bytes


@dataclass(frozen=True)
class Report:
    """Latency of one batch alone, and the steady state with micro-batches in flight.

    Attributes:
        latency_s: of one batch that runs alone, its micro-batches following each other.
        throughput_per_s: inferences per second in steady state.
        utilization: share of the steady state that each device or link is busy, 0 to 1.
        busy_s: seconds of work per micro-batch by device.
        link_bytes: bytes per micro-batch by link ('src->dst'), with a micro-batch's share of the
            sum of replicas' gradients.
        latency_band_s, throughput_band_per_s: 90 % interval of a prediction; spread (lowest,
            highest) of a measurement.
        spans: timeline of one batch that runs alone: operators and transfers.
        pipeline_spans: timeline of the steady state, stages and transfers; its first part where it
            is long.
        memory: by device, of a simulation, with micro-batches in flight.
    """

    __pydantic_config__ = STRICT

    latency_s: Quantiles
    throughput_per_s: float
    utilization: Mapping[str, float]
    busy_s: Mapping[str, float]
    link_bytes: Mapping[str, float]
    latency_band_s: tuple[float, float]
    throughput_band_per_s: tuple[float, float]
    spans: tuple[Span, ...] = field(default=(), repr=False)
    pipeline_spans: tuple[Span, ...] = field(default=(), repr=False)
    memory: Mapping[str, MemoryUse] = field(default_factory=dict, repr=False)


def relative_error(predicted: float, measured: float) -> float:
    """(predicted - measured) / measured."""
    return (predicted - measured) / measured
