"""What files of published placement instances say, and checks of their entries."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.profile import DeviceKind
from scheduler.ir.graph import MOST_FIGURE

Array = NDArray[np.float64]
Figures = tuple[float, ...]
NO_LIMIT_BYTES = 2**63 - 1
"""Memory of a device for which the file gives no limit."""


@dataclass(frozen=True)
class Node:
    """An operator: its seconds on each device, and the bytes that it keeps there."""

    name: str
    seconds: Figures
    num_bytes: float
    label: str = ""
    backward: bool = False


@dataclass(frozen=True)
class Contents:
    """What a file says: devices (kind, bytes), nodes, and edges with figures of transfer time.

    `pairs` turns an edge's figures into seconds (num_devices, num_devices), src by dst; `ends`
    into the seconds (num_devices,) that each device spends itself on sending or receiving.
    """

    devices: Mapping[str, tuple[DeviceKind, float]]
    nodes: list[Node]
    edges: list[tuple[str, str, Figures]]
    pairs: Callable[[Figures], Array]
    ends: Callable[[Figures], Array] | None = None
    colocated: tuple[tuple[str, ...], ...] = ()


def get(entry: Any, key: str, where: object) -> Any:
    """The value of a key that must be there."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must map keys to values, got {entry!r}")
    if key not in entry:
        raise ValueError(f"{where}: missing key '{key}'")
    return entry[key]


def figure(entry: Any, key: str, where: object) -> float:
    """A number from 0: seconds or bytes, in the file's unit."""
    value = get(entry, key, where)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < MOST_FIGURE:
        raise ValueError(f"{where}: {key} must be a number from 0 to 1e30, got {value!r}")
    return number


def count(entry: Any, key: str, where: object) -> int:
    """A whole number from 0."""
    number = figure(entry, key, where)
    if number % 1:
        raise ValueError(f"{where}: {key} must be a whole number, got {entry[key]!r}")
    return int(number)


def flag(entry: Any, key: str, default: bool, where: object) -> bool:
    """True or false; the default where the key is missing."""
    value = entry.get(key, default)
    if value not in (True, False):
        raise ValueError(f"{where}: {key} must be true or false, got {value!r}")
    return bool(value)
