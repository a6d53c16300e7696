"""Splits of an order into stages on teams of devices.

A stage takes on a team the longest of each device's share of the turns. In training, a team sums
its gradients once a batch of m micro-batches, and hides behind computing what a backward pass is
long (see `all_reduce.py`): a stage takes per micro-batch

    longest share of the computing + max(0, ring - backward) / m + optimizer / m

Source: the dynamic programme of PipeDream (Narayanan et al., SOSP 2019, section 3.1,
doi:10.1145/3341301.3359646), for unequal devices: the state holds how many devices of each kind
are used, and the last stage's team. PipeDream's devices do not wait for the ring but with the next
batch's backward pass; here a batch ends with one update.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import lcm, prod

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.data_parallel.all_reduce import Ring, rings
from scheduler.data_parallel.teams import Team, teams_of
from scheduler.problem import Problem
from scheduler.throughput.cuts import MAX_CUTS, Cuts, between, cuts_of

MOST_STEPS = 1e8
"""Pairs of cuts times transitions; more devices get fewer candidate cuts."""
FEWEST_CUTS = 30
"""Candidate cuts below which a split says little."""
MOST_SPLITS = 12
"""Splits of an order beside the best: those that promise most."""

NOBODY = Team((), ())
State = tuple[tuple[int, ...], Team]
"""Devices used of each kind, and the last stage's team."""


@dataclass(frozen=True)
class Updates:
    """What of a training step is done once a batch.

    Attributes:
        seconds: (num_units, num_devices) of optimizers.
        backward_s: (num_units, num_devices) of backward passes.
        num_bytes: (num_units,) of gradients.
        problem: whose links sum them.
    """

    seconds: Floats
    backward_s: Floats
    num_bytes: Floats
    problem: Problem


@dataclass(frozen=True)
class Costs:
    """What stages between two of c cuts take on each team.

    Attributes:
        groups: devices of each kind.
        m: micro-batches of a batch.
        load: (c, c) seconds per micro-batch, by team.
        once: (c, c) seconds per batch, by team.
        carried: (c,) seconds per micro-batch of the busiest link between two teams.
        trains: whether a batch fills the devices and drains from them.
    """

    cuts: Cuts
    groups: list[list[int]]
    m: int
    load: dict[Team, Floats]
    once: dict[Team, Floats]
    carried: dict[tuple[Team, Team], Floats]
    trains: bool


Trail = dict[State, tuple[Ints, Ints, list[State]]]
"""By state: the cut before the last stage, and by that the state before, among those listed."""


def team_splits(
    arrays: Arrays, updates: Updates | None, m: int
) -> Iterator[tuple[Ints, dict[int, tuple[int, ...]]]]:
    """The best splits of the given order, over each number of devices of each kind.

    Yields the best, and others that have replicas: (num_ops,) the first device of each operator,
    and those of its further turns. The best is optimal under the conditions of
    `contiguous.split_order`, where links have media of their own, among splits over the teams of
    `teams_of`. O(cuts^2 x states x teams).

    Raises:
        InfeasibleError: too many devices.
    """
    costs = _costs(arrays, updates, m)
    splits = [(_promise(costs, split), split) for split in _all_splits(costs)]
    splits.sort(key=lambda one: (one[0], sum(len(part.team.turns) - 1 for part in one[1])))
    several = [split for _, split in splits[1:] if any(len(part.team.turns) > 1 for part in split)]
    for split in [split for _, split in splits[:1]] + several[:MOST_SPLITS]:
        yield _devices(costs, split)


def _costs(arrays: Arrays, updates: Updates | None, m: int) -> Costs:
    groups, possible = kinds(arrays), np.isfinite(arrays.seconds)
    computing = arrays.seconds.copy()
    if updates is not None:
        computing[possible] -= updates.seconds[possible]
    pace_s = np.array([computing[possible[:, g[0]], g[0]].sum() for g in groups])
    teams = teams_of(groups, pace_s, m)
    num_states = prod(len(group) + 1 for group in groups)
    most = int((MOST_STEPS / max(1, num_states * len(teams))) ** 0.5)
    if most < min(FEWEST_CUTS, arrays.num_ops + 1):
        raise InfeasibleError("too many devices to try all numbers of replicas")
    order = np.arange(arrays.num_ops)
    cuts = cuts_of(replace(arrays, seconds=computing), order, groups, min(most, MAX_CUTS))
    return Costs(
        cuts,
        groups,
        m,
        {team: _load(cuts, team) for team in teams},
        {team: _once_s(cuts, groups, team, updates) for team in teams},
        {(a, b): _carried(cuts, a, b) for a in teams for b in teams},
        updates is not None,
    )


@dataclass(frozen=True)
class Part:
    """A stage of a split: between two candidate cuts, on a team that follows others.

    Attributes:
        used: devices of each kind up to this stage's.
    """

    begin: int
    end: int
    used: tuple[int, ...]
    team: Team


def _all_splits(costs: Costs) -> Iterator[list[Part]]:
    """The best split for every choice of devices and of the last stage's team."""
    c = len(costs.cuts.positions)
    empty: State = ((0,) * len(costs.groups), NOBODY)
    value: dict[State, Floats] = {empty: np.where(np.arange(c) == 0, 0.0, np.inf)}
    by_used: dict[tuple[int, ...], list[State]] = {empty[0]: [empty]}
    trail: Trail = {}
    for used in sorted(product(*(range(len(group) + 1) for group in costs.groups)), key=sum)[1:]:
        for team in costs.load:
            before = tuple(u - n for u, n in zip(used, team.num, strict=True))
            known = by_used.get(before, []) if min(before) >= 0 else []
            if known:
                link_s = [costs.carried[s[1], team] if s != empty else 0.0 for s in known]
                arrivals = np.array(
                    [np.maximum(value[s], link) for s, link in zip(known, link_s, strict=True)]
                )
                stage_s = costs.load[team] + costs.once[team] / costs.m
                value[used, team], arg, origin = _extend(arrivals, stage_s)
                trail[used, team] = (arg, origin, known)
                by_used.setdefault(used, []).append((used, team))
    for state in trail:
        if np.isfinite(value[state][-1]):
            yield _stages(costs.cuts, trail, state)


def _promise(costs: Costs, split: list[Part]) -> float:
    """Seconds that a split may take: of a batch beyond one micro-batch's way, or of the busiest.

    In training the busiest stage does all but one of its micro-batches while others pass.
    """
    seconds = []
    for part, before in zip(split, [*split[1:], None], strict=True):
        load = costs.load[part.team][part.begin, part.end]
        rounds = costs.m - 1 / max(part.team.shares.values()) if costs.trains else 1.0
        seconds.append(rounds * load + costs.once[part.team][part.begin, part.end])
        if before:
            rounds = costs.m - 1 if costs.trains else 1.0
            seconds.append(rounds * costs.carried[before.team, part.team][part.begin])
    return float(max(seconds))


def _stages(cuts: Cuts, trail: Trail, state: State) -> list[Part]:
    """The stages of the split that a state stands for, the last one first."""
    j, parts = len(cuts.positions) - 1, []
    while state in trail:
        (used, team), (arg, origin, known) = state, trail[state]
        i, state = int(arg[j]), known[int(origin[arg[j]])]
        if i < j:
            parts.append(Part(i, j, used, team))
        j = i
    return parts


def _devices(costs: Costs, split: list[Part]) -> tuple[Ints, dict[int, tuple[int, ...]]]:
    """First turns by operator, and further turns by first."""
    cuts, groups = costs.cuts, costs.groups
    device, more = np.zeros(cuts.positions[-1], dtype=np.int64), dict[int, tuple[int, ...]]()
    for part in split:
        first = [n - own for n, own in zip(part.used, part.team.num, strict=True)]
        turns = [groups[g][first[g] + k] for g, k in part.team.turns]
        device[cuts.positions[part.begin] : cuts.positions[part.end]] = turns[0]
        if len(turns) > 1:
            more[turns[0]] = tuple(turns[1:])
    return device, more


def _load(cuts: Cuts, team: Team) -> Floats:
    """(c, c) seconds per micro-batch of a stage between two cuts on a team."""
    return np.asarray(np.max([n * cuts.load[g] for g, n in team.shares.items()], axis=0))


def _once_s(cuts: Cuts, groups: list[list[int]], team: Team, updates: Updates | None) -> Floats:
    """(c, c) seconds per batch of a stage: the ring that is not hidden, and the optimizers."""
    if updates is None:
        return np.zeros(cuts.load.shape[1:])
    members = [groups[g][k] for g, k in dict.fromkeys(team.turns)]
    update_s = -_least(-updates.seconds, cuts, members)
    if len(members) == 1:
        return update_s
    latency_s, s_per_byte = _ring(updates.problem, members)
    sum_s = between(updates.num_bytes, cuts.positions) * s_per_byte
    if not updates.problem.arrays.serialised:
        sum_s = np.maximum(0.0, sum_s - _least(updates.backward_s, cuts, members))
    return np.asarray(latency_s + sum_s + update_s)


def _least(seconds: Floats, cuts: Cuts, devices: list[int]) -> Floats:
    """(c, c) least sum between two cuts on some devices, of what is finite."""
    finite = np.where(np.isfinite(seconds), seconds, 0.0)
    return np.asarray(
        np.min([between(finite[:, d], cuts.positions) for d in dict.fromkeys(devices)], axis=0)
    )


def _ring(problem: Problem, members: list[int]) -> Ring:
    """The ring of some devices; infinite where there is none."""
    try:
        return rings(problem, [[problem.costs.devices[d] for d in members]])[0]
    except InfeasibleError:
        return np.inf, 0.0


def _carried(cuts: Cuts, a: Team, b: Team) -> Floats:
    """(c,) seconds of the busiest link between two teams: their turns pair up anew each time."""
    length = lcm(len(a.turns), len(b.turns))
    pairs = Counter((a.turns[k % len(a.turns)], b.turns[k % len(b.turns)]) for k in range(length))
    return np.asarray(
        np.max([cuts.carried[p, q] * n / length for ((p, _), (q, _)), n in pairs.items()], axis=0)
    )


def _extend(arrivals: Floats, load: Floats) -> tuple[Floats, Ints, Ints]:
    """value[j] = min over i and the state before of max(arrivals[state, i], load from i to j).

    Returns the values, the i of each j, and the state of each i.
    """
    origin = arrivals.argmin(axis=0)
    total = np.maximum(arrivals.min(axis=0)[:, None], load)
    arg = total.argmin(axis=0)
    return total[arg, np.arange(len(arg))], arg, origin
