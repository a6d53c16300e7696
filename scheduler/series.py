"""Latency of a graph in series: a module at a time, between operators that every path goes through.

Where all that comes after an operator waits for it, a schedule falls apart: the least time from
the end of one such operator on device p to the end of the next on device q adds up along the
graph. The shortest path over (operator, device) is then the least makespan, if every length is
exact, and a lower bound on it while some are bounds. Lengths start as longest paths; CP-SAT makes
those exact that lie on the shortest path (as in Dellin, Srinivasa, "A unifying formalism for
shortest path problems with expensive edge evaluations via lazy best-first search", ICAPS 2016).
Memory is left out, so the bound holds with it; a plan that breaks it is not used.
"""

import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from scheduler.arrays import Floats, Ints, csr
from scheduler.heft import heft_schedule
from scheduler.latency_search import improve_schedule
from scheduler.latency_timeline import makespan_of
from scheduler.longest_paths import heads
from scheduler.tasks import Tasks

LARGEST_MODULE = 60
"""Tasks of a module above which CP-SAT is not tried."""
WARM_START_S = 0.02


@dataclass
class _Module:
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


def _modules(tasks: Tasks) -> list[_Module]:
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
        module = _Module(ops, entry, leave, np.zeros(shape), np.zeros(shape, dtype=bool))
        for p in range(shape[0]):
            ends = heads(_between(tasks, module, p, -1))
            module.least_s[p] = ends[-1] if leave else ends.min(axis=1).max()
        module.is_exact[:] = len(ops) == 2 and entry and leave and len(tasks.ends_s) == 0
        modules.append(module)
    return modules


def _between(tasks: Tasks, module: _Module, p: int, q: int) -> Tasks:
    """A module with its entry done on p, and its exit to run on q (-1: on any device)."""
    inner = part(tasks, module.tasks)
    if module.has_entry:
        inner.w[0] = np.where(np.arange(inner.w.shape[1]) == p, 0.0, np.inf)
    if module.has_exit and q >= 0:
        inner.w[-1, np.arange(inner.w.shape[1]) != q] = np.inf
    return inner


def _shortest(modules: list[_Module], first_s: Floats) -> tuple[float, list[int]]:
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


def series_schedule(tasks: Tasks, deadline_s: float) -> tuple[Ints, Ints, float]:
    """Device of each task, their order, and a lower bound (s) on the makespan.

    Ends when the bound is the makespan without limits of memory, or at the deadline.
    """
    from scheduler.latency_exact import exact_schedule

    modules = _modules(tasks)
    starts_with_cut = not modules or modules[0].has_entry
    first_s = tasks.w[0] if starts_with_cut else np.zeros(1)
    while True:
        bound, path = _shortest(modules, first_s)
        ends = list(zip(modules, path[:-1], path[1:], strict=True))
        open_ = [
            (m, p, q) for m, p, q in ends if not m.is_exact[p, q] and len(m.tasks) <= LARGEST_MODULE
        ]
        if not open_ or time.perf_counter() > deadline_s or not np.isfinite(bound):
            break
        for module, p, q in open_:
            left_s = deadline_s - time.perf_counter()
            if left_s <= 0:
                break
            inner = _between(tasks, module, p, q)
            device, order, value = _warm(inner)
            if value <= module.least_s[p, q] * (1 + 1e-9):
                start, least = np.argsort(order).astype(float), value
            elif value < np.inf:
                device, start, least = exact_schedule(inner, device, value, left_s)
            else:
                start, least = np.argsort(order).astype(float), 0.0
            module.found[p, q] = device, start
            module.least_s[p, q] = max(module.least_s[p, q], least)
            module.is_exact[p, q] = True
    return *_assembled(tasks, modules, path), bound


def _warm(inner: Tasks) -> tuple[Ints, Ints, float]:
    device, start = heft_schedule(inner)
    order = np.lexsort((np.arange(len(start)), start))
    device, order = improve_schedule(inner, device, order, time.perf_counter() + WARM_START_S)
    return device, order, makespan_of(inner, device, order)


def _assembled(tasks: Tasks, modules: list[_Module], path: list[int]) -> tuple[Ints, Ints]:
    """The modules' schedules one after the other; by HEFT what was not solved."""
    device, start = heft_schedule(tasks)
    if not modules or modules[0].has_entry:
        device[0] = path[0]
    order = [0] if not modules or modules[0].has_entry else []
    for module, p, q in zip(modules, path[:-1], path[1:], strict=True):
        mine = module.tasks
        if (p, q) in module.found:
            device[mine], start[mine] = module.found[p, q]
        if module.has_entry:
            device[mine[0]] = p
            mine = mine[1:]
        if module.has_exit:
            device[mine[-1]] = q
        order += mine[np.lexsort((mine, start[mine]))].tolist()
    return device, np.array(order, dtype=np.int64)
