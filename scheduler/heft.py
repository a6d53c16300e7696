"""HEFT: heterogeneous earliest finish time.

Source: Topcuoglu, Hariri, Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13(3), 2002, doi:10.1109/71.993206.
"""

from bisect import insort
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.problem import Placement, Problem

Edges = Mapping[int, Sequence[int]]
TransferTime = Callable[[int, int, int, int], float]
"""Seconds from (task i, task j, device p, device q)."""


def upward_ranks(
    w: NDArray[np.float64], succ: Edges, mean_c: Callable[[int, int], float]
) -> NDArray[np.float64]:
    """rank_u(i) = mean w(i) + max over successors j of (mean c(i, j) + rank_u(j)), equation 8.

    Tasks are numbered in topological order; `w` is (num_tasks, num_devices) in seconds.
    """
    mean_w = np.array([row[np.isfinite(row)].mean() for row in w])
    rank = np.zeros(len(w))
    for i in reversed(range(len(w))):
        rank[i] = mean_w[i] + max((mean_c(i, j) + rank[j] for j in succ.get(i, ())), default=0.0)
    return rank


def by_rank(rank: NDArray[np.float64]) -> list[int]:
    """Tasks by falling rank; ranks equal to 12 digits keep the tasks' order."""
    return sorted(range(len(rank)), key=lambda i: -float(f"{rank[i]:.12g}"))


def earliest_finish(
    w: NDArray[np.float64],
    pred: Edges,
    order: Sequence[int],
    c: TransferTime,
    allowed: Callable[[int, int], bool] = lambda i, p: True,
    chosen: Callable[[int, int], None] = lambda i, p: None,
) -> tuple[list[int], NDArray[np.float64]]:
    """Give each task, in order, the device that finishes it first, gaps included (section 4.2).

    Returns the device of each task (-1 where none is allowed) and finish times.
    """
    num_tasks, num_devices = w.shape
    busy: list[list[tuple[float, float]]] = [[] for _ in range(num_devices)]
    device = [-1] * num_tasks
    finish = np.zeros(num_tasks)
    for i in order:
        best = (np.inf, np.inf, -1)
        for p in range(num_devices):
            if not np.isfinite(w[i, p]) or not allowed(i, p):
                continue
            ready = max((finish[j] + c(j, i, device[j], p) for j in pred.get(i, ())), default=0.0)
            start = _first_gap(busy[p], ready, w[i, p])
            best = min(best, (start + w[i, p], start, p))
        finish[i], start, device[i] = best
        if device[i] < 0:
            return device, finish
        insort(busy[device[i]], (start, finish[i]))
        chosen(i, device[i])
    return device, finish


def _first_gap(busy: list[tuple[float, float]], ready: float, duration: float) -> float:
    start = ready
    for begin, end in busy:
        if start + duration <= begin:
            return start
        start = max(start, end)
    return start


def heft(problem: Problem) -> Placement:
    """Place by HEFT; a device whose memory is full of parameters is passed over.

    O(edges x devices + ops^2). Operators that fit nowhere go to the device with most memory, so
    that the memory check words the refusal.
    """
    graph = problem.graph
    index = {op.name: i for i, op in enumerate(graph.ops)}
    devices = problem.costs.devices
    edge_bytes: dict[tuple[int, int], float] = {}
    for i, op in enumerate(graph.ops):
        for tensor in op.inputs:
            if tensor in graph.producer:
                key = (index[graph.producer[tensor]], i)
                edge_bytes[key] = edge_bytes.get(key, 0.0) + graph.tensors[tensor].num_bytes
    succ: dict[int, list[int]] = {}
    pred: dict[int, list[int]] = {}
    for i, j in edge_bytes:
        succ.setdefault(i, []).append(j)
        pred.setdefault(j, []).append(i)
    links = list(problem.links.values())
    mean_latency = float(np.mean([link.latency_s for link in links])) if links else 0.0
    mean_per_byte = float(np.mean([1 / link.bytes_per_s for link in links])) if links else 0.0
    rank = upward_ranks(
        problem.seconds, succ, lambda i, j: mean_latency + mean_per_byte * edge_bytes[i, j]
    )
    free_bytes = [problem.memory_limit_bytes(device) for device in devices]
    held: list[set[str]] = [set() for _ in devices]

    def need(i: int, p: int) -> int:
        return sum(size for name, size in graph.ops[i].weights.items() if name not in held[p])

    def chosen(i: int, p: int) -> None:
        free_bytes[p] -= need(i, p)
        held[p].update(graph.ops[i].weights)

    device, _ = earliest_finish(
        problem.seconds,
        pred,
        by_rank(rank),
        lambda i, j, p, q: problem.transfer_s(edge_bytes[i, j], devices[p], devices[q]),
        lambda i, p: need(i, p) <= free_bytes[p],
        chosen,
    )
    roomiest = int(np.argmax(free_bytes))
    return {
        op.name: devices[device[i] if device[i] >= 0 else roomiest]
        for i, op in enumerate(graph.ops)
    }
