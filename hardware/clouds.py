"""What clouds add to the price of an instance: billing rules, spot, boot times, carbon."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hardware.documents import STRICT, named, read

DATA = Path(__file__).parent / "data"

MONTH_S = 730 * 3600.0
"""Seconds of a month as clouds count it."""

BAND = 0.05
"""Width of the bands in which shares of instances taken back are published."""


@dataclass(frozen=True)
class Cloud:
    """What a cloud charges for and how, beside the price of an instance.

    Attributes:
        granularity_s, minimum_s: what a rental is rounded up to, and counts at least.
        interrupted_free_s: a spot instance that the cloud takes back earlier costs nothing.
        spot_notice_s: warning before a spot instance is taken back.
        internet_usd_per_byte: price of the bytes out in a month that lie above each threshold.
        zone_usd_per_byte: a byte from one zone of a region to another, both ends together.
        pue: energy of the data centre over that of its computers.
    """

    __pydantic_config__ = STRICT

    granularity_s: float
    minimum_s: float
    interrupted_free_s: float
    spot_notice_s: float
    internet_usd_per_byte: dict[float, float]
    zone_usd_per_byte: float
    pue: float
    sources: dict[str, str]

    def internet_usd(self, num_bytes: float, seconds: float) -> float:
        """Price of bytes out over some seconds, at the tiers of a month that goes on like them."""
        if not num_bytes:
            return 0.0
        months = seconds / MONTH_S
        volume, usd = num_bytes / months, 0.0
        tiers = sorted(self.internet_usd_per_byte.items())
        ends = [*(start for start, _ in tiers[1:]), math.inf]
        for (start, price), end in zip(tiers, ends, strict=True):
            usd += max(0.0, min(volume, end) - start) * price
        return usd * months


@dataclass(frozen=True)
class BootTimes:
    """Seconds from renting a machine until it runs, and until software is installed too.

    Attributes:
        n: machines measured.
        running_s, installed_s: quantiles, by the share of the machines.
    """

    __pydantic_config__ = STRICT

    n: int
    running_s: dict[float, float]
    installed_s: dict[float, float]
    source: str


@dataclass(frozen=True)
class Grid:
    """Grams of CO2 equivalent per kWh by region of a cloud."""

    __pydantic_config__ = STRICT

    source: str
    g_per_kwh: dict[str, float]


@dataclass(frozen=True)
class SpotMarket:
    """An instance in a region.

    Attributes:
        taken_back: lower edge of the band of the share taken back within a month.
        saving: share of the on-demand price.
    """

    __pydantic_config__ = STRICT

    taken_back: float
    saving: float

    @property
    def mean_up_s(self) -> float:
        """Mean seconds until taken back, at a constant rate: month / -ln(1 - share).

        The share is the middle of its band; of the open band above 0.2, its lower edge.
        """
        share = self.taken_back + BAND / 2 if self.taken_back < 0.2 else self.taken_back
        return MONTH_S / -math.log(1 - share)

    @property
    def band(self) -> str:
        """The published band, for people."""
        if self.taken_back >= 0.2:
            return "above 20 % a month, counted as 20 %"
        return f"{self.taken_back:.0%} to {self.taken_back + BAND:.0%} a month"


@dataclass(frozen=True)
class SpotPool:
    """How long an instance of a pool was to be had, and was not, on average; runs: how often."""

    __pydantic_config__ = STRICT

    mean_up_s: float
    mean_down_s: float
    runs: int


@cache
def load_clouds(path: Path = DATA / "clouds.yaml") -> dict[str, Cloud]:
    """Clouds by name."""
    return read(path, dict[str, Cloud])


@cache
def load_boot_times(path: Path = DATA / "boot.yaml") -> dict[str, BootTimes]:
    """Boot times by cloud."""
    return read(path, dict[str, BootTimes])


@cache
def load_grids(path: Path = DATA / "carbon.yaml") -> dict[str, Grid]:
    """Carbon of the grid by cloud."""
    return read(path, dict[str, Grid])


@cache
def load_spot_markets(
    path: Path = DATA / "spot_markets.yaml",
) -> dict[str, dict[str, SpotMarket]]:
    """Spot markets by instance and region."""
    return read(path, dict[str, dict[str, SpotMarket]])


@cache
def load_spot_pools(path: Path = DATA / "spot_pools.yaml") -> dict[str, SpotPool]:
    """Spot pools by name."""
    return read(path, dict[str, SpotPool])


def cloud_name(instance: str) -> str:
    """The cloud of an instance of the catalog: 'aws' of 'aws/g5.xlarge'."""
    return instance.split("/")[0]


def find_boot_times(cloud: str) -> BootTimes:
    """Boot times of a cloud.

    Raises:
        ValueError: none were measured.
    """
    return named(load_boot_times(), cloud, "no boot times of cloud")


def find_spot_pool(name: str) -> SpotPool:
    """A spot pool by name.

    Raises:
        ValueError: there is none of this name.
    """
    return named(load_spot_pools(), name, "unknown spot pool")


def find_spot_market(instance: str, region: str) -> SpotMarket:
    """How often an instance is taken back in a region.

    Raises:
        ValueError: nothing is known of it there.
    """
    regions = load_spot_markets().get(instance, {})
    if region not in regions:
        known = f"known there: {', '.join(sorted(regions))}" if regions else "none is known"
        raise ValueError(
            f"no spot interruption rate of '{instance}' in '{region}' ({known}); "
            "give mean_up_s and mean_down_s, a pool, or a trace"
        )
    return regions[region]
