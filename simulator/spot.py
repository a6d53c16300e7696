"""Spot instances: how often the cloud takes them back, drawn or as a trace recorded it."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import csv

from hardware.clouds import find_spot_pool
from hardware.documents import STRICT, read_raw
from simulator.availability import Outage, Outages, alternate
from simulator.trace import Array


@dataclass(frozen=True)
class Spot:
    """How spot replicas come and go; at most one of mean_up_s, pool and trace.

    Where none is given, the interruption rate that is published for the hardware and region
    counts, and another instance is to be had at once.

    Attributes:
        mean_up_s, mean_down_s: until an instance is taken back, and until one is to be had again;
            both exponential, each replica's by itself.
        pool: of the catalog, in place of these two.
        trace: CSV of `time_s, available` (instances to be had from then on), or JSON with
            `metadata.gap_seconds` and `data`.
        notice_s: warning; None: that of the cloud.
        on_demand: replicas that are rented on demand; only those beyond are spot.
    """

    __pydantic_config__ = STRICT
    mean_up_s: float | None = None
    mean_down_s: float = 0.0
    pool: str | None = None
    trace: str | None = None
    notice_s: float | None = None
    on_demand: int = 0

    def __post_init__(self) -> None:
        """Refuse several sources, and times that cannot be."""
        named = [k for k in ("mean_up_s", "pool", "trace") if getattr(self, k) is not None]
        if len(named) > 1:
            raise ValueError(f"serving.spot: one of {' and '.join(named)}, not both")
        if self.mean_up_s is not None and not 0 < self.mean_up_s < math.inf:
            raise ValueError(f"serving.spot: mean_up_s must be positive, got {self.mean_up_s}")
        for key in ("mean_down_s", "notice_s", "on_demand"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"serving.spot: {key} must not be negative, got {value}")
        if self.mean_down_s and self.mean_up_s is None:
            raise ValueError("serving.spot: mean_down_s needs mean_up_s")
        if self.pool is not None:
            find_spot_pool(self.pool)


@dataclass(frozen=True)
class Renewal:
    """Mean seconds until an instance is taken back, and until another is to be had."""

    mean_up_s: float
    mean_down_s: float

    def outages(self, num_replicas: int, until_s: float, rng: np.random.Generator) -> Outages:
        """Draw the times of every replica."""
        return tuple(
            alternate(
                lambda: float(rng.exponential(self.mean_up_s)),
                lambda: float(rng.exponential(self.mean_down_s)),
                until_s,
                "preempted",
            )
            for _ in range(num_replicas)
        )


@dataclass(frozen=True)
class Recorded:
    """How many instances were to be had from each moment on; the last holds to the end."""

    time_s: Array
    available: NDArray[np.int64]

    def outages(self, num_replicas: int, until_s: float, rng: np.random.Generator) -> Outages:
        """The same for every draw: replica i is out while no more than i are to be had."""
        return tuple(tuple(self._outages_of(i, until_s)) for i in range(num_replicas))

    def _outages_of(self, replica: int, until_s: float) -> list[Outage]:
        is_out = self.available <= replica
        turns = np.flatnonzero(np.diff(is_out, prepend=False))
        times = [float(self.time_s[turn]) for turn in turns]
        if len(times) % 2:
            times.append(math.inf)
        pairs = zip(times[::2], times[1::2], strict=True)
        return [Outage(down, up, "preempted") for down, up in pairs if down < until_s]


def read_availability(path: Path) -> Recorded:
    """Read an availability trace; its times count from its first row.

    Raises:
        ValueError: no such file, a column is missing, or a value cannot be.
    """
    if path.suffix == ".json":
        return _check(path, *_read_json(path))
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        table = csv.read_csv(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: cannot be read as a CSV of availability: {error}") from None
    for name in ("time_s", "available"):
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            raise ValueError(f"{path}: column {name} is missing; it has: {found}")
    columns = [table.column(name) for name in ("time_s", "available")]
    for name, column in zip(("time_s", "available"), columns, strict=True):
        if column.null_count or not (
            pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)
        ):
            raise ValueError(f"{path}: {name} must be a number in every row")
    return _check(path, *(column.to_numpy().astype(np.float64) for column in columns))


def _read_json(path: Path) -> tuple[Array, Array]:
    raw = read_raw(path)
    try:
        gap_s = float(raw["metadata"]["gap_seconds"])
        available = np.array(raw["data"], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: needs metadata.gap_seconds and data, a list of numbers"
        ) from None
    return np.arange(len(available), dtype=np.float64) * gap_s, available


def _check(path: Path, time_s: Array, available: Array) -> Recorded:
    if not len(time_s):
        raise ValueError(f"{path}: no rows; an availability trace needs at least one")
    rules = (
        (~np.isfinite(time_s) | (time_s < 0), time_s, "time_s must be finite and not negative"),
        (np.diff(time_s, prepend=-1.0) <= 0, time_s, "time_s must rise from row to row"),
        (~np.isfinite(available) | (available < 0), available, "available must not be negative"),
        (available != np.floor(available), available, "available must be a whole number"),
    )
    for wrong, values, rule in rules:
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{path}: row {row + 1}: {rule}, got {values[row]:g}")
    return Recorded(time_s - time_s[0], available.astype(np.int64))
