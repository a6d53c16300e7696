"""Serving under traffic, compiled: what `simulator.serve` gives, where servers stay up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.fast_events import new_events
from simulator.fast_fleet import (
    ARRIVED,
    BATCH,
    BATCHES,
    NUM_COUNTS,
    REQUEST,
    ROUTING_CODES,
    SERVER,
    TIME,
    run_fleet,
)
from simulator.served import Batches, Served, Uptime, draw_factors, settle, times_by_size
from simulator.serving import Replica, Serving
from simulator.trace import Array, Requests

Records = NDArray[Any]

REQUESTS_AT_ONCE = 500_000
"""Compiled code hears Ctrl-C between portions of so many requests."""


def serve_fast(
    replicas: Sequence[Replica], requests: Requests, serving: Serving, rng: np.random.Generator
) -> Served:
    """What `simulator.serve.serve` gives, from compiled code; Ctrl-C ends it within a second."""
    num, until_s = len(requests.arrival_s), float(requests.duration_s)
    spreads = draw_factors(replicas, num, rng)
    gaps_s = np.diff(requests.arrival_s, prepend=0.0)
    log = np.zeros(num, REQUEST)
    log["arrival_s"] = np.cumsum(gaps_s)
    log["start_s"] = log["answer_s"] = np.nan
    batches, counts = np.zeros(num, BATCH), np.zeros(NUM_COUNTS, np.int64)
    servers = _new_servers(replicas, spreads, serving, num)
    state = (
        gaps_s,
        until_s,
        ROUTING_CODES[serving.routing],
        _limits(serving, num),
        _times(spreads, serving),
        np.concatenate([*(s for s in spreads.values() if s is not None), np.ones(1)]),
        servers,
        new_events(2 * len(servers) + 1),
        counts,
        log,
        batches,
    )
    interrupted = False
    try:
        while not run_fleet(counts[ARRIVED] + REQUESTS_AT_ONCE, *state):
            pass
    except KeyboardInterrupt:
        interrupted = True
        log = log[: counts[ARRIVED]]
        until_s = float(log["arrival_s"][-1]) if len(log) else 0.0
    up = tuple(Uptime(replica, 0.0, until_s) for replica in replicas)
    batches = batches[: counts[BATCHES]]
    return _outcome(log, batches, up, until_s, serving.limits.timeout_s, interrupted)


def _outcome(
    log: Records,
    batches: Records,
    up: tuple[Uptime, ...],
    until_s: float,
    timeout_s: float | None,
    interrupted: bool,
) -> Served:
    arrival_s, start_s, answer_s, rejected = (
        log[name].copy() for name in ("arrival_s", "start_s", "answer_s", "rejected")
    )
    end_s, state = settle(arrival_s, answer_s, rejected, until_s, timeout_s)
    columns = Batches(*(batches[name].copy() for name in ("start_s", "busy_s", "server", "size")))
    return Served(arrival_s, start_s, end_s, state, columns, up, until_s, interrupted=interrupted)


def _limits(serving: Serving, num: int) -> tuple[float, int, float, float]:
    limits = serving.limits
    return (
        float(serving.batch.wait_s),
        limits.queue or num + 1,
        float(limits.timeout_s or np.inf),
        float(limits.predicted_s or np.inf),
    )


def _times(spreads: dict[Replica, Array | None], serving: Serving) -> Records:
    """Times by kind and size, (num_kinds, largest batch + 1)."""
    tables = [times_by_size(kind, serving) for kind in spreads]
    times = np.zeros((len(tables), max(len(table[0]) for table in tables)), TIME)
    for k, (latency_s, period_s) in enumerate(tables):
        times[k, : len(latency_s)]["latency_s"] = latency_s
        times[k, : len(latency_s)]["period_s"] = period_s
    return times


def _new_servers(
    replicas: Sequence[Replica], spreads: dict[Replica, Array | None], serving: Serving, num: int
) -> Records:
    kinds = list(spreads)
    servers = np.zeros(len(replicas), SERVER)
    servers["kind"] = [kinds.index(replica) for replica in replicas]
    servers["max_batch"] = [replica.max_batch(serving) for replica in replicas]
    known = np.array([spread is not None for spread in spreads.values()])
    servers["spread_from"] = np.where(known, (np.cumsum(known) - 1) * num, -1)[servers["kind"]]
    return servers
