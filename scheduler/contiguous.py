"""The best contiguous split of the topological order into pipeline stages.

Source: the interval dynamic programme of PipeDream (Narayanan et al., SOSP 2019, section 3.1,
doi:10.1145/3341301.3359646), without replicated stages, for unequal devices and links: the state
holds how many devices of each kind are used, and which kind came last.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hardware.errors import InfeasibleError
from scheduler.problem import Placement, Problem

MAX_CUTS = 700

State = tuple[tuple[int, ...], int]
"""Devices used of each kind, and the kind of the last stage (-1 before the first)."""


@dataclass(frozen=True)
class _Cuts:
    """Candidate cut positions with prefix sums up to them.

    Attributes:
        positions: (num_cuts,) operator indices; a cut at i separates operators < i from >= i.
        seconds: (num_cuts, num_devices) prefix sums of operator times.
        forbidden: (num_cuts, num_devices) prefix counts of operators that the device cannot run.
        param_bytes: (num_cuts,) prefix sums.
        crossing_bytes, num_crossing: (num_cuts,) bytes and number of the tensors that cross.
    """

    positions: NDArray[np.int64]
    seconds: NDArray[np.float64]
    forbidden: NDArray[np.int64]
    param_bytes: NDArray[np.float64]
    crossing_bytes: NDArray[np.float64]
    num_crossing: NDArray[np.float64]


def contiguous(problem: Problem) -> Placement:
    """Split the operators, in order, over some of the devices so that the largest load is least.

    A tensor that crosses several cuts is charged at each of them. Optimal over the candidate
    cuts (all of them up to 700 operators) when no tensor skips a stage. O(cuts^2 x states).

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    kinds = _device_kinds(problem)
    cuts = _candidate_cuts(problem)
    value: dict[State, NDArray[np.float64]] = {}
    parent: dict[State, tuple[NDArray[np.int64], list[State]]] = {}
    start = np.full(len(cuts.positions), np.inf)
    start[0] = 0.0
    empty: State = ((0,) * len(kinds), -1)
    value[empty] = start
    for used in sorted(product(*(range(len(kind) + 1) for kind in kinds)), key=sum):
        for last in range(len(kinds)):
            if used[last]:
                before = tuple(n - (g == last) for g, n in enumerate(used))
                _extend(problem, kinds, cuts, value, parent, (used, last), before)
    best = min((s for s in value if s != empty), key=lambda s: (value[s][-1], sum(s[0])))
    if not np.isfinite(value[best][-1]):
        raise InfeasibleError("no contiguous split fits the devices' memory and pins")
    return _trace(problem, kinds, cuts, parent, best)


def _extend(
    problem: Problem,
    kinds: list[list[str]],
    cuts: _Cuts,
    value: dict[State, NDArray[np.float64]],
    parent: dict[State, tuple[NDArray[np.int64], list[State]]],
    state: State,
    before: tuple[int, ...],
) -> None:
    """value[state][j] = min over i, e of max(value[before, e][i], link, load of ops i to j)."""
    last = state[1]
    device = kinds[last][0]
    column = problem.device_index[device]
    prefix, forbidden = cuts.seconds[:, column], cuts.forbidden[:, column]
    load = prefix[None, :] - prefix[:, None]
    load[forbidden[None, :] > forbidden[:, None]] = np.inf
    stage_bytes = cuts.param_bytes[None, :] - cuts.param_bytes[:, None]
    load[(stage_bytes < 0) | (stage_bytes > problem.memory_limit_bytes(device))] = np.inf
    load[np.tril_indices(len(prefix), -1)] = np.inf
    best = np.full(len(prefix), np.inf)
    arg = np.zeros(len(prefix), dtype=np.int64)
    origin: list[State] = [(before, -1)] * len(prefix)
    for e in range(-1, len(kinds)):
        if (before, e) not in value:
            continue
        arrival = value[before, e].copy()
        if e >= 0:
            src = kinds[e][0]
            dst = next((d for d in reversed(kinds[last]) if d != src), device)
            link = problem.links.get((src, dst))
            if link is None:
                continue
            carried = cuts.num_crossing * link.latency_s + cuts.crossing_bytes / link.bytes_per_s
            arrival = np.maximum(arrival, carried)
        total = np.maximum(arrival[:, None], load)
        i = total.argmin(axis=0)
        candidate = total[i, np.arange(len(prefix))]
        better = candidate < best
        best[better], arg[better] = candidate[better], i[better]
        for j in np.flatnonzero(better):
            origin[j] = (before, e)
    value[state] = best
    parent[state] = (arg, origin)


def _trace(
    problem: Problem,
    kinds: list[list[str]],
    cuts: _Cuts,
    parent: dict[State, tuple[NDArray[np.int64], list[State]]],
    state: State,
) -> Placement:
    names = [op.name for op in problem.graph.ops]
    placement: dict[str, str] = {}
    j = len(cuts.positions) - 1
    while state in parent:
        arg, origin = parent[state]
        i = int(arg[j])
        device = kinds[state[1]][state[0][state[1]] - 1]
        for name in names[cuts.positions[i] : cuts.positions[j]]:
            placement[name] = device
        state, j = origin[j], i
    return {name: placement[name] for name in names}


def _device_kinds(problem: Problem) -> list[list[str]]:
    """Devices in groups that are interchangeable: same times, same memory."""
    groups: dict[tuple[bytes, int], list[str]] = {}
    for device, profile in problem.cluster.devices.items():
        column = problem.seconds[:, problem.device_index[device]]
        groups.setdefault((column.tobytes(), profile.memory_bytes), []).append(device)
    return list(groups.values())


def _candidate_cuts(problem: Problem) -> _Cuts:
    graph = problem.graph
    num_ops = len(graph.ops)
    index = {op.name: i for i, op in enumerate(graph.ops)}
    opened, count = np.zeros(num_ops + 1), np.zeros(num_ops + 1)
    for tensor, producer in graph.producer.items():
        last = max((index[c] for c in graph.consumers.get(tensor, ())), default=index[producer])
        first = index[producer] + 1
        for array, amount in ((opened, graph.tensors[tensor].num_bytes), (count, 1)):
            array[first] += amount
            array[last + 1] -= amount
    crossing, num_crossing = opened.cumsum(), count.cumsum()
    positions = np.arange(num_ops + 1)
    if num_ops > MAX_CUTS:
        buckets = np.array_split(np.arange(1, num_ops), MAX_CUTS - 2)
        positions = np.array([0, *(b[crossing[b].argmin()] for b in buckets), num_ops])
    none = np.zeros(problem.seconds.shape[1])
    can_run = np.isfinite(problem.seconds)
    seconds = np.vstack([none, np.where(can_run, problem.seconds, 0.0).cumsum(axis=0)])
    forbidden = np.vstack([none, (~can_run).cumsum(axis=0)]).astype(np.int64)
    params = np.append(0.0, np.cumsum([op.param_bytes for op in graph.ops]))
    return _Cuts(
        positions,
        seconds[positions],
        forbidden[positions],
        params[positions],
        crossing[positions],
        num_crossing[positions],
    )
