"""What a replica is charged for, and at what rate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hardware.clouds import Cloud
from hardware.power import Power
from hardware.prices import Market


@dataclass(frozen=True, eq=False)
class Tariff:
    """What a replica of a kind is charged for, and at what rate.

    Attributes:
        market: at which it is rented; `reserved` pays for the replicas of the start all the time.
        usd_per_hour: by market; empty where there is no price.
        cloud: whose rules round rentals and price bytes; None: nothing is rounded, bytes are free.
        power: of its machine, or why it is not known.
        pue: energy of the data centre over that of the machine.
        g_per_kwh: carbon of the grid, or why it is not known.
        usd_per_kwh: where the energy is not in the rent.
        internet_bytes, zone_bytes: of a request and its answer, out of the cloud and to another
            zone.
        provenance: of the prices.
    """

    market: Market = "on_demand"
    usd_per_hour: Mapping[str, float] = field(default_factory=dict)
    cloud: Cloud | None = None
    power: Power | str = "the power of the machine is not known"
    pue: float = 1.0
    g_per_kwh: float | str = "the region's grid is not known"
    usd_per_kwh: float = 0.0
    internet_bytes: float = 0.0
    zone_bytes: float = 0.0
    provenance: str = ""

    def notes(self) -> Iterator[str]:
        """What the figures of a bill rest on, and what is not known."""
        yield self.provenance or "rent: no price is known"
        if isinstance(self.power, str):
            yield f"energy and carbon: {self.power}"
        else:
            yield from self.power.notes
            paid = f"USD {self.usd_per_kwh:g} per kWh" if self.usd_per_kwh else "in the rent"
            yield f"energy: PUE {self.pue:g}, {paid}; memory, fans and network are not counted"
            if isinstance(self.g_per_kwh, str):
                yield f"carbon: {self.g_per_kwh}"
            else:
                yield f"carbon: {self.g_per_kwh:g} g CO2e per kWh, mean of the grid"
        if not self.internet_bytes:
            yield "bytes to the internet: none counted; prices.internet_bytes counts them"
