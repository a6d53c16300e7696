"""Modules of a graph in series, between tasks that every path goes through, and their least times.

The least time from the end of one such task on device p to the end of the next on device q adds up
along the graph. Lengths are longest paths, transfers included, and what devices must run: a task
whose longest path is above T wherever else it runs is on this device, which is busy with all such
tasks within T.

Source: destructive lower bounds, Klein and Scholl, "Computing lower bounds by destructive
improvement", European Journal of Operational Research 112(2), 1999,
doi:10.1016/S0377-2217(97)00442-6.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numba
import numpy as np

from scheduler.arrays import Floats, Ints, csr
from scheduler.bounds.longest_paths import heads, tails
from scheduler.list_scheduling.tasks import Tasks


@dataclass
class Module:
    """Tasks from one cut to the next, both included, with what is known for each pair of devices.

    `least_s` (devices of the first cut, devices of the last) and whether it is exact; one row or
    column where the graph begins or ends without a cut.
    """

    tasks: Ints
    has_entry: bool
    has_exit: bool
    least_s: Floats
    is_exact: np.ndarray
    found: dict[tuple[int, int], tuple[Ints, Floats]] = field(default_factory=dict)


def cuts(tasks: Tasks) -> list[int]:
    """Tasks that every path goes through, in order. O(n + edges)."""
    n = len(tasks.w)
    sources = np.flatnonzero(np.diff(tasks.ins_start) == 0)
    reach = np.full(n, n)
    for t, i in enumerate(tasks.producer.tolist()):
        last = tasks.reader[tasks.start[t] : tasks.start[t + 1]].max()
        reach[i] = last if reach[i] == n else max(reach[i], last)
    farthest = np.concatenate([[0], np.maximum.accumulate(reach)[:-1]]) if n else reach
    return [v for v in range(n) if farthest[v] <= v and sources[-1] <= v]


def part(tasks: Tasks, ops: Ints) -> Tasks:
    """The tasks `ops` (rising) alone, without weights and limits of memory."""
    row = {int(i): k for k, i in enumerate(ops)}
    readers, kept = [], []
    for i in ops:
        for t in tasks.outs[tasks.outs_start[i] : tasks.outs_start[i + 1]].tolist():
            inside = [row[j] for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]] if j in row]
            if inside:
                readers.append(inside)
                kept.append(t)
    ins: list[list[int]] = [[] for _ in ops]
    outs: list[list[int]] = [[] for _ in ops]
    for k, t in enumerate(kept):
        outs[row[int(tasks.producer[t])]].append(k)
        for j in readers[k]:
            ins[j].append(k)
    unit = np.unique(tasks.unit[ops], return_inverse=True)[1].astype(np.int64)
    u, d = int(unit.max()) + 1, tasks.w.shape[1]
    start, reader = csr(readers)
    members = [np.flatnonzero(unit == k).tolist() for k in range(u)]
    return Tasks(
        tasks.w[ops].copy(), *csr(ins), *csr(outs),
        np.array([row[int(tasks.producer[t])] for t in kept], dtype=np.int64), start, reader,
        tasks.num_bytes[kept], tasks.latency_s, tasks.s_per_byte,
        tasks.table_s[kept] if len(tasks.table_s) else tasks.table_s,
        tasks.ends_s[kept] if len(tasks.ends_s) else tasks.ends_s,
        tasks.medium, unit, *csr(members), *csr([[] for _ in range(u)]),
        np.zeros(0), np.zeros(u), np.full(d, np.inf),
    )  # fmt: skip


def modules_of(tasks: Tasks) -> list[Module]:
    """The modules between the cuts of a graph, with their least times so far."""
    n, d = tasks.w.shape
    at = cuts(tasks)
    first = at[:1] if at and at[0] == 0 else [-1]
    edges = [*first, *(v for v in at if v > 0)]
    edges += [n] if edges[-1] < n - 1 else []
    modules = []
    for a, b in pairwise(edges):
        entry, leave = a >= 0, b < n
        ops = np.arange(max(a, 0), min(b, n - 1) + 1)
        shape = (d if entry else 1, d if leave else 1)
        module = Module(ops, entry, leave, np.zeros(shape), np.zeros(shape, dtype=bool))
        _bound(tasks, module)
        module.is_exact[:] = len(ops) == 2 and entry and leave and len(tasks.ends_s) == 0
        modules.append(module)
    return modules


def _bound(tasks: Tasks, module: Module) -> None:
    """Fill `least_s`: longest paths, and loads of devices that must run what fits nowhere else."""
    inner, shape = part(tasks, module.tasks), module.least_s.shape
    w, devices = inner.w.copy(), np.arange(inner.w.shape[1])
    tail = [tails(inner)] * shape[1]
    if module.has_exit:
        for q in range(shape[1]):
            inner.w[-1] = np.where(devices == q, w[-1], np.inf)
            tail[q] = tails(inner)
            tail[q][-1] = np.where(devices == q, 0.0, np.inf)
        inner.w[-1] = w[-1]
    for p in range(shape[0]):
        if module.has_entry:
            inner.w[0] = np.where(devices == p, 0.0, np.inf)
        head = heads(inner)
        for q in range(shape[1]):
            module.least_s[p, q] = forced_load(head + tail[q], inner.w)


@numba.njit(cache=True)
def forced_load(through: Floats, w: Floats) -> float:
    """Seconds T within which each device can run the tasks that must be on it.

    `through` (n, d): seconds of the longest path through a task on a device. Where it is above T
    on all other devices the task must be on this one; what must be there takes T at most.
    """
    n, d = through.shape
    least, load = 0.0, 0.0
    elsewhere = np.empty(n)
    for i in range(n):
        least = max(least, through[i].min())
    for p in range(d):
        for i in range(n):
            elsewhere[i] = np.inf
            for q in range(d):
                if q != p:
                    elsewhere[i] = min(elsewhere[i], through[i, q])
        order = np.argsort(-elsewhere)
        load, enough = 0.0, np.inf
        for k in range(n + 1):
            without = elsewhere[order[k]] if k < n else 0.0
            enough = min(enough, max(load, without))
            if k < n:
                load += w[order[k], p]
        least = max(least, enough)
    return least


def shortest_chain(modules: list[Module], first_s: Floats) -> tuple[float, list[int]]:
    """The least sum of lengths from the first module to the last, and the device at each end."""
    value, came = first_s, []
    for module in modules:
        through = value[:, None] + module.least_s
        came.append(through.argmin(axis=0))
        value = through.min(axis=0)
    path = [int(value.argmin())]
    for best in reversed(came):
        path.append(int(best[path[-1]]))
    return float(value.min()), path[::-1]


def series_bound(tasks: Tasks) -> float:
    """Lower bound (s) on the makespan by longest paths and forced loads of modules in series."""
    modules = modules_of(tasks)
    starts_with_cut = not modules or modules[0].has_entry
    return shortest_chain(modules, tasks.w[0] if starts_with_cut else np.zeros(1))[0]
