"""Link kinds: what PCIe, NVLink, ICI and networks carry, as wired in instances."""

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from hardware.documents import STRICT
from hardware.profile import Level, Provenance

Technology = Literal[
    "pcie", "nvlink", "infinity-fabric", "ici", "neuronlink", "infiniband", "ethernet"
]


@dataclass(frozen=True)
class LinkKind:
    """A link as wired somewhere, one way.

    Attributes:
        usable_bytes_per_s: what transfers reach: measured, or published as usable.
        datasheet_bytes_per_s: what the wire could carry.
        level: how `usable_bytes_per_s` is known.
    """

    __pydantic_config__ = STRICT

    name: str
    technology: Technology
    latency_s: float
    level: Level
    source: str
    latency_source: str
    usable_bytes_per_s: float | None = None
    datasheet_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse a link without a figure, and figures that no link can have."""
        bandwidths = {
            "usable_bytes_per_s": self.usable_bytes_per_s,
            "datasheet_bytes_per_s": self.datasheet_bytes_per_s,
        }
        known = {key: value for key, value in bandwidths.items() if value is not None}
        if not known:
            raise ValueError(f"link '{self.name}': needs usable_ or datasheet_bytes_per_s")
        for key, value in known.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"link '{self.name}': {key} must be positive, got {value}")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(
                f"link '{self.name}': latency_s must not be negative, got {self.latency_s}"
            )


@dataclass(frozen=True)
class LinkFigures:
    """Bandwidth and latency that a link counts with, and where they come from."""

    name: str
    technology: Technology
    bytes_per_s: float
    latency_s: float
    provenance: Provenance


def derating(technology: Technology, kinds: Collection[LinkKind]) -> tuple[float, str]:
    """Share of the datasheet's bandwidth that transfers reach, and what it was derived from.

    The median of usable / datasheet over the links of the technology that have both; over the
    links of every technology where none of this one has.
    """
    both = [
        (kind.technology, kind.usable_bytes_per_s / kind.datasheet_bytes_per_s)
        for kind in kinds
        if kind.usable_bytes_per_s and kind.datasheet_bytes_per_s
    ]
    own = [ratio for its, ratio in both if its == technology]
    ratios = own or [ratio for _, ratio in both]
    if not ratios:
        raise ValueError(f"no link has a usable and a datasheet figure to derate {technology} by")
    kind = technology if own else "any technology"
    return statistics.median(ratios), f"median of {len(ratios)} links of {kind}"


def figures(kind: LinkKind, kinds: Collection[LinkKind]) -> LinkFigures:
    """What a link counts with: its usable bandwidth, or datasheet x derating."""
    source = f"{kind.source}; latency: {kind.latency_source}"
    bytes_per_s = kind.usable_bytes_per_s
    if bytes_per_s is None:
        assert kind.datasheet_bytes_per_s is not None
        share, origin = derating(kind.technology, kinds)
        bytes_per_s = kind.datasheet_bytes_per_s * share
        source = f"{kind.source} x {share:.2f}, {origin}; latency: {kind.latency_source}"
    provenance = Provenance(kind.level, source)
    return LinkFigures(kind.name, kind.technology, bytes_per_s, kind.latency_s, provenance)
