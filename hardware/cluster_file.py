"""Cluster files: a user's own devices, catalog devices, and the links between them.

name: workstation
devices:
gpu0: RTX-3090                  # a device of the catalog, by any of its names
fpga0: devices/fpga.yaml        # a device file, relative to this file
cpu0: {kind: cpu, ...}          # or a profile in place
links:
- {between: [gpu0, cpu0], link: pcie4-x16}                    # both ways, from the catalog
- {src: fpga0, dst: cpu0, bytes_per_s: 1.1e+10, latency_s: 1.0e-05}
"""

from pathlib import Path
from typing import Any

from hardware.catalog import find_link, find_profile, read_profiles
from hardware.cluster import Cluster
from hardware.documents import parse, read_raw, to_plain

DEVICE_FILES = (".yaml", ".yml", ".json")


def read_cluster(path: Path) -> Cluster:
    """Read a cluster file.

    Raises:
        ValueError: naming file, key and value: a missing file, an unknown device, link or key, a
            figure that no device can have.
    """
    raw = read_raw(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a cluster maps keys to values, got {type(raw).__name__}")
    raw = {"name": path.stem, **raw}
    devices, links = raw.get("devices"), raw.get("links", [])
    if isinstance(devices, dict):
        raw["devices"] = {key: _device(key, entry, path) for key, entry in devices.items()}
    if isinstance(links, list):
        raw["links"] = [one for n, entry in enumerate(links) for one in _links(n, entry, path)]
    return parse(raw, Cluster, str(path))


def _device(key: str, entry: Any, path: Path) -> Any:
    """A device entry as a plain profile: looked up, read from its file, or as it stands."""
    if isinstance(entry, dict):
        return {"name": key, **entry}
    if not isinstance(entry, str):
        raise ValueError(
            f"{path}: devices.{key}: must be a catalog name, a device file or a profile, "
            f"got {entry!r}"
        )
    if not entry.endswith(DEVICE_FILES):
        try:
            return to_plain(find_profile(entry))
        except ValueError as error:
            raise ValueError(f"{path}: devices.{key}: {error}") from None
    profiles = read_profiles(path.parent / entry)
    if len(profiles) != 1:
        raise ValueError(
            f"{path}: devices.{key}: {entry} holds {len(profiles)} devices; name one a file"
        )
    return to_plain(next(iter(profiles.values())))


def _links(number: int, entry: Any, path: Path) -> list[Any]:
    """A link entry as plain links: its catalog figures filled in, both ways if `between`."""
    where = f"{path}: links.{number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must map keys to values, got {entry!r}")
    entry = dict(entry)
    if "link" in entry:
        try:
            figures = find_link(str(entry.pop("link")))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        entry = {
            "bytes_per_s": figures.bytes_per_s,
            "latency_s": figures.latency_s,
            "provenance": to_plain(figures.provenance),
            **entry,
        }
    entry.setdefault("provenance", {"level": "literal", "source": str(path)})
    if "between" not in entry:
        return [entry]
    ends = entry.pop("between")
    if not (isinstance(ends, list) and len(ends) == 2):
        raise ValueError(f"{where}: between must name two devices, got {ends!r}")
    return [{"src": src, "dst": dst, **entry} for src, dst in (ends, ends[::-1])]
