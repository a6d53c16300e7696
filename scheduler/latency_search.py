"""Local search for latency: move operators between devices and in order, simulate, accept.

Simulated annealing (Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science
220, 1983, doi:10.1126/science.220.4598.671) over (device of each unit, order of the tasks). Six
moves in ten start at a task of the critical path. A simulation is given up as soon as what must
still follow a task shows that the change will be refused.
"""

import time

import numba
import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.cpop import cpop_schedule
from scheduler.heft import heft_schedule
from scheduler.m_etf import m_etf_schedule
from scheduler.peft import peft_schedule
from scheduler.problem import Placement, Problem
from scheduler.tasks import Tasks, hold, within_memory

MOVES_PER_TASK = 3000
MOST_MOVES = 1_000_000
HEATS = (0.1, 0.03, 0.01)
"""First temperature of each cooling, as a share of the makespan; each starts from the best."""
COOLING = 1 / 30
"""Last temperature of a cooling as a share of its first."""
LONGEST_CHAIN = 12
"""Tasks along a path that one move takes to another device."""
TASKS_PER_CALL = 1_500_000
"""Tasks simulated between two looks at the clock."""


@numba.njit(cache=True)
def tails(tasks: Tasks) -> Floats:
    """(n,) seconds that must follow a task: the longest path, each task on its fastest device."""
    n, d = tasks.w.shape
    tail = np.zeros(n)
    for j in range(n - 1, -1, -1):
        fastest = tasks.w[j, 0]
        for p in range(1, d):
            fastest = min(fastest, tasks.w[j, p])
        for k in range(tasks.ins_start[j], tasks.ins_start[j + 1]):
            i = tasks.producer[tasks.ins[k]]
            tail[i] = max(tail[i], tail[j] + fastest)
    return tail


@numba.njit(cache=True)
def simulate(
    tasks: Tasks, device: Ints, order: Ints, tail: Floats, most_s: float, start: Floats, cause: Ints
) -> float:
    """Makespan (s) when every device runs its tasks in order and media are first come first served.

    The semantics of `timeline.stage_timeline` on the stages of `plan.cut_runs`. Fills `start` and
    `cause`: the task that each one waited for, -1 where none. Infinite where a link is missing or
    as soon as the makespan must exceed `most_s`. O(tasks x devices + edges).
    """
    n, d = tasks.w.shape
    serialised = len(tasks.ends_s) > 0
    first = np.zeros(d + 1, dtype=np.int64)
    place = np.empty(n, dtype=np.int64)
    missing = np.empty(n, dtype=np.int64)
    for k in range(n):
        i = order[k]
        place[i] = k
        first[device[i] + 1] += 1
        missing[i] = tasks.ins_start[i + 1] - tasks.ins_start[i]
    for p in range(d):
        first[p + 1] += first[p]
    head = first[:d].copy()
    mine = np.empty(n, dtype=np.int64)
    for k in range(n):
        p = device[order[k]]
        mine[head[p]] = order[k]
        head[p] += 1
    head[:] = first[:d]
    ready = np.zeros(n)
    waited = np.full(n, -1)
    free = np.zeros(d)
    end = np.full(d, np.inf)
    fresh = np.ones(d, dtype=np.bool_)
    num_media = d
    for p in range(d):
        for q in range(d):
            num_media = max(num_media, tasks.medium[p, q] + 1)
    medium_free = np.zeros(num_media)
    to, urgency, what = np.empty(d, np.int64), np.empty(d, np.int64), np.empty(d, np.int64)
    makespan = 0.0
    for _ in range(n):
        now, at = np.inf, -1
        for p in range(d):
            if fresh[p]:
                end[p] = np.inf
                if head[p] < first[p + 1] and missing[mine[head[p]]] == 0:
                    i = mine[head[p]]
                    start[i] = max(free[p], ready[i])
                    cause[i] = waited[i]
                    if free[p] > ready[i] or (free[p] == ready[i] and waited[i] < 0):
                        cause[i] = mine[head[p] - 1] if head[p] > first[p] else -1
                    seconds = tasks.w[i, p]
                    if serialised:
                        for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
                            t = tasks.ins[k]
                            if device[tasks.producer[t]] != p:
                                received = False
                                for r in range(tasks.start[t], tasks.start[t + 1]):
                                    j = tasks.reader[r]
                                    if device[j] == p and place[j] < place[i]:
                                        received = True
                                if not received:
                                    seconds += tasks.ends_s[t, p]
                        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
                            t = tasks.outs[k]
                            for r in range(tasks.start[t], tasks.start[t + 1]):
                                if device[tasks.reader[r]] != p:
                                    seconds += tasks.ends_s[t, p]
                                    break
                    end[p] = start[i] + seconds
                fresh[p] = False
            if end[p] < now:
                now, at = end[p], p
        if at < 0:
            return np.inf
        i = mine[head[at]]
        if now + tail[i] > most_s:
            return np.inf
        makespan = max(makespan, now)
        head[at] += 1
        free[at] = now
        fresh[at] = True
        sent = 0
        for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
            t = tasks.outs[k]
            opened = sent
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                q = device[j]
                missing[j] -= 1
                if q == at or serialised:
                    if now > ready[j] or waited[j] < 0:
                        ready[j], waited[j] = now, i
                    if missing[j] == 0:
                        fresh[q] = True
                    continue
                if tasks.medium[at, q] < 0:
                    return np.inf
                slot = opened
                while slot < sent and to[slot] != q:
                    slot += 1
                if slot == len(to):
                    to, urgency = np.append(to, to), np.append(urgency, urgency)
                    what = np.append(what, what)
                if slot == sent:
                    to[slot], urgency[slot], what[slot] = q, place[j], t
                    sent += 1
                urgency[slot] = min(urgency[slot], place[j])
        for _k in range(sent):
            s = 0
            for k in range(1, sent):
                if urgency[k] < urgency[s]:
                    s = k
            urgency[s] = n + 1
            t, q = what[s], to[s]
            if len(tasks.table_s):
                seconds = tasks.table_s[t, at, q]
            else:
                seconds = tasks.latency_s[at, q] + tasks.num_bytes[t] * tasks.s_per_byte[at, q]
            m = tasks.medium[at, q]
            medium_free[m] = max(now, medium_free[m]) + seconds
            for r in range(tasks.start[t], tasks.start[t + 1]):
                j = tasks.reader[r]
                if device[j] == q:
                    if medium_free[m] > ready[j] or waited[j] < 0:
                        ready[j], waited[j] = medium_free[m], i
                    if missing[j] == 0:
                        fresh[q] = True
    return makespan


@numba.njit(cache=True)
def _bring(order: Ints, place: Ints, a: int, b: int) -> None:
    """Take the task at position a of the order to position b."""
    i = order[a]
    step = 1 if b > a else -1
    for k in range(a, b, step):
        order[k] = order[k + step]
        place[order[k]] = k
    order[b] = i
    place[i] = b


@numba.njit(cache=True)
def _anneal(
    tasks: Tasks, device: Ints, order: Ints, tail: Floats, num_moves: int,
    hottest_s: float, coldest_s: float, seed: int,
) -> float:  # fmt: skip
    """Cool from (device, order) and leave the best there; returns its makespan (s)."""
    np.random.seed(seed)
    n, d = tasks.w.shape
    start, cause = np.zeros(n), np.full(n, -1)
    now, place = order.copy(), np.empty(n, dtype=np.int64)
    at = device.copy()
    used, held = np.zeros(d), np.zeros((d, len(tasks.weight_bytes)), dtype=np.int32)
    for u in range(len(tasks.own_bytes)):
        hold(tasks, held, used, u, at[tasks.member[tasks.member_start[u]]], 1)
    for k in range(n):
        place[now[k]] = k
    current = simulate(tasks, at, now, tail, np.inf, start, cause)
    best = current
    path, length = np.empty(n, dtype=np.int64), 0
    stale = True
    units = np.empty(LONGEST_CHAIN + 1, dtype=np.int64)
    targets = np.empty(LONGEST_CHAIN + 1, dtype=np.int64)
    sources = np.empty(LONGEST_CHAIN + 1, dtype=np.int64)
    trial_start, trial_cause = start.copy(), cause.copy()
    for step in range(num_moves):
        if stale:
            length, last, ends = 0, 0, -1.0
            for i in range(n):
                if start[i] + tasks.w[i, at[i]] > ends:
                    ends, last = start[i] + tasks.w[i, at[i]], i
            while last >= 0 and length < n:
                path[length] = last
                length += 1
                last = cause[last]
            stale = False
        temperature = hottest_s * (coldest_s / hottest_s) ** (step / num_moves)
        i = path[np.random.randint(length)] if np.random.random() < 0.6 else np.random.randint(n)
        kind = np.random.random()
        num, a, b = 0, -1, -1
        if kind < 0.7 and d > 1:
            units[0], targets[0] = tasks.unit[i], np.random.randint(d)
            num = 1
            if kind > 0.6:
                j = np.random.randint(n)
                if tasks.unit[j] != tasks.unit[i]:
                    units[1], targets[0], targets[1] = tasks.unit[j], at[j], at[i]
                    num = 2
            elif kind > 0.25:
                j = i
                for _ in range(np.random.randint(LONGEST_CHAIN)):
                    if tasks.outs_start[j] == tasks.outs_start[j + 1]:
                        break
                    t = tasks.outs[np.random.randint(tasks.outs_start[j], tasks.outs_start[j + 1])]
                    j = tasks.reader[np.random.randint(tasks.start[t], tasks.start[t + 1])]
                    known = False
                    for k in range(num):
                        known = known or units[k] == tasks.unit[j]
                    if not known:
                        units[num], targets[num] = tasks.unit[j], targets[0]
                        num += 1
        if num == 0 or np.random.random() < 0.3:
            low, high = 0, n - 1
            for k in range(tasks.ins_start[i], tasks.ins_start[i + 1]):
                low = max(low, place[tasks.producer[tasks.ins[k]]] + 1)
            for k in range(tasks.outs_start[i], tasks.outs_start[i + 1]):
                t = tasks.outs[k]
                for r in range(tasks.start[t], tasks.start[t + 1]):
                    high = min(high, place[tasks.reader[r]] - 1)
            a = place[i]
            low, high = max(low, a - 200), min(high, a + 200)
            b = np.random.randint(low, high + 1)
        possible, changed = True, a != b
        for k in range(num):
            sources[k] = at[tasks.member[tasks.member_start[units[k]]]]
            changed = changed or sources[k] != targets[k]
            for m in range(tasks.member_start[units[k]], tasks.member_start[units[k] + 1]):
                possible = possible and np.isfinite(tasks.w[tasks.member[m], targets[k]])
        if not (possible and changed):
            continue
        for k in range(num):
            hold(tasks, held, used, units[k], sources[k], -1)
            hold(tasks, held, used, units[k], targets[k], 1)
            for m in range(tasks.member_start[units[k]], tasks.member_start[units[k] + 1]):
                at[tasks.member[m]] = targets[k]
        if a != b:
            _bring(now, place, a, b)
        value = np.inf
        for k in range(num):
            possible = possible and used[targets[k]] <= tasks.limit_bytes[targets[k]]
        if possible:
            most = current - temperature * np.log(1.0 - np.random.random())
            value = simulate(tasks, at, now, tail, most, trial_start, trial_cause)
            possible = value <= most
        if possible:
            current, stale = value, True
            start[:], cause[:] = trial_start, trial_cause
            if value < best:
                best = value
                device[:], order[:] = at, now
            continue
        if a != b:
            _bring(now, place, b, a)
        for k in range(num - 1, -1, -1):
            hold(tasks, held, used, units[k], targets[k], -1)
            hold(tasks, held, used, units[k], sources[k], 1)
            for m in range(tasks.member_start[units[k]], tasks.member_start[units[k] + 1]):
                at[tasks.member[m]] = sources[k]
    return best


def _makespan(tasks: Tasks, device: Ints, order: Ints) -> float:
    start, cause = np.zeros(len(order)), np.zeros(len(order), dtype=np.int64)
    return float(simulate(tasks, device, order, np.zeros(len(order)), np.inf, start, cause))


def _fits(tasks: Tasks, device: Ints) -> bool:
    used, held = (
        np.zeros(tasks.w.shape[1]),
        np.zeros((tasks.w.shape[1], len(tasks.weight_bytes)), dtype=np.int32),
    )
    for u, i in enumerate(tasks.member[tasks.member_start[:-1]].tolist()):
        hold(tasks, held, used, u, device[i], 1)
    runs = np.isfinite(tasks.w[np.arange(len(device)), device]).all()
    return bool(runs and (used <= tasks.limit_bytes).all())


def _starts(tasks: Tasks) -> list[tuple[Ints, Ints]]:
    """(device, order) of the list schedules, and of every device alone."""
    n, d = tasks.w.shape
    found = [
        (device, np.lexsort((np.arange(n), start)))
        for schedule in (heft_schedule, cpop_schedule, peft_schedule, m_etf_schedule)
        for device, start in [schedule(tasks)]
    ]
    return [*found, *((np.full(n, p), np.arange(n)) for p in range(d))]


def search_schedule(
    tasks: Tasks, deadline_s: float, bound_s: float = 0.0, seed: int = 0
) -> tuple[Ints, Floats]:
    """Device and start (s) of each task after annealing from the best list schedule.

    The same for the same seed as long as the deadline (of `time.perf_counter`) does not cut it
    short; ends early at the bound.
    """
    n = len(tasks.w)
    starts = [pair for pair in _starts(tasks) if _fits(tasks, pair[0])]
    if not starts:
        return heft_schedule(tasks)
    device, order = min(starts, key=lambda pair: _makespan(tasks, *pair))
    value = _makespan(tasks, device, order)
    tail = tails(tasks)
    moves = min(MOST_MOVES, MOVES_PER_TASK * n) // len(HEATS)
    chunk = min(moves, max(200, TASKS_PER_CALL // n))
    per_round = moves // chunk
    for call in range(len(HEATS) * per_round):
        if time.perf_counter() > deadline_s or value <= bound_s * (1 + 1e-9) or value == np.inf:
            break
        hot, cold = (
            value * HEATS[call // per_round] * COOLING ** ((call % per_round + k) / per_round)
            for k in (0, 1)
        )
        value = _anneal(tasks, device, order, tail, chunk, hot, cold, seed + call)
    start, cause = np.zeros(n), np.zeros(n, dtype=np.int64)
    simulate(tasks, device, order, tail, np.inf, start, cause)
    return device, np.argsort(order).astype(float)


def latency_search(problem: Problem, deadline_s: float, bound_s: float = 0.0) -> Placement:
    """Place by annealing from the best list schedule until the deadline (`time.perf_counter`)."""
    return within_memory(problem, lambda tasks: search_schedule(tasks, deadline_s, bound_s))
