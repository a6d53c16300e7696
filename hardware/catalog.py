"""The catalog: device profiles, instances that can be rented, and their prices."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, TypeVar

from hardware.cluster import Cluster, Link
from hardware.documents import STRICT, nearest, parse, read, read_raw
from hardware.profile import DeviceProfile, Provenance

DATA = Path(__file__).parent / "data"

Named = TypeVar("Named")
Market = Literal["on_demand", "spot", "reserved"]


@dataclass(frozen=True)
class LinkFigures:
    """Bandwidth and latency of the links of an instance, and where they come from."""

    __pydantic_config__ = STRICT

    bytes_per_s: float
    latency_s: float
    source: str


@dataclass(frozen=True)
class Instance:
    """What can be rented as one machine.

    Attributes:
        accelerator: profile of its accelerators; None for a CPU instance.
        host: profile of one core of its CPU.
        host_link: between the host and each accelerator.
        peer_link: between accelerators; without it they go through the host link, which they
            then share.
    """

    __pydantic_config__ = STRICT

    name: str
    host: str
    num_cores: int
    host_memory_bytes: int
    accelerator: str | None = None
    num_accelerators: int = 0
    host_link: LinkFigures | None = None
    peer_link: LinkFigures | None = None

    def __post_init__(self) -> None:
        """Refuse an instance without cores, or accelerators without a link."""
        for key in ("num_cores", "host_memory_bytes"):
            if getattr(self, key) <= 0:
                raise ValueError(f"instance '{self.name}': {key} must be positive")
        if self.accelerator and (self.num_accelerators < 1 or self.host_link is None):
            raise ValueError(
                f"instance '{self.name}': accelerator '{self.accelerator}' needs "
                "num_accelerators from 1 and a host_link"
            )


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


@cache
def load_profiles(path: Path = DATA / "devices.yaml") -> dict[str, DeviceProfile]:
    """Device profiles by name."""
    return _read_named(path, DeviceProfile)


@cache
def load_instances(path: Path = DATA / "instances.yaml") -> dict[str, Instance]:
    """Instances by name ('cloud/instance')."""
    return _read_named(path, Instance)


@cache
def load_prices(path: Path = DATA / "prices.yaml") -> PriceBook:
    """All prices."""
    return PriceBook(read(path, tuple[Price, ...]))


def _read_named(path: Path, kind: type[Any]) -> dict[str, Any]:
    raw = read_raw(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: must map names to entries, got {type(raw).__name__}")
    return {
        name: parse({"name": name, **(entry or {})}, kind, f"{path}: {name}")
        for name, entry in raw.items()
    }


def find_instance(name: str) -> Instance:
    """An instance of the catalog.

    Raises:
        ValueError: there is none of this name; the nearest is named.
    """
    return _find(name, load_instances(), "instance")


def find_profile(name: str) -> DeviceProfile:
    """A device profile of the catalog.

    Raises:
        ValueError: there is none of this name; the nearest is named.
    """
    return _find(name, load_profiles(), "device")


def _find(name: str, known: dict[str, Named], word: str) -> Named:
    if name not in known:
        raise ValueError(f"unknown {word} '{name}'{nearest(name, list(known))}")
    return known[name]


def instance_cluster(instance: Instance) -> Cluster:
    """The devices of an instance: its accelerators, then all cores of its host as `cpu0`."""
    devices: dict[str, DeviceProfile] = {}
    if instance.accelerator:
        profile = find_profile(instance.accelerator)
        devices = {f"{profile.kind}{i}": profile for i in range(instance.num_accelerators)}
    accelerators = list(devices)
    devices["cpu0"] = _cores(find_profile(instance.host), instance)
    links: list[Link] = []
    if instance.host_link:
        for device in accelerators:
            links.append(_link(device, "cpu0", instance.host_link))
            links.append(_link("cpu0", device, instance.host_link))
        for src, dst in permutations(accelerators, 2):
            if instance.peer_link:
                links.append(_link(src, dst, instance.peer_link))
            else:
                links.append(_link(src, dst, instance.host_link, medium="host PCIe"))
    return Cluster(instance.name, devices, tuple(links))


def _cores(core: DeviceProfile, instance: Instance) -> DeviceProfile:
    n = instance.num_cores
    return replace(
        core,
        name=f"{n} x {core.name}",
        peak_flops_per_s={dtype: n * rate for dtype, rate in core.peak_flops_per_s.items()},
        memory_bytes=instance.host_memory_bytes,
        memory_bytes_per_s=n * core.memory_bytes_per_s,
        num_compute_units=n,
        cache_bytes=n * core.cache_bytes if core.cache_bytes else None,
    )


def _link(src: str, dst: str, figures: LinkFigures, medium: str = "") -> Link:
    provenance = Provenance("datasheet", figures.source)
    return Link(src, dst, figures.bytes_per_s, figures.latency_s, provenance, medium)
