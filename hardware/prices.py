"""Prices of instances: USD per hour by market, region and date."""

from dataclasses import dataclass
from typing import Literal

from hardware.documents import STRICT

Market = Literal["on_demand", "spot", "reserved"]


@dataclass(frozen=True)
class Price:
    """USD per hour of an instance in one market and region, on a date."""

    __pydantic_config__ = STRICT

    instance: str
    market: Market
    region: str
    usd_per_hour: float
    as_of: str
    source: str

    def __post_init__(self) -> None:
        """Refuse prices that are not positive."""
        if not self.usd_per_hour > 0:
            raise ValueError(
                f"price of '{self.instance}': usd_per_hour must be positive, "
                f"got {self.usd_per_hour}"
            )

    def __str__(self) -> str:
        """Word it for a person."""
        return f"{self.market} in {self.region} as of {self.as_of} ({self.source})"


@dataclass(frozen=True)
class PriceBook:
    """Prices of instances."""

    prices: tuple[Price, ...]

    def find(
        self,
        instance: str,
        market: Market = "on_demand",
        region: str | None = None,
        as_of: str | None = None,
    ) -> Price:
        """The price of an instance; the first region listed if none is named.

        With `as_of` (an ISO date) only prices that were taken by then count.

        Raises:
            ValueError: there is none; what there is, is listed.
        """
        offers = [price for price in self.prices if price.instance == instance]
        for price in offers:
            is_known = as_of is None or price.as_of <= as_of
            if price.market == market and region in (None, price.region) and is_known:
                return price
        known = ", ".join(f"{p.market} in {p.region} as of {p.as_of}" for p in offers)
        known = known or "none at all"
        asked = f"{market} in {region}" if region else market
        asked += f" by {as_of}" if as_of else ""
        raise ValueError(f"no price for '{instance}' {asked}; there is: {known}")
