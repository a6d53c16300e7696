"""A lower bound on the largest load by column generation over the sets that devices can hold.

If operator weights w (of either sign) are such that no n devices can hold, within a load T each,
sets whose weights sum to that of all operators, then every plan has a load above T. Any weights
give a valid bound; the linear programme of Gilmore and Gomory finds good ones, and the sets come
from the programme of `device_sets`, which knows each device's times and transfers exactly.
Memory and media are left out, which keeps it a bound.

Source: Gilmore and Gomory, "A linear programming approach to the cutting-stock problem",
Operations Research 9(6), 1961, doi:10.1287/opre.9.6.849; smoothing of the weights: Pessoa,
Sadykov, Uchoa, Vanderbeck, "Automation and combination of linear-programming based stabilization
techniques in column generation", INFORMS J. Computing 30(2), 2018, doi:10.1287/ijoc.2017.0784.
"""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.device_sets import least_loads, members, steps_of
from scheduler.orders import hyperedges, narrow

LEVELS, FEWEST_LEVELS, FILL = 3000, 200, 0.6
MOST_ENTRIES = 8_000_000
"""Values of the layers of a dynamic programme: 8 bytes each."""
SETS_PER_PRICE, PATIENCE = 3, 12
SMOOTHING = 0.7
CLOSE = 1e-5
"""Relative distance at which bound and value are equal."""


@dataclass
class SetBound:
    """The state of the column generation: what `tighten` carries on from.

    Attributes:
        value: the load of the best plan known; sets above it are not looked at.
        best: the bound so far.
        weights: (num_ops,) that gave it; they sum to 1.
        sets: (kind, members, load) found so far.
        signed: whether weights may be negative.
        ceiling: the sets known hold everything within it, so that the bound stays below.
        target: load that the weights are being sought for, for `patience` more rounds.
    """

    arrays: Arrays
    value: float
    best: float = 0.0
    weights: Floats = field(init=False)
    sets: list[tuple[int, NDArray[np.bool_], float]] = field(default_factory=list)

    signed: bool = False
    ceiling: float = np.inf
    target: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        """Build the transitions of each kind of device."""
        self.ceiling = self.value
        arrays = self.arrays
        self.groups = kinds(arrays)
        self.counts = np.array([len(group) for group in self.groups])
        order = narrow(arrays) if arrays.serialised else np.arange(arrays.num_ops)
        self.steps = [steps_of(arrays, group[0], order) for group in self.groups]
        widest = max(s.num_states for s in self.steps)
        self.layers = np.empty((widest, max(min(LEVELS, MOST_ENTRIES // widest), FEWEST_LEVELS)))
        self.seconds = [np.ascontiguousarray(arrays.seconds[:, g[0]]) for g in self.groups]
        finite = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0).max(axis=1)
        least = np.where(arrays.seconds.min(axis=1) > 0, arrays.seconds.min(axis=1), finite)
        least = np.where(np.isfinite(least), least, 0.0)
        self.weights = least / max(least.sum(), 1e-300)
        self._seen: set[tuple[int, bytes]] = set()
        self._add_single()

    def _add_single(self) -> None:
        """Add the sets of one operator: no weight is then above what a device can hold."""
        pins = hyperedges(self.arrays)[1]
        ends_s = self.arrays.ends_s if self.arrays.serialised else np.zeros((0, 1))
        for u, mine in enumerate(pins):
            inside = np.arange(self.arrays.num_ops) == u
            for kind, group in enumerate(self.groups):
                moved = float(ends_s[mine, group[0]].sum()) if len(ends_s) else 0.0
                load = float(self.seconds[kind][u]) + moved
                if load <= self.value:
                    self._add(kind, inside, load)

    @property
    def zero(self) -> int:
        """Level of the empty set."""
        return self.layers.shape[1] // 4 if self.signed else 0

    def integer(self, weights: Floats) -> Ints:
        """Weights as whole levels: the heaviest set known gets a share `FILL` of them."""
        held = max((abs(float(weights[inside].sum())) for _, inside, _ in self.sets), default=0.0)
        average = abs(float(weights.sum())) / self.counts.sum()
        scale = FILL * (self.layers.shape[1] - self.zero) / (max(held, average) or 1.0)
        return np.asarray(np.floor(weights * scale + 0.5), dtype=np.int64)

    def price(self, weights: Floats, target: float) -> int:
        """Take the bound of some weights; return how many new sets within `target` they brought."""
        weight = self.integer(weights)
        limit = self.value * (1 + CLOSE / 10)
        before = len(self.sets)
        loads = []
        for kind, (steps, seconds) in enumerate(zip(self.steps, self.seconds, strict=True)):
            add, gain = steps.costs(seconds, weight)
            load = least_loads(steps, add, gain, limit, self.layers, self.zero)
            loads.append(load)
            for level in np.flatnonzero(load <= target)[::-1][:SETS_PER_PRICE]:
                inside = members(steps, add, gain, int(level), self.layers)
                self._add(kind, inside, float(load[level]))
        bound = least_cover(loads, self.counts, int(weight.sum()), self.value, self.zero)
        if bound > self.best:
            self.best, self.weights = bound, weights / max(weights.sum(), 1e-300)
        return len(self.sets) - before

    def _add(self, kind: int, inside: NDArray[np.bool_], load: float) -> None:
        key = (kind, inside.tobytes())
        if key not in self._seen:
            self._seen.add(key)
            self.sets.append((kind, inside, load))


def least_cover(loads: list[Floats], counts: Ints, weight: int, value: float, zero: int) -> float:
    """Least T at which the devices' heaviest sets within T weigh as much as all operators.

    `value` where no T below it is enough: then no plan is better.
    """
    reach = [np.minimum.accumulate(load[::-1])[::-1] for load in loads]
    candidates = np.unique(np.concatenate([r[np.isfinite(r)] for r in reach]))
    total = np.zeros(len(candidates))
    for r, count in zip(reach, counts, strict=True):
        heaviest = np.searchsorted(r, candidates, side="right") - 1
        total += count * np.where(heaviest == len(r) - 1, max(weight, 0), heaviest - zero)
    enough = np.flatnonzero(total >= weight)
    return min(value, float(candidates[enough[0]])) if len(enough) else value


def tighten(bound: SetBound, deadline_s: float) -> float:
    """Improve the bound until it meets the value, cannot rise, or `time.perf_counter()` ends.

    Weights from 0 first (sets cover the operators), which settles fast; then of either sign
    (sets partition them), which reaches higher. A later call goes on where this one stops.
    """
    if not bound.best:
        bound.price(bound.weights, bound.value)
    while time.perf_counter() < deadline_s and bound.best < bound.value:
        if bound.ceiling - bound.best <= CLOSE * bound.value:
            if bound.signed:
                break
            bound.signed, bound.ceiling = True, bound.value
        _generate(bound)
    return bound.best


def _generate(bound: SetBound) -> None:
    """One round: weights for a target between bound and ceiling, and the sets that break them.

    A target that lies too high to be settled soon is lowered.
    """
    if not bound.best < bound.target < bound.ceiling:
        bound.target = bound.best + 0.5 * (bound.ceiling - bound.best)
        bound.patience = PATIENCE
    elif bound.patience == 0:
        bound.target = bound.best + 0.5 * (bound.target - bound.best)
        bound.patience = PATIENCE
    bound.patience -= 1
    cover, weights = _cover(bound, bound.target)
    if cover <= 1 + 1e-9:  # the sets known hold everything within the target
        bound.ceiling = bound.target
        return
    new = bound.price(SMOOTHING * bound.weights + (1 - SMOOTHING) * weights, bound.target)
    new = new or bound.price(weights, bound.target)
    if not new and bound.best < bound.target:  # the levels are too coarse to go on
        bound.ceiling = bound.target


def _cover(bound: SetBound, target: float) -> tuple[float, Floats]:
    """Devices (as a share of those there are) that the known sets need, and the weights (dual).

    max sum w  s.t.  w(S) <= alpha_kind for every set, alpha >= 0,  sum counts alpha <= 1.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    n, num_kinds = bound.arrays.num_ops, len(bound.groups)
    known = [(kind, np.flatnonzero(inside)) for kind, inside, load in bound.sets if load <= target]
    kind = np.array([k for k, _ in known], dtype=np.int64)
    size = np.array([len(inside) for _, inside in known], dtype=np.int64)
    row = np.concatenate([np.repeat(np.arange(len(known)), size), np.arange(len(known))])
    column = np.concatenate([*(inside for _, inside in known), n + kind])
    entry = np.repeat([1.0, -1.0], [size.sum(), len(known)])
    last = len(known)
    row = np.append(row, np.full(num_kinds, last))
    column, entry = np.append(column, n + np.arange(num_kinds)), np.append(entry, bound.counts)
    rows = csr_array((entry, (row, column)), shape=(last + 1, n + num_kinds))
    limits = np.append(np.zeros(len(known)), 1.0)
    profit = np.append(-np.ones(n), np.zeros(num_kinds))
    bounds = [(-1 if bound.signed else 0, 1)] * n + [(0, 1)] * num_kinds
    solved = linprog(profit, rows, limits, bounds=bounds, method="highs")
    if not solved.success:
        return 0.0, bound.weights
    return float(-solved.fun), solved.x[:n] / max(solved.x[:n].sum(), 1e-300)
