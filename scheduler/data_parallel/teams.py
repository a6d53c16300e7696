"""Teams of devices that run a stage in turns, as many as suit their speed."""

from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np

from scheduler.arrays import Floats

MOST_CHOICES = 300
"""Choices of devices above which a team has devices of one kind only."""
MOST_TURNS = 12
"""Turns of a team of unequal devices, where a batch does not limit them."""
WORTH = 0.97
"""Part of the time to which more turns must bring a team."""

Member = tuple[int, int]
"""Kind of a device, and its number among the devices of the kind in its team."""


@dataclass(frozen=True)
class Team:
    """Devices that run a stage: how many of each kind, and who has which turn."""

    num: tuple[int, ...]
    turns: tuple[Member, ...]

    @property
    def shares(self) -> dict[int, float]:
        """Largest share of the turns that a device of each kind has."""
        count = Counter(self.turns)
        return {
            g: max(n for (kind, _), n in count.items() if kind == g) / len(self.turns)
            for g in dict(self.turns)
        }


def teams_of(groups: list[list[int]], pace_s: Floats, m: int) -> list[Team]:
    """Every choice of devices for a stage, with the turns that suit their pace.

    `pace_s` (kinds,): seconds of all operators. Turns divide m, where a batch has several
    micro-batches. Where there are too many choices, only devices of one kind.
    """
    choices = list(product(*(range(len(group) + 1) for group in groups)))[1:]
    if len(choices) > MOST_CHOICES:
        choices = [num for num in choices if sum(n > 0 for n in num) == 1]
    found = (_team(num, pace_s, m) for num in choices)
    return [team for team in found if team is not None]


def _team(num: tuple[int, ...], pace_s: Floats, m: int) -> Team | None:
    """The turns of some devices: each goes to the device that would be done with it first."""
    members = [(g, j) for g, n in enumerate(num) for j in range(n)]
    if not np.isfinite(pace_s[[g for g, _ in members]]).all():
        return None
    most = max(len(members), MOST_TURNS) if sum(n > 0 for n in num) > 1 else len(members)
    lengths = [n for n in range(len(members), (m if m > 1 else most) + 1) if m == 1 or m % n == 0]
    best, least_s = None, np.inf
    for length in lengths:
        taken, turns = Counter[Member](), list[Member]()
        for _ in range(length):
            member = min(members, key=lambda d: ((taken[d] + 1) * pace_s[d[0]], d))
            taken[member] += 1
            turns.append(member)
        longest_s = max(n * pace_s[g] for (g, _), n in taken.items()) / length
        if len(taken) == len(members) and longest_s < WORTH * least_s:
            best, least_s = Team(num, tuple(turns)), longest_s
    return best
