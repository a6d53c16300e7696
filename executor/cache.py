"""The user's cache folder: measured profiles and operator times, keyed by what they depend on."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from hardware.documents import STRICT, read, to_plain, write_json
from scheduler.ir.graph import Graph

T = TypeVar("T")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/apportion`, by default `~/.cache/apportion`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "apportion"


def load(name: str, kind: type[T]) -> T | None:
    """Read what was stored for this machine under `name`; None if absent or corrupt."""
    try:
        return read(_path(name), kind)
    except ValueError:
        return None


def store(name: str, value: Any) -> None:
    """Keep a data class for this machine under `name`."""
    write_json(_path(name), to_plain(value))


def age_s(date: str) -> float | None:
    """Seconds since an ISO date and time in UTC; None where a profile carries no date."""
    if not date:
        return None
    return (datetime.now(UTC) - datetime.fromisoformat(date)).total_seconds()


def now() -> str:
    """The date and time in UTC, to the second, as ISO text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def newest(name: str, kind: type[T]) -> T | None:
    """What was stored last under `name`, whatever the machine; needs no torch to find it."""
    files = sorted(cache_folder().glob(f"*-{name}.json"), key=lambda path: path.stat().st_mtime)
    try:
        return read(files[-1], kind) if files else None
    except ValueError:
        return None


def _path(name: str) -> Path:
    from executor.devices import machine_key

    return cache_folder() / f"{machine_key()}-{name}.json"


@dataclass(frozen=True)
class Choice:
    """A yes or no that was measured."""

    __pydantic_config__ = STRICT
    yes: bool


def cached_choice(graph: Graph, measure: Callable[[], bool], fresh: bool) -> bool:
    """The measured answer for a graph: from the cache, or measured now."""
    name = f"whole-{digest(graph)}"
    choice = None if fresh else load(name, Choice)
    if choice is None:
        choice = Choice(measure())
        store(name, choice)
    return choice.yes


def digest(graph: Graph) -> str:
    """A short digest of a graph's operators and batch."""
    return hashlib.sha256(repr((graph.ops, graph.samples)).encode()).hexdigest()[:16]
