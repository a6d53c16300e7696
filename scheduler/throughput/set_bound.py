"""A lower bound on the largest load by column generation over the sets that devices can hold.

If operator weights w (of either sign) are such that no n devices can hold, within a load T each,
sets whose weights sum to that of all operators, then every plan has a load above T. Any weights
give a valid bound; the linear programme of Gilmore and Gomory finds good ones, and the sets come
from the programme of `device_sets`, which knows each device's times and transfers exactly.
Media are left out, which keeps it a bound. A set S that a device with the memory M can hold has
load(S) + p (bytes(S) - M) <= T for every price p >= 0 of a byte, and the sets that are looked at
keep this one rule in place of load and memory; p comes from the dual of `load_bound`.

Source: Gilmore and Gomory, "A linear programming approach to the cutting-stock problem",
Operations Research 9(6), 1961, doi:10.1287/opre.9.6.849; smoothing of the weights: Pessoa,
Sadykov, Uchoa, Vanderbeck, "Automation and combination of linear-programming based stabilization
techniques in column generation", INFORMS J. Computing 30(2), 2018, doi:10.1287/ijoc.2017.0784.
"""

import time
from dataclasses import dataclass, field

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints, kinds
from scheduler.bounds.load_bound import classes_of, cut_bound
from scheduler.throughput.device_sets import layers_of, least_loads, members, steps_of
from scheduler.throughput.orders import hyperedges, narrow
from scheduler.throughput.set_pool import Parts, Pool

LEVELS, FEWEST_LEVELS, FILL = 3000, 200, 0.6
MOST_ENTRIES = 16_000_000
"""Values of the layers of a dynamic programme: 4 bytes each."""
NEGLIGIBLE = 3e-4
"""Tensors that take this share of the value at most are free where states are too many."""
SETS_PER_PRICE, PATIENCE = 3, 12
SMOOTHING = 0.7
FEWEST_PARTS, GROWTH = 32, 4
MOST_ROOM = 10.0
"""Largest worth of a device's memory, as a multiple of the value."""
CLOSE, COARSE = 1e-5, 1e-3
"""Relative distance at which bound and value are equal; and while weights are shared."""


@dataclass
class SetBound:
    """The state of the column generation: what `tighten` carries on from.

    Attributes:
        value: the load of the best plan known; sets above it are not looked at.
        best: the bound so far.
        weights: (num_ops,) that gave it; they sum to 1.
        room_s: (num_kinds,) what the memory of one device is worth; loads in `least_loads` contain
            the price of the bytes that a set holds, and are lower by this elsewhere.
        sets: found so far.
        num_parts: stretches of the order whose operators' weights keep their proportions.
        signed: whether weights may be negative.
        ceiling: the sets known hold everything within it, so that the bound stays below.
        target: load that the weights are being sought for, for `patience` more rounds.
    """

    arrays: Arrays
    value: float
    best: float = 0.0
    weights: Floats = field(init=False)
    sets: Pool = field(init=False)
    num_parts: int = FEWEST_PARTS
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
        self.order = narrow(arrays) if arrays.serialised else np.arange(arrays.num_ops)
        self.steps = [steps_of(arrays, group[0], self.order) for group in self.groups]
        widest = max(s.num_states for s in self.steps)
        if widest * LEVELS > MOST_ENTRIES:  # coarse levels cost more than the cheapest tensors
            least_s = NEGLIGIBLE * self.value
            self.steps = [steps_of(arrays, group[0], self.order, least_s) for group in self.groups]
            widest = max(s.num_states for s in self.steps)
        self.levels = max(min(LEVELS, MOST_ENTRIES // widest), FEWEST_LEVELS)
        self.layers = layers_of(widest, self.levels)
        self._charge_bytes()
        finite = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0).max(axis=1)
        least = np.where(arrays.seconds.min(axis=1) > 0, arrays.seconds.min(axis=1), finite)
        least = np.where(np.isfinite(least), least, 0.0)
        self.weights = least / max(least.sum(), 1e-300)
        self.sets = Pool(arrays.num_ops)
        self._least_s = least
        self._add_single()

    def _charge_bytes(self) -> None:
        """Add the price of its bytes to each operator's time, where memory may run out."""
        classes, one = classes_of(self.arrays), [group[0] for group in self.groups]
        _, y, price = cut_bound(classes)
        dearest = MOST_ROOM * self.value / self.arrays.limit_bytes[one]
        rate = np.minimum(dearest, price[one] / np.maximum(y[one], 1e-300))
        self.room_s = rate * np.where(rate > 0, self.arrays.limit_bytes[one], 0.0)
        self.seconds = [
            np.ascontiguousarray(classes.seconds[:, d] + r * classes.held_bytes)
            for d, r in zip(one, rate, strict=True)
        ]

    def _add_single(self) -> None:
        """Add the sets of one operator: no weight is then above what a device can hold."""
        pins = hyperedges(self.arrays)[1]
        ends_s = self.arrays.ends_s if self.arrays.serialised else np.zeros((0, 1))
        for u, mine in enumerate(pins):
            inside = np.arange(self.arrays.num_ops) == u
            for kind, group in enumerate(self.groups):
                moved = float(ends_s[mine, group[0]].sum()) if len(ends_s) else 0.0
                load = float(self.seconds[kind][u]) + moved - self.room_s[kind]
                if load <= self.value:
                    self.sets.add(kind, inside, load)

    @property
    def fine(self) -> bool:
        """Whether every operator has a weight of its own."""
        return self.num_parts >= self.arrays.num_ops

    @property
    def close(self) -> float:
        """Share of the value within which bound and ceiling count as equal."""
        return CLOSE if self.fine else COARSE

    def parts(self) -> Parts:
        """Stretches of the order that take equally long, or every operator by itself."""
        n = self.arrays.num_ops
        if self.fine:
            return Parts(np.arange(n), np.ones(n))
        end_s = np.cumsum(self._least_s[self.order])
        label = np.empty(n)
        stretch = np.floor(end_s * (self.num_parts / max(end_s[-1], 1e-300)))
        label[self.order] = np.minimum(stretch, self.num_parts - 1)
        part = np.unique(label, return_inverse=True)[1].astype(np.int64)
        longest_s = np.zeros(n)
        np.maximum.at(longest_s, part, self._least_s)
        return Parts(part, self._least_s / np.maximum(longest_s[part], 1e-300))

    @property
    def zero(self) -> int:
        """Level of the empty set."""
        return self.levels // 4 if self.signed else 0

    def integer(self, weights: Floats) -> Ints:
        """Weights as whole levels: the heaviest set known gets a share `FILL` of them."""
        held = self.sets.heaviest(weights)
        average = abs(float(weights.sum())) / self.counts.sum()
        scale = FILL * (self.levels - self.zero) / (max(held, average) or 1.0)
        return np.asarray(np.floor(weights * scale + 0.5), dtype=np.int64)

    def price(self, weights: Floats, target: float) -> int:
        """Take the bound of some weights; return how many new sets within `target` they brought."""
        weight = self.integer(weights)
        limit = self.value * (1 + CLOSE / 10)
        before = len(self.sets)
        loads = []
        for kind, (steps, seconds) in enumerate(zip(self.steps, self.seconds, strict=True)):
            room_s = self.room_s[kind]
            costs = steps.costs(seconds, weight, limit + room_s)
            load = least_loads(steps, costs, self.layers, self.zero) - room_s
            loads.append(load)
            for level in np.flatnonzero(load <= target)[::-1][:SETS_PER_PRICE]:
                inside = members(steps, costs, int(level), self.layers)
                self.sets.add(kind, inside, float(load[level]))
        bound = least_cover(loads, self.counts, int(weight.sum()), self.value, self.zero)
        if bound > self.best:
            self.best, self.weights = bound, weights / max(weights.sum(), 1e-300)
        return len(self.sets) - before


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
        if bound.ceiling - bound.best <= bound.close * bound.value:
            if not bound.fine:
                bound.num_parts, bound.ceiling = bound.num_parts * GROWTH, bound.value
            elif bound.signed:
                break
            else:
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
        above = max(0.5 * (bound.target - bound.best), 0.5 * bound.close * bound.value)
        bound.target = min(bound.best + above, bound.target)
        bound.patience = PATIENCE
    bound.patience -= 1
    cover, weights = bound.sets.cover(bound.counts, bound.target, bound.parts(), bound.signed)
    if cover <= 1 + 1e-9:  # the sets known hold everything within the target
        bound.ceiling = bound.target
        return
    new = bound.price(SMOOTHING * bound.weights + (1 - SMOOTHING) * weights, bound.target)
    new = new or bound.price(weights, bound.target)
    if not new and bound.best < bound.target:  # the levels are too coarse to go on
        bound.ceiling = bound.target
