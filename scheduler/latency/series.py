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

import numpy as np

from scheduler.arrays import Ints
from scheduler.bounds.modules import Module, modules_of, part, shortest_chain
from scheduler.latency.makespan import makespan_of
from scheduler.latency.search import improve_schedule
from scheduler.list_scheduling.heft import heft_schedule
from scheduler.list_scheduling.tasks import Tasks

LARGEST_MODULE = 60
"""Tasks of a module above which CP-SAT is not tried."""
WARM_START_S = 0.02


def _between(tasks: Tasks, module: Module, p: int, q: int) -> Tasks:
    """A module with its entry done on p, and its exit to run on q (-1: on any device)."""
    inner = part(tasks, module.tasks)
    if module.has_entry:
        inner.w[0] = np.where(np.arange(inner.w.shape[1]) == p, 0.0, np.inf)
    if module.has_exit and q >= 0:
        inner.w[-1, np.arange(inner.w.shape[1]) != q] = np.inf
    return inner


def series_schedule(tasks: Tasks, deadline_s: float) -> tuple[Ints, Ints, float]:
    """Device of each task, their order, and a lower bound (s) on the makespan.

    Ends when the bound is the makespan without limits of memory, or at the deadline.
    """
    from scheduler.latency.exact import exact_schedule

    modules = modules_of(tasks)
    starts_with_cut = not modules or modules[0].has_entry
    first_s = tasks.w[0] if starts_with_cut else np.zeros(1)
    while True:
        bound, path = shortest_chain(modules, first_s)
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


def _assembled(tasks: Tasks, modules: list[Module], path: list[int]) -> tuple[Ints, Ints]:
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
