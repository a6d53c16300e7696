"""What a deployment costs."""

from dataclasses import dataclass

from hardware.documents import STRICT


@dataclass(frozen=True)
class Cost:
    """USD per hour of the rented instances, per 1,000 inferences at full load, and the source."""

    __pydantic_config__ = STRICT

    usd_per_hour: float
    usd_per_1k: float
    provenance: str


def bill(usd_per_hour: float, throughput_per_s: float, provenance: str) -> Cost:
    """Price a throughput: usd_per_1k = usd_per_hour / 3600 / throughput * 1000."""
    return Cost(usd_per_hour, usd_per_hour / 3600 / throughput_per_s * 1000, provenance)
