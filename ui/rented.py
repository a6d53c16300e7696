"""The hardware that a scenario rents, and its price."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

from hardware.catalog import find_instance, instance_cluster, load_prices
from hardware.cluster import Cluster, Link
from hardware.documents import nearest, read
from hardware.profile import Provenance
from ui.scenario import Rented, Scenario


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
        return read(path, Cluster)
    return _joined(scenario.hardware)


def _joined(rented: Rented) -> Cluster:
    clusters = [instance_cluster(find_instance(name)) for name in rented.instances]
    if len(clusters) == 1 or rented.network is None:
        return clusters[0]
    devices = {f"{i}.{d}": p for i, c in enumerate(clusters) for d, p in c.devices.items()}
    links = [
        replace(link, src=f"{i}.{link.src}", dst=f"{i}.{link.dst}", medium=f"{i}.{link.medium}")
        for i, cluster in enumerate(clusters)
        for link in cluster.links
    ]
    source = Provenance("literal", "network of the scenario")
    for src, dst in permutations(devices, 2):
        if src.split(".")[0] != dst.split(".")[0]:
            network = rented.network
            medium = f"network {src.split('.')[0]} to {dst.split('.')[0]}"
            links.append(Link(src, dst, network.bytes_per_s, network.latency_s, source, medium))
    return Cluster(" + ".join(rented.instances), devices, tuple(links))


def rent(scenario: Scenario) -> tuple[float | None, str]:
    """USD per hour of the scenario's hardware and where the price comes from; None if unpriced.

    Raises:
        ValueError: the catalog has no price for an instance as asked.
    """
    choice = scenario.prices
    if isinstance(scenario.hardware, Rented):
        book = load_prices()
        prices = [
            book.find(n, choice.market, choice.region, choice.as_of)
            for n in scenario.hardware.instances
        ]
        return sum(price.usd_per_hour for price in prices), "; ".join(map(str, prices))
    if choice.usd_per_hour is not None:
        return choice.usd_per_hour, "prices.usd_per_hour of the scenario"
    return None, "this machine has no price; set prices.usd_per_hour"
