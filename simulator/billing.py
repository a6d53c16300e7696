"""What a deployment costs: at full load, or for what a simulated fleet really rented and used."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hardware.clouds import Cloud
from hardware.documents import STRICT
from simulator.served import Rental, Served
from simulator.tariff import Tariff

HOUR_S = 3600.0
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Cost:
    """USD per hour of the rented instances, per 1,000 inferences, and the source."""

    __pydantic_config__ = STRICT

    usd_per_hour: float
    usd_per_1k: float
    provenance: str


def cost_at_full_load(usd_per_hour: float, throughput_per_s: float, provenance: str) -> Cost:
    """Price a throughput: usd_per_1k = usd_per_hour / 3600 / throughput * 1000."""
    return Cost(usd_per_hour, usd_per_hour / HOUR_S / throughput_per_s * 1000, provenance)


@dataclass(frozen=True)
class Item:
    """A line of a bill: for a kind of replica, or for all where `kind` is empty."""

    __pydantic_config__ = STRICT

    kind: str
    name: str
    quantity: float
    unit: str
    usd: float


@dataclass(frozen=True)
class Bill:
    """What a fleet cost in one run, on average over the runs.

    Attributes:
        seconds: that were simulated.
        finished: requests.
        energy_kwh, carbon_kg: None where not known.
        notes: what the figures rest on, and what is not known.
    """

    __pydantic_config__ = STRICT

    items: tuple[Item, ...]
    total_usd: float
    seconds: float
    finished: float
    energy_kwh: float | None = None
    carbon_kg: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """The total is the sum of the items."""
        if self.total_usd != (sum_usd := math.fsum(item.usd for item in self.items)):
            raise AssertionError(f"a bill of {self.total_usd} whose items sum to {sum_usd}")

    def usd_per_hour_of(self, kind: str) -> float:
        """Per hour of the run, for one kind of replica."""
        usd = math.fsum(item.usd for item in self.items if item.kind == kind)
        return usd / self.seconds * HOUR_S if self.seconds else 0.0

    @property
    def cost(self) -> Cost:
        """Per hour of the run, and per 1,000 requests that were answered."""
        per_hour = self.total_usd / self.seconds * HOUR_S if self.seconds else 0.0
        per_1k = self.total_usd / self.finished * 1000 if self.finished else math.inf
        return Cost(per_hour, per_1k, "for what the fleet rented and used")


def billed_s(rental: Rental, cloud: Cloud | None) -> float:
    """Seconds of a rental that are charged: rounded up, at least the minimum.

    A rental that goes on after the run is charged for what it lasted. A spot machine that the
    cloud takes back early may be free.
    """
    used_s = rental.end_s - rental.booked_s
    if cloud is None or rental.ended_by == "kept":
        return used_s
    if rental.ended_by == "preempted" and used_s < cloud.interrupted_free_s:
        return 0.0
    return max(cloud.minimum_s, math.ceil(used_s / cloud.granularity_s) * cloud.granularity_s)


def rentals_of(run: Served) -> Sequence[Rental]:
    """The machines of a run; every server is one where none came or went."""
    return run.rentals or [
        Rental(server.replica, "", server.start_s, server.start_s, server.end_s, "kept")
        for server in run.servers
    ]


def charges(run: Served) -> tuple[Item, ...]:
    """The lines of the bill for one run, of the kinds of replicas that have a tariff.

    Raises:
        ValueError: machines were rented at a market without a price.
    """
    names = dict.fromkeys(server.replica.name for server in run.servers)
    busy_s = {name: _busy_s(run, name) for name in names}
    return charges_of(rentals_of(run), busy_s, run.duration_s, run.requests["finished"])


def charges_of(
    rentals: Sequence[Rental], busy_s: Mapping[str, float], duration_s: float, finished: int
) -> tuple[Item, ...]:
    """The lines of the bill for machines; `busy_s` is by kind, of all of them together.

    Raises:
        ValueError: machines were rented at a market without a price.
    """
    by_kind: dict[str, list[Rental]] = defaultdict(list)
    for rental in rentals:
        by_kind[rental.replica.name].append(rental)
    items: list[Item] = []
    first: Tariff | None = None
    for name, own in by_kind.items():
        tariff = own[0].replica.tariff
        if tariff is None:
            continue
        first = first or tariff
        if tariff.usd_per_hour:
            items += _rent(name, own, tariff, duration_s)
        items += _energy(name, own, tariff, busy_s.get(name, 0.0))
    if first is not None:
        items += _bytes(first, finished, duration_s)
    return tuple(items)


def bill(runs: Sequence[tuple[Item, ...]], seconds: float, finished: float) -> Bill:
    """The mean of the charges of several runs, each of `seconds` and with `finished` requests."""
    lines: dict[tuple[str, str, str], list[Item]] = defaultdict(list)
    for item in (item for items in runs for item in items):
        lines[item.kind, item.name, item.unit].append(item)
    num = len(runs)
    items = tuple(
        Item(
            kind,
            name,
            math.fsum(item.quantity for item in line) / num,
            unit,
            math.fsum(item.usd for item in line) / num,
        )
        for (kind, name, unit), line in lines.items()
    )
    total_usd = math.fsum(item.usd for item in items)
    return Bill(items, total_usd, seconds, finished, _total(items, "kWh"), _total(items, "kg CO2e"))


def _total(items: Sequence[Item], unit: str) -> float | None:
    found = [item.quantity for item in items if item.unit == unit]
    return math.fsum(found) if found else None


def _rent(name: str, rentals: list[Rental], tariff: Tariff, duration_s: float) -> Iterator[Item]:
    """Rent by market: of machines that boot, of those that serve, and what rounding adds."""
    if tariff.market == "reserved":
        num = sum(rental.booked_s == 0 for rental in rentals)
        yield _hours(name, "reserved", num * duration_s, _price(name, tariff, "reserved"))
        beyond_s = hours_beyond(rentals, num)
        if beyond_s > 0:
            price = _price(name, tariff, "on_demand")
            yield _hours(name, "on demand beyond the reserved", beyond_s, price)
        return
    for market in dict.fromkeys(rental.market or tariff.market for rental in rentals):
        price = _price(name, tariff, market)
        chosen = [r for r in rentals if (r.market or tariff.market) == market]
        booting_s = math.fsum((r.end_s if r.up_s is None else r.up_s) - r.booked_s for r in chosen)
        used_s = math.fsum(r.end_s - r.booked_s for r in chosen)
        charged_s = math.fsum(billed_s(r, tariff.cloud) for r in chosen)
        words = market.replace("_", " ")
        yield _hours(name, f"{words}, serving", used_s - booting_s, price)
        if booting_s:
            yield _hours(name, f"{words}, booting", booting_s, price)
        if abs(charged_s - used_s) > 1e-9:
            yield _hours(
                name,
                f"{words}, rounding, minimum and free spot hours",
                charged_s - used_s,
                price,
            )


def _hours(kind: str, name: str, seconds: float, usd_per_hour: float) -> Item:
    return Item(kind, name, seconds / HOUR_S, "h", seconds / HOUR_S * usd_per_hour)


def _price(name: str, tariff: Tariff, market: str) -> float:
    if market not in tariff.usd_per_hour:
        known = ", ".join(tariff.usd_per_hour)
        raise ValueError(f"no {market} price of '{name}' in its region; there is: {known}")
    return tariff.usd_per_hour[market]


def hours_beyond(rentals: Sequence[Rental], num: int) -> float:
    """Machine-seconds in which more than `num` are rented, each second above counted once."""
    turns = sorted([(r.booked_s, 1) for r in rentals] + [(r.end_s, -1) for r in rentals])
    seconds, rented, last_s = 0.0, 0, 0.0
    for time_s, change in turns:
        seconds += max(0, rented - num) * (time_s - last_s)
        rented, last_s = rented + change, time_s
    return seconds


def _busy_s(run: Served, name: str) -> float:
    ours = [server.replica.name == name for server in run.servers]
    busy_s = run.busy_within()
    return math.fsum(busy_s[[ours[server] for server in run.batches.server]])


def _energy(name: str, rentals: list[Rental], tariff: Tariff, busy_s: float) -> Iterator[Item]:
    """Energy = PUE * (idle power * rented time + (busy - idle power) * computing time)."""
    power = tariff.power
    if isinstance(power, str):
        return
    rented_s = math.fsum(rental.end_s - rental.booked_s for rental in rentals)
    joules = power.idle_w * rented_s + (power.busy_w - power.idle_w) * busy_s
    kwh = tariff.pue * joules / JOULES_PER_KWH
    yield Item(name, "energy", kwh, "kWh", kwh * tariff.usd_per_kwh)
    if not isinstance(tariff.g_per_kwh, str):
        yield Item(name, "carbon", kwh * tariff.g_per_kwh / 1000, "kg CO2e", 0.0)


def _bytes(tariff: Tariff, finished: int, duration_s: float) -> Iterator[Item]:
    if tariff.cloud is None:
        return
    if tariff.internet_bytes:
        out = finished * tariff.internet_bytes
        usd = tariff.cloud.internet_usd(out, duration_s)
        yield Item("", "bytes to the internet", out / 1e9, "GB", usd)
    if tariff.zone_bytes:
        crossed = finished * tariff.zone_bytes
        usd = crossed * tariff.cloud.zone_usd_per_byte
        yield Item("", "bytes between zones", crossed / 1e9, "GB", usd)
