"""Recorded traffic: a CSV of request times, and of tokens where the requests are generations.

Source of the Azure format: Azure/AzurePublicDataset, AzureLLMInferenceTrace (2023), CC-BY-4.0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import csv

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

TIME = ("timestamp", "arrival_s", "arrived_at", "arrival_time", "time_s", "seconds", "time")
PROMPT = ("contexttokens", "prompt_tokens", "num_prefill_tokens", "input_tokens")
OUTPUT = ("generatedtokens", "output_tokens", "num_decode_tokens")
"""Accepted names of the columns, in lower case."""

MAX_ROWS = 20_000_000
"""Rows that are read: half a gigabyte of times and tokens."""

MAX_SPAN_S = 1e9
"""From the first request to the last: 31 years, which floats of 64 bits resolve to 0.1 us."""


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival.

    Attributes:
        arrival_s: (num_requests,) seconds from the start, ascending.
        duration_s: of the traffic; longer than the last arrival.
        prompt_tokens, output_tokens: (num_requests,) of generations; None otherwise.
    """

    arrival_s: Array
    duration_s: float
    prompt_tokens: Counts | None = None
    output_tokens: Counts | None = None

    @property
    def rate(self) -> float:
        """Requests per second, on average."""
        return len(self.arrival_s) / self.duration_s

    def until(self, duration_s: float) -> "Requests":
        """The requests of the first seconds."""
        num = int(np.searchsorted(self.arrival_s, duration_s))
        prompt, output = (
            None if tokens is None else tokens[:num]
            for tokens in (self.prompt_tokens, self.output_tokens)
        )
        return Requests(self.arrival_s[:num], duration_s, prompt, output)


def read_trace(path: Path) -> Requests:
    """Read a trace; time counts from its first request and ends one mean gap after its last.

    Raises:
        ValueError: no such file, a column is missing, there are no rows, or a value is not a time
            in order or a number of tokens.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; a trace is a CSV of times and, for generations, tokens, as "
            "AzureLLMInferenceTrace_conv.csv of https://github.com/Azure/AzurePublicDataset"
        )
    return _read_version(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_version(path: Path, changed_ns: int) -> Requests:
    table = _read_columns(path)
    if not len(table):
        raise ValueError(f"{path}: no requests; a trace needs at least one row below its header")
    if len(table) > MAX_ROWS:
        raise ValueError(f"{path}: {len(table):,} rows, at most {MAX_ROWS:,} are read; split it")
    arrival_s = _seconds(path, table.column("time"))
    num = len(arrival_s)
    gap_s = arrival_s[-1] / (num - 1) if num > 1 else 0.0
    tokens = [
        _tokens(path, table.column(name), name) if name in table.column_names else None
        for name in ("prompt_tokens", "output_tokens")
    ]
    return Requests(arrival_s, float(arrival_s[-1] + (gap_s or 1.0)), *tokens)


def _read_columns(path: Path) -> pyarrow.Table:
    """The columns that count, under their own names."""
    try:
        with csv.open_csv(path) as reader:
            header = reader.schema.names
        wanted = _wanted(path, header)
        options = csv.ConvertOptions(include_columns=list(wanted.values()))
        return csv.read_csv(path, convert_options=options).rename_columns(list(wanted))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: cannot be read as a CSV of requests: {error}") from None


def _wanted(path: Path, header: list[str]) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in header}
    found: dict[str, str] = {}
    for key, accepted in (("time", TIME), ("prompt_tokens", PROMPT), ("output_tokens", OUTPUT)):
        for name in accepted:
            if name in by_name:
                found.setdefault(key, by_name[name])
    if "time" not in found:
        known = ", ".join(TIME)
        raise ValueError(f"{path}: no column of times among {', '.join(header)}; accepted: {known}")
    if len(found) == 2:
        missing = ({"prompt_tokens", "output_tokens"} - set(found)).pop()
        raise ValueError(f"{path}: column {missing} is missing beside {', '.join(header)}")
    return found


def _seconds(path: Path, column: pyarrow.ChunkedArray) -> Array:
    """Seconds since the first row of a column of seconds or of timestamps."""
    if column.null_count:
        raise ValueError(f"{path}: row {_first(column.is_null())} has no time")
    if pyarrow.types.is_timestamp(column.type):
        ticks = column.cast(pyarrow.timestamp("ns", tz=column.type.tz)).cast(pyarrow.int64())
        nanoseconds = ticks.to_numpy()
        seconds = (nanoseconds - nanoseconds[0]) / 1e9
    elif pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type):
        seconds = column.to_numpy().astype(np.float64)
        _refuse(path, ~np.isfinite(seconds), seconds, "time must be a finite number of seconds")
        _refuse(path, seconds < 0, seconds, "time must not be negative")
        seconds -= seconds[0]
    else:
        row, value = _first_unlike(column, float, datetime.fromisoformat)
        raise ValueError(
            f"{path}: times must be seconds or timestamps as 2023-11-16 18:15:46.68, "
            f"got {value!r} in row {row}"
        )
    far = seconds > MAX_SPAN_S
    _refuse(path, far, seconds, f"times must be seconds, within {MAX_SPAN_S:g} s of the first")
    backwards = np.flatnonzero(np.diff(seconds) < 0)
    if len(backwards):
        row = int(backwards[0]) + 2
        raise ValueError(f"{path}: row {row} is earlier than the row above; sort the file by time")
    return np.asarray(seconds, dtype=np.float64)


def _tokens(path: Path, column: pyarrow.ChunkedArray, name: str) -> Counts:
    if column.null_count:
        raise ValueError(f"{path}: row {_first(column.is_null())} has no {name}")
    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
        row, value = _first_unlike(column, int)
        raise ValueError(f"{path}: {name} must be whole numbers, got {value!r} in row {row}")
    values = column.to_numpy()
    whole = np.isfinite(values) & (values == np.floor(values))
    _refuse(path, ~whole, values, f"{name} must be a whole number")
    _refuse(path, values < 1, values, f"{name} must be at least 1")
    tokens: Counts = values.astype(np.int64)
    return tokens


def _first_unlike(
    column: pyarrow.ChunkedArray, *readers: Callable[[str], object]
) -> tuple[int, object]:
    """Row, from 1, and value of the first that no reader takes; of the first where all are."""

    def is_read(value: object) -> bool:
        for reader in readers:
            try:
                reader(str(value))
            except ValueError:
                continue
            return True
        return False

    rows = enumerate(column.to_pylist(), 1)
    return next(((row, value) for row, value in rows if not is_read(value)), (1, column[0].as_py()))


def _refuse(path: Path, wrong: NDArray[np.bool_], values: NDArray[np.generic], rule: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{path}: row {row + 1}: {rule}, got {values[row]}")


def _first(flags: pyarrow.ChunkedArray) -> int:
    return int(flags.to_numpy(zero_copy_only=False).argmax()) + 1
