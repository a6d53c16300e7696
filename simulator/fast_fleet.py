"""The fleet of `simulator.fleet`, compiled: the same decisions and arithmetic, servers stay up.

Queues are lists linked through the requests. O(requests x log servers), or requests x servers
where routing looks at all of them. Records, not arrays by field: passing an array costs.
"""

import numpy as np
from numba import njit

from simulator.fast_events import PENDING, SCHEDULED, schedule, take_next

ARRIVED, BATCHES, NUM_COUNTS = 2, 3, 4
"""Counted beside the events: requests that arrived, batches that started."""

ROUND_ROBIN, SHORTEST_QUEUE, SHARED_QUEUE, FASTEST = range(4)
ROUTING_CODES = {
    "round_robin": ROUND_ROBIN,
    "shortest_queue": SHORTEST_QUEUE,
    "shared_queue": SHARED_QUEUE,
    "fastest": FASTEST,
}

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("start_s", "f8"),
        ("answer_s", "f8"),
        ("behind", "i4"),
        ("rejected", "?"),
    ],
    align=True,
)
"""`behind`: the next in its queue."""

SERVER = np.dtype(
    [
        ("kind", "i4"), ("max_batch", "i4"), ("spread_from", "i8"),
        ("running", "i4"), ("timed", "?"), ("free_s", "f8"),
        ("head", "i4"), ("tail", "i4"), ("length", "i4"),
    ],
    align=True,
)  # fmt: skip
"""`spread_from`: where its kind's spread begins, -1 without; the last three: of queue s."""

BATCH = np.dtype(
    [("start_s", "f8"), ("busy_s", "f8"), ("server", "i4"), ("size", "i4")], align=True
)
TIME = np.dtype([("latency_s", "f8"), ("period_s", "f8")])


@njit(cache=True)
def run_fleet(
    stop, gaps_s, until_s, routing, limits, times, spread, servers, events, counts, log, batches
):
    """Serve until the end, or until `stop` requests arrived; returns whether it is the end.

    Event s: server s is free; num + s: its first request waited enough; 2 num: an arrival.
    """
    num = len(servers)
    arrival = 2 * num
    if counts[SCHEDULED] == 0 and len(gaps_s):
        schedule(events, counts, arrival, gaps_s[0])
    while counts[PENDING] and events[events[0].heap].time_s < until_s:
        if counts[ARRIVED] == stop:
            return False
        event = take_next(events, counts)
        now = events[event].time_s
        s = event % num
        if event == arrival:
            s = _arrive(counts[ARRIVED], now, routing, limits, times, servers, log)
            counts[ARRIVED] += 1
        elif event < num:
            servers[s].running = 0
        else:
            servers[s].timed = False
        if s >= 0:
            q = 0 if routing == SHARED_QUEUE else s
            size = _due(s, q, now, limits, servers, events, counts, log)
            if size:
                _start(s, q, size, now, times, spread, servers, log, batches[counts[BATCHES]])
                schedule(events, counts, s, servers[s].free_s)
                counts[BATCHES] += 1
        if event == arrival and counts[ARRIVED] < len(gaps_s):
            schedule(events, counts, arrival, now + gaps_s[counts[ARRIVED]])
    return True


@njit(cache=True)
def _arrive(number, now, routing, limits, times, servers, log):
    """Queue a request; returns its server, or -1 if it is turned away."""
    _, queue, timeout_s, predicted_s = limits
    if timeout_s < np.inf:
        for q in range(1 if routing == SHARED_QUEUE else len(servers)):
            _expire(q, now, timeout_s, servers, log)
    s = _route(number, now, routing, times, servers)
    q = 0 if routing == SHARED_QUEUE else s
    admitted = servers[q].length < queue
    if admitted and predicted_s < np.inf:
        admitted = _predicted(s, now, routing, times, servers) - now <= predicted_s
    if not admitted:
        log[number].rejected = True
        return -1
    if servers[q].length:
        log[servers[q].tail].behind = number
    else:
        servers[q].head = number
    servers[q].tail = number
    servers[q].length += 1
    return s


@njit(cache=True)
def _route(number, now, routing, times, servers):
    if routing == ROUND_ROBIN:
        return number % len(servers)
    best, least = 0, np.inf
    for s in range(len(servers)):
        if routing == SHORTEST_QUEUE:
            value = float(servers[s].length + servers[s].running)
        elif routing == SHARED_QUEUE:
            value = servers[s].free_s if servers[s].running else 0.0
        else:
            value = _predicted(s, now, routing, times, servers)
        if value < least:
            best, least = s, value
    return best


@njit(cache=True)
def _predicted(s, now, routing, times, servers):
    server, largest = servers[s], servers[s].max_batch
    if routing == SHARED_QUEUE:
        full, more = divmod(servers[0].length, largest)
        full //= len(servers)
    else:
        full, more = divmod(server.length, largest)
    start_s = max(now, server.free_s) + full * times[server.kind, largest].period_s
    return start_s + times[server.kind, more + 1].latency_s


@njit(cache=True)
def _expire(q, now, timeout_s, servers, log):
    while servers[q].length and log[servers[q].head].arrival_s + timeout_s <= now:
        servers[q].head = log[servers[q].head].behind
        servers[q].length -= 1


@njit(cache=True)
def _due(s, q, now, limits, servers, events, counts, log):
    """Requests that server s should start now; 0 if it should not, and comes back if it must."""
    if servers[s].running:
        return 0
    wait_s, _, timeout_s, _ = limits
    if timeout_s < np.inf:
        _expire(q, now, timeout_s, servers, log)
    size = min(servers[q].length, servers[s].max_batch)
    if not size:
        return 0
    due_s = log[servers[q].head].arrival_s + wait_s
    if size == servers[s].max_batch or due_s <= now:
        return size
    if not servers[s].timed:
        servers[s].timed = True
        schedule(events, counts, len(servers) + s, now + (due_s - now))
    return 0


@njit(cache=True)
def _start(s, q, size, now, times, spread, servers, log, batch):
    server, queue, factor = servers[s], servers[q], 1.0
    if server.spread_from >= 0:
        factor = spread[server.spread_from + queue.head]
    end_s = now + times[server.kind, size].latency_s * factor
    for _ in range(size):
        log[queue.head].start_s, log[queue.head].answer_s = now, end_s
        queue.head = log[queue.head].behind
    queue.length -= size
    batch.start_s, batch.busy_s = now, times[server.kind, size].period_s * factor
    batch.server, batch.size = s, size
    server.running, server.free_s = size, now + batch.busy_s
