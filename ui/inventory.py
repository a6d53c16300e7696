"""What there is to plan for: devices of the catalog and of this machine, instances and prices."""

import argparse
from collections.abc import Mapping
from typing import Any

from hardware.catalog import expand, find_profile, load_instances, load_prices, load_profiles
from hardware.cluster import Cluster
from hardware.documents import to_plain
from hardware.profile import DeviceProfile
from hardware.units import format_bytes, format_count, format_figure, format_seconds, format_usd
from ui import terminal
from ui.checking import check
from ui.emit import emit
from ui.exits import DONE


def devices(arguments: argparse.Namespace) -> int:
    """The catalog and this machine's profile; one device; or a check of figures."""
    if arguments.name == "check":
        return check(arguments)
    if arguments.file or arguments.against:
        raise ValueError("FILE and --against belong to `apportion devices check`")
    if arguments.name:
        return _show_one(arguments, find_profile(arguments.name))
    from executor import cache

    local = cache.newest("profile", Cluster)
    age_s = cache.age_s(next(iter(local.devices.values())).provenance.date) if local else None
    document = {
        "schema": "apportion.devices/1",
        "local": to_plain(local) if local else None,
        "age_s": age_s,
        "catalog": {name: to_plain(profile) for name, profile in load_profiles().items()},
    }
    if not emit(arguments, document):
        _show_devices(load_profiles(), "Catalog (figures of data sheets)")
        if local is None:
            terminal.out.print("Not measured yet: `apportion calibrate` measures this machine")
            return DONE
        age = "on an unknown date" if age_s is None else f"{format_seconds(age_s)} ago"
        title = f"This machine, measured {age}"
        _show_devices(local.devices, title)
        _show_links(local)
    return DONE


def figure_rows(profile: DeviceProfile) -> list[dict[str, Any]]:
    """Every figure of a profile with its unit and where it comes from."""
    rows = [
        {"figure": key, "value": value, "text": format_figure(key, value)}
        for key, value in profile.figures.items()
    ]
    overhead = {"figure": "launch_overhead_s", "value": profile.launch_overhead_s}
    rows.append({**overhead, "text": format_seconds(profile.launch_overhead_s)})
    for kind, share in profile.efficiency.items():
        rows.append({"figure": f"efficiency.{kind}", "value": share, "text": f"{share:.0%}"})
    return [{**row, "source": expand(profile.source(str(row["figure"])))} for row in rows]


def _show_one(arguments: argparse.Namespace, profile: DeviceProfile) -> int:
    rows = figure_rows(profile)
    rented_as = [
        name for name, i in load_instances().items() if profile.name in (i.accelerator, i.host)
    ]
    document = {
        "schema": "apportion.device/1",
        "profile": to_plain(profile),
        "figures": rows,
        "instances": rented_as,
    }
    if not emit(arguments, document):
        title = f"{profile.name} ({profile.kind}), {profile.provenance.level}"
        cells = [[row["figure"], row["text"], row["source"]] for row in rows]
        terminal.table(title, ["figure", "value", "source"], cells)
        terminal.out.print(f"Also found as: {', '.join(profile.aliases) or 'no other name'}")
        terminal.out.print(f"Rented as: {', '.join(rented_as) or 'nothing in the catalog'}")
    return DONE


def prices(arguments: argparse.Namespace) -> int:
    """Instances and what they cost."""
    rows = load_prices().prices
    priced = {price.instance for price in rows}
    unpriced = [name for name in load_instances() if name not in priced]
    document = {
        "schema": "apportion.prices/1",
        "prices": [to_plain(price) for price in rows],
        "instances": {name: to_plain(i) for name, i in load_instances().items()},
        "unpriced": unpriced,
    }
    if not emit(arguments, document):
        cells = [
            [p.instance, p.market, p.region, format_usd(p.usd_per_hour), p.as_of, p.source]
            for p in rows
        ]
        columns = ["instance", "market", "region", "USD/h", "as of", "source"]
        terminal.table("Prices", columns, cells)
        terminal.out.print(f"In the catalog without a price: {', '.join(unpriced)}")
    return DONE


def _show_devices(devices: Mapping[str, DeviceProfile], title: str) -> None:
    """Profiles by name: dense peaks by width of the numbers, memory, units, power."""

    def peak(profile: DeviceProfile, *dtypes: str) -> str:
        known = [rate for d in dtypes if (rate := profile.peak_flops_per_s.get(d))]
        return format_count(max(known), "FLOP/s") if known else ""

    rows = [
        [
            name,
            p.kind,
            peak(p, "float32"),
            peak(p, "bfloat16", "float16"),
            peak(p, "int8", "float8"),
            format_bytes(p.memory_bytes),
            format_count(p.memory_bytes_per_s, "B/s"),
            str(p.num_compute_units or ""),
            f"{p.power_w:g} W" if p.power_w else "",
            p.provenance.level,
        ]
        for name, p in devices.items()
    ]
    columns = ["device", "kind", "float32", "16 bits", "8 bits", "memory", "bandwidth"]
    terminal.table(title, [*columns, "units", "power", "level"], rows)


def _show_links(cluster: Cluster) -> None:
    """Links of a cluster."""
    rows = [
        [
            f"{link.src} to {link.dst}",
            format_count(link.bytes_per_s, "B/s"),
            format_seconds(link.latency_s),
        ]
        for link in cluster.links
    ]
    terminal.table("Links", ["link", "bandwidth", "latency"], rows)
