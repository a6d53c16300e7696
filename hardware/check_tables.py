"""Tables put to the rules: devices, prices, traces or conflicts, as CSV files told by columns."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hardware.catalog import load_instances, load_links, load_prices, load_profiles, read_profiles
from hardware.check import Finding, check_figure, check_profile
from hardware.check_prices import PriceClaim, check_prices, check_trace
from hardware.conflicts import Conflict, Verdict, devices_in, judge
from hardware.documents import read_raw
from hardware.names import candidates

Row = dict[str, str]

FIGURES = {
    "fp32_tflops": ("peak_flops_per_s.float32", 1e12),
    "tf32": ("peak_flops_per_s.tfloat32", 1e12),
    "bf16_dense": ("peak_flops_per_s.bfloat16", 1e12),
    "fp16": ("peak_flops_per_s.float16", 1e12),
    "int8": ("peak_flops_per_s.int8", 1e12),
    "fp8": ("peak_flops_per_s.float8", 1e12),
    "fp4": ("peak_flops_per_s.float4", 1e12),
    "mem_gb": ("memory_bytes", 2.0**30),
    "mem_bw_gbs": ("memory_bytes_per_s", 1e9),
    "tdp_w": ("power_w", 1.0),
}
"""Columns of a table of devices: the figure and the unit that each holds."""


@dataclass(frozen=True)
class Checked:
    """What a check read and found.

    Attributes:
        num_checked: devices, prices or conflicts that were held against the rules.
        unknown: names that the catalog does not have, so that nothing could be compared.
        verdicts: by row, for a table of conflicts.
    """

    findings: tuple[Finding, ...]
    num_checked: int
    unknown: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


def check_catalog() -> Checked:
    """The catalog against itself: figures, names, links and prices."""
    findings = [f for profile in load_profiles().values() for f in check_profile(profile)]
    for instance in load_instances().values():
        names = (instance.host_link, instance.peer_link, instance.network)
        for link in (name for name in names if name and name not in load_links()):
            message = f"'{link}' is no link of the catalog"
            findings.append(Finding(instance.name, "links", link, "unknown", message))
    claims = [_priced(p.instance, p.usd_per_hour, p.market, p.region) for p in load_prices().prices]
    findings += check_prices(claims)
    return Checked(tuple(findings), len(load_profiles()) + len(claims))


def check_file(path: Path) -> Checked:
    """A device file, a list of prices, or a table.

    Raises:
        ValueError: the file cannot be read, or is none of these.
    """
    if path.suffix == ".csv":
        return check_table(path)
    raw = read_raw(path)
    if isinstance(raw, list):
        return _check_price_list(path, raw)
    profiles = read_profiles(path)
    findings = [finding for profile in profiles.values() for finding in check_profile(profile)]
    unknown = [name for name in profiles if not candidates(name, load_profiles())]
    return Checked(tuple(findings), len(profiles), tuple(unknown))


def check_table(path: Path) -> Checked:
    """A CSV file of devices, prices, traces or conflicts.

    Raises:
        ValueError: the file cannot be read, has none of the known columns, or a cell is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: (v or "").strip() for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as a CSV table ({error})") from None
    columns = set(rows[0]) if rows else set()
    for needed, check in TABLES:
        if needed <= columns:
            return check(path, rows)
    kinds = "; or ".join(", ".join(sorted(needed)) for needed, _ in TABLES)
    raise ValueError(f"{path}: has none of the known sets of columns: {kinds}")


def _check_conflicts(path: Path, rows: list[Row]) -> Checked:
    keys = ("where", "field", "says", "should_be")
    verdicts = [judge(Conflict(*(row[key] for key in keys))) for row in rows]
    findings = [finding for verdict in verdicts for finding in verdict.said]
    return Checked(tuple(findings), len(rows), verdicts=tuple(verdicts))


def _check_devices(path: Path, rows: list[Row]) -> Checked:
    findings, unknown = [], []
    for number, row in enumerate(rows, 2):
        devices = candidates(row["name"], load_profiles())
        if not devices:
            unknown.append(row["name"])
            continue
        for column, (figure, scale) in FIGURES.items():
            if row.get(column):
                value = _number(row[column], f"{path}: line {number}: {column}") * scale
                findings.append(check_figure(row["name"], devices, figure, value))
    found = tuple(finding for finding in findings if finding)
    return Checked(found, len(rows) - len(unknown), tuple(unknown))


def _check_prices(path: Path, rows: list[Row]) -> Checked:
    claims = []
    for number, row in enumerate(rows, 2):
        where = f"{path}: line {number}"
        device = row.get("device", "")
        meant = [] if device.startswith("cpu") else devices_in(device)
        names = tuple(profile.name for profile in meant[0]) if meant else ()
        count = _number(row["count"], f"{where}: count") if row.get("count") else 0.0
        if not names and not device.startswith("cpu"):
            count = 0.0  # accelerators that the catalog does not know
        for market, column in (("on_demand", "on_demand_usd_h"), ("spot", "spot_usd_h")):
            if row.get(column):
                usd = _number(row[column], f"{where}: {column}")
                subject, region = row["instance"], row.get("region", "")
                claims.append(PriceClaim(subject, usd, names, count, market, region))
    return Checked(tuple(check_prices(claims)), len(claims))


def _check_traces(path: Path, rows: list[Row]) -> Checked:
    found = []
    for number, row in enumerate(rows, 2):
        gap_s, points, days = (
            _number(row[key], f"{path}: line {number}: {key}")
            for key in ("gap_s", "points", "days")
        )
        if not (gap_s > 0 and points > 0 and days > 0):
            raise ValueError(f"{path}: line {number}: gap_s, points and days must be positive")
        found.append(check_trace(row.get("file", f"line {number}"), gap_s, points, days))
    return Checked(tuple(finding for finding in found if finding), len(rows))


def _check_price_list(path: Path, raw: list[object]) -> Checked:
    claims = []
    for number, entry in enumerate(raw):
        where = f"{path}: {number}"
        if not (isinstance(entry, dict) and {"instance", "usd_per_hour"} <= set(entry)):
            raise ValueError(f"{where}: a price has instance and usd_per_hour, got {entry!r}")
        usd = _number(str(entry["usd_per_hour"]), f"{where}: usd_per_hour")
        market, region = (str(entry.get(key, "")) for key in ("market", "region"))
        claims.append(_priced(str(entry["instance"]), usd, market or "on_demand", region))
    return Checked(tuple(check_prices(claims)), len(claims))


def _priced(instance: str, usd_per_hour: float, market: str, region: str) -> PriceClaim:
    """A price of an instance; the catalog tells which accelerators it has."""
    known = load_instances().get(instance)
    devices = (known.accelerator,) if known and known.accelerator else ()
    count = known.num_accelerators if known else 0
    return PriceClaim(instance, usd_per_hour, devices, count, market, region)


def _number(text: str, where: str) -> float:
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{where}: must be a number, got {text!r}") from None


TABLES: list[tuple[set[str], Callable[[Path, list[Row]], Checked]]] = [
    ({"where", "field", "says", "should_be"}, _check_conflicts),
    ({"instance", "on_demand_usd_h"}, _check_prices),
    ({"name", "mem_gb"}, _check_devices),
    ({"gap_s", "points", "days"}, _check_traces),
]
"""Which columns tell a table, and what checks it."""
