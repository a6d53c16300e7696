"""Clusters: devices and the links between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hardware.documents import STRICT
from hardware.profile import DeviceProfile, Provenance


@dataclass(frozen=True)
class Link:
    """What carries tensors from `src` to `dst`; links with one `medium` share its bandwidth."""

    __pydantic_config__ = STRICT

    src: str
    dst: str
    bytes_per_s: float
    latency_s: float
    provenance: Provenance
    medium: str = ""

    def __post_init__(self) -> None:
        """Refuse a link that carries nothing, or faster than at once."""
        name = f"link '{self.src}' to '{self.dst}'"
        if not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ValueError(f"{name}: bytes_per_s must be positive, got {self.bytes_per_s}")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(f"{name}: latency_s must not be negative, got {self.latency_s}")

    @property
    def shared_medium(self) -> str:
        """The medium whose bandwidth this link uses; its own if it shares none."""
        return self.medium or f"{self.src}->{self.dst}"

    def seconds(self, num_bytes: float) -> float:
        """Seconds to move `num_bytes`: latency + bytes / bandwidth."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """Devices by id, and the links between them. A missing link is an error, never free."""

    __pydantic_config__ = STRICT

    name: str
    devices: Mapping[str, DeviceProfile]
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an empty cluster and links to devices it does not have."""
        if not self.devices:
            raise ValueError(f"cluster '{self.name}' has no devices")
        for link in self.links:
            for end in (link.src, link.dst):
                if end not in self.devices:
                    known = ", ".join(self.devices)
                    raise ValueError(
                        f"link '{link.src}' to '{link.dst}': no device '{end}'; devices: {known}"
                    )

    def link(self, src: str, dst: str) -> Link:
        """The link from `src` to `dst`.

        Raises:
            ValueError: there is none.
        """
        for link in self.links:
            if (link.src, link.dst) == (src, dst):
                return link
        raise ValueError(f"no link between '{src}' and '{dst}'; add one to the cluster")
