"""The hardware that a scenario rents, and its price."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

from hardware.catalog import find_instance, find_link, instance_cluster, load_prices
from hardware.cluster import Cluster, Link
from hardware.cluster_file import read_cluster
from hardware.documents import nearest
from hardware.instances import Instance
from hardware.profile import Provenance
from ui.scenario import Network, Rented, Scenario


def rented_cluster(scenario: Scenario) -> Cluster:
    """The devices of the scenario's instances, or of its cluster file.

    Raises:
        ValueError: an unknown instance, or a file that is not a cluster.
    """
    if isinstance(scenario.hardware, str):
        path = Path(scenario.hardware)
        if not path.exists():
            raise ValueError(
                f"hardware: '{scenario.hardware}' is neither 'local' nor a file"
                + nearest(scenario.hardware, ["local"])
            )
        return read_cluster(path)
    return _joined(scenario.hardware)


def _joined(rented: Rented) -> Cluster:
    instances = [find_instance(name) for name in rented.instances]
    clusters = [instance_cluster(instance) for instance in instances]
    if len(clusters) == 1:
        return clusters[0]
    bytes_per_s, latency_s, source = _network(rented, instances)
    devices = {f"{i}.{d}": p for i, c in enumerate(clusters) for d, p in c.devices.items()}
    links = [
        replace(
            link, src=f"{i}.{link.src}", dst=f"{i}.{link.dst}", medium=f"{i}.{link.shared_medium}"
        )
        for i, cluster in enumerate(clusters)
        for link in cluster.links
    ]
    for src, dst in permutations(devices, 2):
        if src.split(".")[0] != dst.split(".")[0]:
            medium = f"network {src.split('.')[0]} to {dst.split('.')[0]}"
            links.append(Link(src, dst, bytes_per_s, latency_s, source, medium))
    return Cluster(" + ".join(rented.instances), devices, tuple(links))


def network_between(
    src: Rented | str, dst: Rented | str, network: Network | str | None
) -> tuple[float, float, Provenance]:
    """Bytes per second, latency and provenance of what joins two pieces of hardware.

    Raises:
        ValueError: they are not rented, and no network is named.
    """
    names = tuple(
        name for side in (src, dst) if isinstance(side, Rented) for name in side.instances
    )
    if not names and not isinstance(network, Network):
        raise ValueError(
            "prefill: this hardware has no network in the catalog; give "
            "network: {bytes_per_s: 1.25e9, latency_s: 5.0e-5}"
        )
    known = [find_instance(name) for name in names]
    return _network(Rented(names or ("none",), network), known)


def _network(rented: Rented, instances: list[Instance]) -> tuple[float, float, Provenance]:
    """Bytes per second, latency and provenance of what joins the instances."""
    if isinstance(rented.network, Network):
        source = Provenance("literal", "network of the scenario")
        return rented.network.bytes_per_s, rented.network.latency_s, source
    names = {i.name: rented.network or i.network for i in instances}
    for instance, name in names.items():
        if name is None:
            raise ValueError(
                f"the catalog knows no network of '{instance}'; name one, "
                "e.g. network: ethernet-10g or {bytes_per_s: 1.25e9, latency_s: 5.0e-5}"
            )
    slowest = min((find_link(str(n)) for n in names.values()), key=lambda link: link.bytes_per_s)
    return slowest.bytes_per_s, slowest.latency_s, slowest.provenance


def rent(scenario: Scenario) -> tuple[float | None, str]:
    """USD per hour of the scenario's hardware and where the price comes from; None if unpriced.

    Raises:
        ValueError: the catalog has no price for an instance as asked.
    """
    choice = scenario.prices
    given = choice.usd_per_hour, "prices.usd_per_hour of the scenario"
    if isinstance(scenario.hardware, Rented):
        book = load_prices()
        try:
            prices = [
                book.find(n, choice.market, choice.region, choice.as_of)
                for n in scenario.hardware.instances
            ]
        except ValueError:
            if choice.usd_per_hour is None:
                raise
            return given
        return sum(price.usd_per_hour for price in prices), "; ".join(map(str, prices))
    if choice.usd_per_hour is not None:
        return given
    return None, "this machine has no price; set prices.usd_per_hour"


def hardware_name(scenario: Scenario) -> str:
    """What to call the scenario's hardware: 'this machine', its instances, or its file's name."""
    if isinstance(scenario.hardware, Rented):
        return " + ".join(scenario.hardware.instances)
    return "this machine" if scenario.hardware == "local" else Path(scenario.hardware).stem
