"""Servers without a model, for queueing studies: `service:exponential` and its like."""

from simulator.serving import ServiceTimes

SPREADS = ("exponential", "deterministic", "lognormal")


def service_times(spread: str, mean_s: float, cv: float | None) -> ServiceTimes:
    """Times of a server whose batches, of any size, take `mean_s` on average.

    Raises:
        ValueError: an unknown spread, or a cv where it is not lognormal.
    """
    if spread not in SPREADS:
        known = ", ".join(f"service:{name}" for name in SPREADS)
        raise ValueError(f"model.source: unknown service:{spread}; accepted: {known}")
    if (cv is None) == (spread == "lognormal"):
        raise ValueError(
            "model.cv: needed by service:lognormal, and by no other service, "
            f"got cv {cv} for service:{spread}"
        )
    return ServiceTimes((1,), (mean_s,), (mean_s,), spread, cv or 0.0)  # type: ignore[arg-type]
