"""The catalog: device profiles, links, instances that can be rented, and their prices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

from hardware.clouds import load_spot_markets
from hardware.cluster import Cluster, Link
from hardware.documents import STRICT, named, parse, read, read_raw
from hardware.fitted import with_fitted
from hardware.instances import Instance
from hardware.links import LinkFigures, LinkKind, figures
from hardware.names import find_named
from hardware.prices import Price, PriceBook
from hardware.profile import DeviceProfile

DATA = Path(__file__).parent / "data"
THROUGH_HOST = "host PCIe"


@dataclass(frozen=True)
class Source:
    """What a short word in the data files stands for."""

    __pydantic_config__ = STRICT

    name: str
    title: str
    date: str

    def __str__(self) -> str:
        """Title and date."""
        return f"{self.title}, {self.date}"


@cache
def load_sources(path: Path = DATA / "sources.yaml") -> dict[str, Source]:
    """Sources by their short word."""
    return _read_named(path, Source)


@cache
def load_profiles(folder: Path = DATA / "devices") -> dict[str, DeviceProfile]:
    """Device profiles by name, with the efficiency models that were fitted for them."""
    files = sorted(folder.glob("*.yaml"))
    return {
        name: with_fitted(profile)
        for file in files
        for name, profile in read_profiles(file).items()
    }


@cache
def makers(folder: Path = DATA / "devices") -> dict[str, str]:
    """Who makes the catalog's devices, by their name: the name of the file that lists them."""
    return {name: file.stem for file in folder.glob("*.yaml") for name in read_profiles(file)}


def read_profiles(path: Path) -> dict[str, DeviceProfile]:
    """The profiles of a device file: one profile with its `name`, or several by name.

    Raises:
        ValueError: missing file, unknown key, or a figure that no device can have.
    """
    raw = read_raw(path)
    if isinstance(raw, dict) and "kind" in raw:
        profile = parse({"name": path.stem, **raw}, DeviceProfile, str(path))
        return {profile.name: profile}
    return _parse_named(raw, DeviceProfile, path)


@cache
def load_links(path: Path = DATA / "links.yaml") -> dict[str, LinkFigures]:
    """Links by name, with the bandwidth that they count with."""
    kinds = [
        replace(kind, source=expand(kind.source), latency_source=expand(kind.latency_source))
        for kind in _read_named(path, LinkKind).values()
    ]
    return {kind.name: figures(kind, kinds) for kind in kinds}


@cache
def load_instances(path: Path = DATA / "instances.yaml") -> dict[str, Instance]:
    """Instances by name ('cloud/instance')."""
    return _read_named(path, Instance)


@cache
def load_prices(path: Path = DATA / "prices.yaml") -> PriceBook:
    """All prices; of spot markets whose saving is published, on demand x (1 - saving)."""
    prices = read(path, tuple[Price, ...])
    listed = tuple(replace(price, source=expand(price.source)) for price in prices)
    return PriceBook(listed + tuple(_spot_prices(listed)))


def _spot_prices(listed: tuple[Price, ...]) -> Iterator[Price]:
    advisor = load_sources()["spotinfo"]
    for price in listed:
        spot = load_spot_markets().get(price.instance, {}).get(price.region)
        if spot and price.market == "on_demand":
            yield replace(
                price,
                market="spot",
                usd_per_hour=price.usd_per_hour * (1 - spot.saving),
                source=f"on demand of {price.source} less {spot.saving:.0%}: {advisor}",
            )


def expand(source: str) -> str:
    """A source in full: its leading short word replaced by title and date, if it is one."""
    word, rest = re.match(r"([\w-]*)(.*)", source, re.DOTALL).groups()  # type: ignore[union-attr]
    known = load_sources().get(word)
    return f"{known}{rest}" if known else source


def _read_named(path: Path, kind: type[Any]) -> dict[str, Any]:
    return _parse_named(read_raw(path), kind, path)


def _parse_named(raw: Any, kind: type[Any], path: Path) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: must map names to entries, got {type(raw).__name__}")
    parsed = {}
    for name, entry in raw.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {name}: must map keys to values, got {entry!r}")
        parsed[name] = parse({"name": name, **entry}, kind, f"{path}: {name}")
    return parsed


def find_instance(name: str) -> Instance:
    """An instance of the catalog.

    Raises:
        ValueError: there is none of this name; the nearest is named.
    """
    return named(load_instances(), name, "unknown instance")


def find_link(name: str) -> LinkFigures:
    """A link of the catalog.

    Raises:
        ValueError: there is none of this name; the nearest is named.
    """
    return named(load_links(), name, "unknown link")


def find_profile(name: str) -> DeviceProfile:
    """A device profile of the catalog by its name, an alias, or what torch reports.

    Raises:
        ValueError: there is none of this name, or several could be meant.
    """
    return find_named(name, load_profiles())


def common_instances() -> list[str]:
    """Names of the instances that what-ifs take when none is named."""
    return [name for name, instance in load_instances().items() if instance.is_common]


def instance_cluster(instance: Instance) -> Cluster:
    """The devices of an instance: its accelerators, then all cores of its host as `cpu0`."""
    devices: dict[str, DeviceProfile] = {}
    if instance.accelerator:
        profile = find_profile(instance.accelerator)
        devices = {f"{profile.kind}{i}": profile for i in range(instance.num_accelerators)}
    accelerators = list(devices)
    devices["cpu0"] = _cores(find_profile(instance.host), instance)
    links = [*_host_links(instance, accelerators), *_peer_links(instance, accelerators)]
    return Cluster(instance.name, devices, tuple(links))


def _cores(core: DeviceProfile, instance: Instance) -> DeviceProfile:
    n = instance.num_cores
    return replace(
        core,
        name=f"{n} x {core.name}",
        peak_flops_per_s={dtype: n * rate for dtype, rate in core.peak_flops_per_s.items()},
        memory_bytes=instance.host_memory_bytes,
        memory_bytes_per_s=n * core.memory_bytes_per_s,
        power_w=n * core.power_w if core.power_w else None,
        idle_power_w=n * core.idle_power_w if core.idle_power_w else None,
        num_compute_units=n,
        cache_bytes=n * core.cache_bytes if core.cache_bytes else None,
        aliases=(),
    )


def _host_links(instance: Instance, accelerators: list[str]) -> list[Link]:
    links = []
    for number, device in enumerate(accelerators):
        assert instance.host_link is not None
        medium = ""
        if instance.accelerators_per_host_link > 1:
            medium = f"host link {number // instance.accelerators_per_host_link}"
        for src, dst in ((device, "cpu0"), ("cpu0", device)):
            links.append(joined(src, dst, find_link(instance.host_link), medium))
    return links


def _peer_links(instance: Instance, accelerators: list[str]) -> list[Link]:
    group = instance.peer_group or len(accelerators)
    links = []
    for (i, src), (j, dst) in permutations(enumerate(accelerators), 2):
        are_joined = instance.peer_link is not None and i // group == j // group
        link = find_link(instance.peer_link if are_joined else instance.host_link)  # type: ignore[arg-type]
        links.append(joined(src, dst, link, THROUGH_HOST if link.technology == "pcie" else ""))
    return links


def joined(src: str, dst: str, link: LinkFigures, medium: str = "") -> Link:
    """A link of the catalog laid from one device to another."""
    return Link(src, dst, link.bytes_per_s, link.latency_s, link.provenance, medium)
