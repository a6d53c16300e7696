"""The best split of an order into stages, each on one device or replicated on several of a kind.

A stage on n devices takes 1 / n of its time per micro-batch; every replica holds all its weights.

Source: the dynamic programme of PipeDream (Narayanan et al., SOSP 2019, section 3.1,
doi:10.1145/3341301.3359646), for unequal devices: the state holds how many devices of each kind
are used, and the kind and the number of the last stage. Without its all-reduce of gradients:
training steps, which need the one before, are planned without replicas.
"""

from dataclasses import dataclass
from itertools import product
from math import lcm

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.contract import contract
from scheduler.cuts import Cuts, cuts_of
from scheduler.problem import Placement, Problem

MOST_STEPS = 3e8
"""Pairs of cuts times transitions; larger graphs get fewer candidate cuts."""
FEWEST_CUTS = 30
"""Candidate cuts below which a split says little."""

Team = tuple[int, int]
"""Kind and number of the devices of a stage."""
State = tuple[tuple[int, ...], Team]
"""Devices used of each kind, and the last stage's team."""


@dataclass(frozen=True)
class Teams:
    """A split with replicas: (num_ops,) first device of each operator, and its further devices."""

    device: Ints
    replicas: dict[int, tuple[int, ...]]


def replicated(problem: Problem) -> tuple[Placement, dict[str, tuple[str, ...]]]:
    """Place with replicas; returns the placement on first devices, and their replicas.

    Numbers of replicas divide the micro-batches of a batch, so that each batch is shared evenly.

    Raises:
        InfeasibleError: no split fits, or the graph's runs wait for each other.
    """
    if problem.graph.is_sequential:
        raise InfeasibleError(f"runs of a {problem.graph.mode} graph wait for each other")
    arrays, m = problem.arrays, problem.num_micro_batches
    sizes = [n for n in range(1, arrays.num_devices + 1) if m == 1 or m % n == 0]
    teams = best_teams(contract(arrays, arrays.unit), sizes)
    names = problem.costs.devices
    placement = {
        op.name: names[d]
        for op, d in zip(problem.graph.ops, teams.device[arrays.unit], strict=True)
    }
    replicas = {names[d]: tuple(names[e] for e in more) for d, more in teams.replicas.items()}
    return placement, replicas


def best_teams(arrays: Arrays, sizes: list[int]) -> Teams:
    """The split of the given order with the least load; `sizes` are the numbers of devices allowed.

    Optimal under the conditions of `contiguous.split_order`, where links have media of their own.

    Raises:
        InfeasibleError: no split fits the devices' memory.
    """
    groups = kinds(arrays)
    choices = [(g, n) for g, group in enumerate(groups) for n in sizes if n <= len(group)]
    states = list(product(*(range(len(group) + 1) for group in groups)))
    transitions = len(states) * len(choices) ** 2
    most = int((MOST_STEPS / transitions) ** 0.5)
    if most < min(FEWEST_CUTS, arrays.num_ops + 1):
        raise InfeasibleError("too many devices to try all numbers of replicas")
    cuts = cuts_of(arrays, np.arange(arrays.num_ops), groups, most)
    c = len(cuts.positions)
    empty: State = ((0,) * len(groups), (-1, 0))
    value: dict[State, Floats] = {empty: np.where(np.arange(c) == 0, 0.0, np.inf)}
    by_used: dict[tuple[int, ...], list[State]] = {empty[0]: [empty]}
    trail: dict[State, tuple[Ints, Ints, list[State]]] = {}
    for used in sorted(states, key=sum):
        for last in choices:
            before = tuple(u - last[1] * (g == last[0]) for g, u in enumerate(used))
            known = by_used.get(before, [])
            if min(before) >= 0 and known:
                state = (used, last)
                value[state], arg, origin = _extend(cuts, value, known, last)
                trail[state] = (arg, origin, known)
        by_used.setdefault(used, []).extend(s for s in value if s[0] == used and s != empty)
    best = min((s for s in value if s != empty), key=lambda s: (value[s][-1], sum(s[0])))
    if not np.isfinite(value[best][-1]):
        raise InfeasibleError("no split with replicas fits the devices' memory and pins")
    device, replicas = np.zeros(arrays.num_ops, dtype=np.int64), dict[int, tuple[int, ...]]()
    state, j = best, c - 1
    while state != empty:
        used, (g, n) = state
        arg, origin, known = trail[state]
        team = groups[g][used[g] - n : used[g]]
        i, state = int(arg[j]), known[int(origin[j])]
        device[cuts.positions[i] : cuts.positions[j]] = team[0]
        if i < j and n > 1:
            replicas[team[0]] = tuple(team[1:])
        j = i
    return Teams(device, replicas)


def _extend(
    cuts: Cuts, value: dict[State, Floats], known: list[State], last: Team
) -> tuple[Floats, Ints, Ints]:
    """value[j] = min over i and the state before of max(its value[i], link, load from i to j).

    Tensors between teams of n and m take turns on lcm(n, m) links. Returns the values, and the i
    and the place in `known` that give them.
    """
    c = len(cuts.positions)
    best, at = np.full(c, np.inf), np.arange(c)
    arg, origin = np.zeros(c, dtype=np.int64), np.full(c, -1)
    kind, size = last
    for place, state in enumerate(known):
        arrival = value[state]
        before, n = state[1]
        if n:
            arrival = np.maximum(arrival, cuts.carried[before, kind] / lcm(n, size))
        total = np.maximum(arrival[:, None], cuts.load[kind] / size)
        i = total.argmin(axis=0)
        better = total[i, at] < best
        best[better], arg[better], origin[better] = total[i, at][better], i[better], place
    return best, arg, origin
