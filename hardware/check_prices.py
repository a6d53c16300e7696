"""Is a price right? Zeros, sentinels, spot above on-demand, prices of another thing; and traces."""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from hardware.catalog import load_instances, load_prices
from hardware.check import Finding
from hardware.units import format_usd

SPAN = (1.6, 3.0)
"""Factors below the book's cheapest accelerator-hour, and above its dearest, at which a price is
doubted: dear regions and large hosts cost twice as much, nobody sells at half."""

CPU_SPAN = (5.0, 5.0)
"""The same for the hour of a virtual CPU, whose prices spread more."""

SENTINELS = (700.0, 999.0, 999.99, 9999.0, 99999.0)
"""Numbers that price tables hold where they know no price."""


@dataclass(frozen=True)
class PriceClaim:
    """What something is said to cost by the hour: the instance, or accelerators of a kind.

    Attributes:
        devices: names of the profiles that may be meant; empty for a CPU instance.
        count: accelerators, or virtual CPUs where `devices` is empty; 0 if not known.
    """

    subject: str
    usd_per_hour: float
    devices: tuple[str, ...] = ()
    count: float = 0
    market: str = "on_demand"
    region: str = ""


def check_price(claim: PriceClaim) -> Finding | None:
    """Hold one price against zero, sentinels, and what the book pays for the like."""
    usd, subject = claim.usd_per_hour, f"{claim.subject} {claim.region}".strip()
    if not (math.isfinite(usd) and usd > 0):
        message = f"a price of {usd:g} means that none is known; leave it out"
        return Finding(subject, "usd_per_hour", usd, "zero", message)
    span = _span(claim.devices)
    if not claim.count or span is None:
        return None
    below, above = SPAN if claim.devices else CPU_SPAN
    low, high = (0.0 if claim.market == "spot" else span[0] / below), span[1] * above
    each = usd / claim.count
    if low <= each <= high:
        return None
    rule, word = ("sentinel", " and a sentinel") if usd in SENTINELS else ("range", "")
    unit = "accelerator" if claim.devices else "vCPU"
    message = (
        f"{format_usd(each)} per {unit} and hour is outside {format_usd(low)} to "
        f"{format_usd(high)}{word}; the price book has {format_usd(span[0])} to "
        f"{format_usd(span[1])}"
    )
    return Finding(subject, "usd_per_hour", usd, rule, message)


def check_spot(subject: str, on_demand: float, spot: float) -> Finding | None:
    """Spot must not cost more than on-demand in the same place."""
    if spot <= on_demand or on_demand <= 0:
        return None
    message = f"spot {format_usd(spot)} costs more than on-demand {format_usd(on_demand)}; swapped?"
    return Finding(subject, "usd_per_hour", spot, "spot", message)


def check_prices(claims: Collection[PriceClaim]) -> list[Finding]:
    """All findings on a table of prices: each alone, and spot against on-demand."""
    found = [check_price(claim) for claim in claims]
    on_demand = {(c.subject, c.region): c for c in claims if c.market == "on_demand"}
    for claim in claims:
        other = on_demand.get((claim.subject, claim.region))
        if claim.market == "spot" and other:
            subject = f"{claim.subject} {claim.region}".strip()
            found.append(check_spot(subject, other.usd_per_hour, claim.usd_per_hour))
    return [finding for finding in found if finding]


def check_trace(subject: str, gap_s: float, points: float, stated_days: float) -> Finding | None:
    """A trace must last as long as it says: gap x points = days, within a tenth."""
    days = gap_s * points / 86400
    if abs(days / stated_days - 1) <= 0.1:
        return None
    message = (
        f"{points:.0f} points {gap_s:g} s apart last {days:.1f} days, not {stated_days:g}; "
        f"that takes a gap of {stated_days * 86400 / points:.0f} s"
    )
    return Finding(subject, "gap_s", gap_s, "trace", message)


def virtual_cpus(instance: str) -> int:
    """Virtual CPUs of an instance by its name, as Azure and Google write them; 0 if unknown."""
    match = re.match(r"Standard_[A-Z]+(\d+)|[a-z]\d[a-z]*-[a-z]+-(\d+)$", instance)
    return int(match[1] or match[2]) if match else 0


def _span(devices: Iterable[str]) -> tuple[float, float] | None:
    each = [usd for name in devices or ("",) for usd in _book().get(name, [])]
    return (min(each), max(each)) if each else None


@cache
def _book() -> dict[str, list[float]]:
    """On-demand USD per accelerator and hour by device; per virtual CPU under ''."""
    book: dict[str, list[float]] = {}
    for price in load_prices().prices:
        instance = load_instances()[price.instance]
        if price.market != "on_demand":
            continue
        count = instance.num_accelerators or virtual_cpus(price.instance.split("/")[1])
        if count:
            book.setdefault(instance.accelerator or "", []).append(price.usd_per_hour / count)
    return book
