"""Under what a scenario's replicas are rented, and what they are charged for."""

from dataclasses import replace
from pathlib import Path

from hardware.catalog import find_instance, find_link, load_prices
from hardware.clouds import (
    cloud_name,
    find_spot_market,
    find_spot_pool,
    load_clouds,
    load_grids,
)
from hardware.power import Power
from hardware.prices import Market
from simulator.boot import AT_ONCE, Boot, StartUp, start_up
from simulator.renting import Conditions
from simulator.spot import Recorded, Renewal, Spot, read_availability
from simulator.tariff import Tariff
from ui.rented import rent
from ui.scenario import Rented, Scenario


def instances_of(scenario: Scenario) -> tuple[str, ...]:
    """Names of the instances that one replica takes; none where it is not rented."""
    return scenario.hardware.instances if isinstance(scenario.hardware, Rented) else ()


def cloud_of(scenario: Scenario) -> str | None:
    """The cloud of a replica's instances; None where they are of several, or not rented."""
    names = {cloud_name(instance) for instance in instances_of(scenario)}
    return names.pop() if len(names) == 1 else None


def region_of(scenario: Scenario) -> str | None:
    """The region: as the scenario says, or the one whose price is taken."""
    choice, instances = scenario.prices, instances_of(scenario)
    if choice.region or not instances:
        return choice.region
    market: Market = "on_demand" if choice.usd_per_hour else choice.market
    return load_prices().find(instances[0], market, None, choice.as_of).region


def tariff_of(scenario: Scenario, power: Power | str = "a service has no machine") -> Tariff:
    """What a replica on a scenario's hardware is charged for.

    Raises:
        ValueError: the catalog has no price as asked.
    """
    choice, cloud = scenario.prices, load_clouds().get(cloud_of(scenario) or "")
    usd_per_hour, provenance = rent(scenario)
    prices: dict[str, float] = {}
    if usd_per_hour is not None:
        prices[choice.market] = usd_per_hour
    if choice.market != "on_demand":
        on_demand = _on_demand(scenario)
        if on_demand is not None:
            prices["on_demand"] = on_demand
    pue = choice.pue or (cloud.pue if cloud else 1.0)
    return Tariff(
        choice.market,
        prices,
        cloud,
        power,
        pue,
        _carbon(scenario),
        choice.usd_per_kwh,
        choice.internet_bytes,
        choice.zone_bytes,
        provenance,
    )


def _on_demand(scenario: Scenario) -> float | None:
    region, as_of = region_of(scenario), scenario.prices.as_of
    try:
        found = [
            load_prices().find(name, "on_demand", region, as_of) for name in instances_of(scenario)
        ]
    except ValueError:
        return None
    return sum(price.usd_per_hour for price in found) if found else None


def _carbon(scenario: Scenario) -> float | str:
    if scenario.prices.g_per_kwh is not None:
        return scenario.prices.g_per_kwh
    grid, region = load_grids().get(cloud_of(scenario) or ""), region_of(scenario)
    if grid is None or region is None:
        return "the grid is not known; prices.g_per_kwh tells it"
    if region not in grid.g_per_kwh:
        return f"the grid of {cloud_of(scenario)} {region} is not known; prices.g_per_kwh tells it"
    return grid.g_per_kwh[region]


def comes_and_goes(scenario: Scenario) -> bool:
    """Whether replicas come or go while the scenario is served."""
    serving = scenario.serving
    return bool(serving.failures or serving.autoscaling) or scenario.prices.market == "spot"


def conditions_of(scenario: Scenario, load_bytes: float) -> Conditions:
    """When replicas on a scenario's hardware boot, break and are taken back.

    Args:
        scenario: with the hardware of one kind of replica.
        load_bytes: of the model, which a new replica loads.

    Raises:
        ValueError: a figure that is asked for is not known.
    """
    serving, market = scenario.serving, scenario.prices.market
    if serving.spot is not None and market != "spot":
        raise ValueError(f"serving.spot needs prices.market: spot, got {market}")
    boot, origin = _start_up(scenario, load_bytes)
    plain = Conditions(boot, serving.failures, notes=(origin,))
    if market != "spot":
        return plain
    try:
        spot, origin = _spot(scenario, serving.spot or Spot())
    except ValueError as unknown:
        if serving.spot is not None:
            raise
        return replace(plain, notes=(*plain.notes, f"never taken back: {unknown}"))
    chosen, cloud = serving.spot or Spot(), load_clouds().get(cloud_of(scenario) or "")
    notice_s = chosen.notice_s
    if notice_s is None:
        if cloud is None:
            raise ValueError("serving.spot: no cloud says how long the notice is; set notice_s")
        notice_s = cloud.spot_notice_s
    notes = (*plain.notes, f"{origin}; {notice_s:g} s notice")
    return replace(plain, spot=spot, notice_s=notice_s, on_demand=chosen.on_demand, notes=notes)


def _start_up(scenario: Scenario, load_bytes: float) -> tuple[StartUp, str]:
    boot, cloud = scenario.serving.boot, cloud_of(scenario)
    if boot is None and cloud is None:
        return AT_ONCE, "new replicas serve at once; serving.boot says otherwise"
    rates = [_load_rate(name) for name in instances_of(scenario)]
    known = [rate for rate in rates if rate is not None]
    rate = min(known) if known else None
    found = start_up(boot or Boot(), cloud, load_bytes, rate)
    return found, found.provenance


def _load_rate(instance: str) -> float | None:
    """Bytes per second from the network to the accelerators: the slower of the two links."""
    machine = find_instance(instance)
    rates = [find_link(n).bytes_per_s for n in (machine.network, machine.host_link) if n]
    return min(rates) if rates else None


def _spot(scenario: Scenario, spot: Spot) -> tuple[Renewal | Recorded, str]:
    if spot.trace is not None:
        return read_availability(Path(spot.trace)), f"availability as {spot.trace} recorded it"
    if spot.pool is not None:
        pool = find_spot_pool(spot.pool)
        renewal = Renewal(pool.mean_up_s, pool.mean_down_s)
        return renewal, f"spot pool {spot.pool}: {pool.runs} runs of a published trace"
    if spot.mean_up_s is not None:
        return Renewal(spot.mean_up_s, spot.mean_down_s), "spot interruptions as given"
    region = region_of(scenario) or "no region"
    instances = instances_of(scenario)
    if not instances:
        raise ValueError("serving.spot: the hardware is not rented; set mean_up_s, pool or trace")
    markets = [find_spot_market(name, region) for name in instances]
    bands = ", ".join(market.band for market in markets)
    rate = sum(1 / market.mean_up_s for market in markets)
    return Renewal(1 / rate, 0.0), f"taken back {bands} in {region}; another is to be had at once"
