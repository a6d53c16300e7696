"""How a request finds a server. Each rule is a function and an entry in the dictionary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.fleet import Fleet
    from simulator.server import Server


def round_robin(fleet: Fleet, number: int) -> Server:
    """In turn."""
    return fleet.up[number % len(fleet.up)]


def shortest_queue(fleet: Fleet, number: int) -> Server:
    """Where the fewest wait and run; the first of equals."""
    return min(fleet.up, key=lambda server: len(server.queue) + server.running)


def shared_queue(fleet: Fleet, number: int) -> Server:
    """All have one queue: the first that is idle; if none is, the first that will be."""
    return min(fleet.up, key=lambda server: server.free_s if server.running else 0.0)


def fastest(fleet: Fleet, number: int) -> Server:
    """Where the answer is predicted first."""
    return min(fleet.up, key=lambda server: server.predicted_s())


ROUTING: dict[str, Callable[[Fleet, int], Server]] = {
    "round_robin": round_robin,
    "shortest_queue": shortest_queue,
    "shared_queue": shared_queue,
    "fastest": fastest,
}
