"""The least makespan of small graphs by constraint programming, with a lower bound.

Source: optional intervals on unrelated machines with transfers as intervals on media; solver:
Perron, Didier, "CP-SAT", OR-Tools, https://developers.google.com/optimization.
"""

from collections.abc import Callable

import numpy as np
from ortools.sat.python import cp_model

from scheduler.arrays import Floats, Ints
from scheduler.bounds.longest_paths import heads, tails
from scheduler.list_scheduling.tasks import Tasks, move_s

UNITS = 1_000_000
"""Integer time of the warm start's makespan; seconds are rounded down, so the bound holds."""
LARGEST = 60


def exact_schedule(
    tasks: Tasks, device: Ints, makespan_s: float, time_limit_s: float
) -> tuple[Ints, Floats, float]:
    """Device and start of each task, and a lower bound (s) on the makespan; 2 workers.

    Starts from `device` with its `makespan_s`. The model is a relaxation: media may carry tensors
    in any order, weights have room everywhere (the plan's check refuses what does not fit), and
    ends of serialised transfers delay but do not occupy. Starts are in the solver's units.
    """
    n, d = tasks.w.shape
    model = cp_model.CpModel()
    per_s = UNITS / makespan_s

    def whole(seconds: float) -> int:
        return int(np.floor(seconds * per_s))

    on = [[model.new_bool_var("") for _ in range(d)] for _ in tasks.own_bytes]
    for row in on:
        model.add_exactly_one(row)
    start = [model.new_int_var(0, UNITS, "") for _ in range(n)]
    end = [model.new_int_var(0, UNITS, "") for _ in range(n)]
    last = model.new_int_var(0, UNITS, "")
    busy: dict[int, list[cp_model.IntervalVar]] = {}
    head, tail = heads(tasks), tails(tasks)
    for i in range(n):
        model.add(end[i] <= last)
        able = [p for p in range(d) if np.isfinite(head[i, p] + tail[i, p])]
        model.add(end[i] >= sum(whole(head[i, p]) * on[tasks.unit[i]][p] for p in able))
        model.add(last - end[i] >= sum(whole(tail[i, p]) * on[tasks.unit[i]][p] for p in able))
        for p in range(d):
            here = on[tasks.unit[i]][p]
            if not np.isfinite(tasks.w[i, p]):
                model.add(here == 0)
                continue
            span = model.new_optional_interval_var(start[i], whole(tasks.w[i, p]), end[i], here, "")
            busy.setdefault(p, []).append(span)
    for t, i in enumerate(tasks.producer.tolist()):
        readers = tasks.reader[tasks.start[t] : tasks.start[t + 1]].tolist()
        for j in readers:
            model.add(start[j] >= end[i])
        for p in range(d):
            for q in range(d):
                if p != q:
                    _carry(model, tasks, (t, p, q), on, (start, end), busy, whole)
    for spans in busy.values():
        model.add_no_overlap(spans)
    for p in range(d):
        own = [int(b) for b in tasks.own_bytes]
        model.add(
            sum(own[u] * on[u][p] for u in range(len(own))) <= int(min(tasks.limit_bytes[p], 2**60))
        )
    for u, i in enumerate(tasks.member[tasks.member_start[:-1]].tolist()):
        for p in range(d):
            model.add_hint(on[u][p], int(device[i] == p))
    model.minimize(last)
    solver = cp_model.CpSolver()
    solver.parameters.catch_sigint_signal = False  # it would take Ctrl-C from Python for good
    solver.parameters.num_workers = 2
    solver.parameters.max_time_in_seconds = time_limit_s
    status = solver.solve(model)
    bound_s = solver.best_objective_bound / per_s
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return device, np.arange(n, dtype=float), max(0.0, bound_s)
    found = [next(p for p in range(d) if solver.value(on[u][p])) for u in tasks.unit]
    return np.array(found), np.array([float(solver.value(s)) for s in start]), bound_s


def _carry(
    model: cp_model.CpModel,
    tasks: Tasks,
    key: tuple[int, int, int],
    on: list[list[cp_model.IntVar]],
    times: tuple[list[cp_model.IntVar], list[cp_model.IntVar]],
    busy: dict[int, list[cp_model.IntervalVar]],
    whole: Callable[[float], int],
) -> None:
    """A tensor's transfer from p to q: after its producer, before its readers on q."""
    t, p, q = key
    start, end = times
    i = tasks.producer[t]
    seconds = move_s(tasks, t, p, q)
    sent = model.new_bool_var("")
    for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]].tolist():
        model.add_bool_or([on[tasks.unit[i]][p].negated(), on[tasks.unit[j]][q].negated(), sent])
    if not np.isfinite(seconds) or tasks.medium[p, q] < 0:
        model.add(sent == 0)
        return
    begin, done = model.new_int_var(0, UNITS, ""), model.new_int_var(0, UNITS, "")
    span = model.new_optional_interval_var(begin, whole(seconds), done, sent, "")
    if not len(tasks.ends_s):
        busy.setdefault(int(tasks.medium[p, q]), []).append(span)
    model.add(begin >= end[i]).only_enforce_if(sent)
    for j in tasks.reader[tasks.start[t] : tasks.start[t + 1]].tolist():
        model.add(start[j] >= done).only_enforce_if([on[tasks.unit[i]][p], on[tasks.unit[j]][q]])
