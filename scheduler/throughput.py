"""The portfolio for throughput: split an order, merge, anneal, and bound, until time is up."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Ints, kinds
from scheduler.contiguous import best_order_split
from scheduler.contract import contract, together
from scheduler.dive import dive
from scheduler.integer_programme import reassign
from scheduler.local_search import anneal, net, state
from scheduler.set_bound import CLOSE, SetBound, tighten

Tell = Callable[[float, float], None]
"""Called with the best load and the best bound (seconds per micro-batch) as they improve."""

LARGEST_FOR_BOUND = 4000
"""Operators, after merging, above which the column generation is left out."""
NEIGHBOURHOOD, SOLVE_S = 3, 0.8
MOVES = 30_000
MOVES_PER_OP = 500
TEMPERATURES = (0.003, 0.01, 0.03)
COOLING = 30.0


@dataclass
class Split:
    """The best placement of an `Arrays` so far: devices, largest load, bound on it, and how.

    The load is infinite where nothing fits yet.
    """

    device: Ints
    load: float
    bound: float
    algorithm: str

    def offer(self, arrays: Arrays, device: Ints, algorithm: str) -> bool:
        """Take a placement if it fits the memory and its largest load is lower."""
        load = float(arrays.loads(device).max())
        fits = (arrays.held_bytes(device) <= arrays.limit_bytes).all()
        if not fits or not load < self.load * (1 - 1e-12):
            return False
        self.device, self.load, self.algorithm = device, load, algorithm
        return True

    @property
    def proven(self) -> bool:
        """Whether no placement can be better."""
        return self.load - self.bound <= CLOSE * self.load


def start(arrays: Arrays, bound: float) -> Split:
    """The best single device or split of an order (heuristics alone)."""
    best = Split(np.zeros(arrays.num_ops, dtype=np.int64), np.inf, bound, "")
    for d in range(arrays.num_devices):
        best.offer(arrays, np.full(arrays.num_ops, d), "single_device")
    for _ in range(2):  # what cannot be cut within the first value makes better orders
        unit = together(arrays, best.load) if best.load < np.inf else arrays.unit
        small = contract(arrays, unit)
        try:
            device = best_order_split(small)
        except InfeasibleError:
            break
        if not best.offer(arrays, device[unit], "contiguous"):
            break
    return best


def improve(arrays: Arrays, best: Split, deadline_s: float, tell: Tell) -> None:
    """Search and bound in turns until proven or `time.perf_counter()` passes the deadline."""
    rng = np.random.default_rng(0)
    rounds = idle = 0
    sets: SetBound | None = None
    while time.perf_counter() < deadline_s and not best.proven:
        unit = together(arrays, best.load)
        small = contract(arrays, unit)
        here = Split(_members(unit, best.device), np.inf, best.bound, best.algorithm)
        here.offer(small, here.device, best.algorithm)
        if not here.load <= best.load * (1 + 1e-9):
            unit, small = arrays.unit, contract(arrays, arrays.unit)
            here = Split(_members(unit, best.device), best.load, best.bound, best.algorithm)
        if sets is None or sets.arrays.num_ops != small.num_ops:
            sets = SetBound(small, best.load) if small.num_ops <= LARGEST_FOR_BOUND else None
        _anneal(small, here, min(deadline_s, time.perf_counter() + 0.4 + 0.2 * rounds), rounds)
        if small.serialised and small.num_ops <= LARGEST_FOR_BOUND:
            _reassign(small, here, min(deadline_s, time.perf_counter() + 1.0), rng)
        if sets is not None:
            share = min(deadline_s, time.perf_counter() + 2.0 * (1 + idle))
            sets.value = min(sets.value, here.load)
            sets.ceiling = min(sets.ceiling, sets.value)
            best.bound = here.bound = max(best.bound, tighten(sets, share))
            tell(min(best.load, here.load), best.bound)
            share = min(deadline_s, time.perf_counter() + 0.3)
            while time.perf_counter() < share and not here.proven:
                here.offer(small, dive(sets, here.load, best.bound, rng), "device_sets")
        if here.load < best.load:
            best.offer(arrays, here.device[unit], here.algorithm)
            idle = -1
        tell(best.load, best.bound)
        rounds, idle = rounds + 1, idle + 1


def _anneal(arrays: Arrays, here: Split, deadline_s: float, rounds: int) -> None:
    net_ = net(arrays)
    seed = 1000 * rounds
    moves = min(MOVES * (1 + rounds), MOVES_PER_OP * arrays.num_ops)
    while time.perf_counter() < deadline_s and not here.proven:
        at, found = state(arrays, here.device), here.device.copy()
        hot = TEMPERATURES[seed % len(TEMPERATURES)]
        anneal(net_, at, found, (hot, hot / COOLING, moves), seed)
        here.offer(arrays, found, "local_search")
        seed += 1


def _reassign(arrays: Arrays, here: Split, deadline_s: float, rng: np.random.Generator) -> None:
    """Solve the integer programme over the fullest device, another, and one of another kind."""
    groups = kinds(arrays)
    while time.perf_counter() < deadline_s and not here.proven:
        fullest = int(arrays.loads(here.device)[: arrays.num_devices].argmax())
        among = {fullest}
        for group in rng.permutation(len(groups)).tolist():
            others = [d for d in groups[group] if d != fullest]
            if others and len(among) < NEIGHBOURHOOD:
                among.add(int(rng.choice(others)))
        limit_s = min(SOLVE_S, deadline_s - time.perf_counter())
        device, status = reassign(arrays, here.device, sorted(among), limit_s)
        if status == "missing":
            warnings.warn("ortools is missing: no integer programme was solved", stacklevel=2)
            return
        here.offer(arrays, device, "integer_programme")


def _members(unit: Ints, device: Ints) -> Ints:
    """(num_units,) device of the first operator of each unit."""
    first = np.unique(unit, return_index=True)[1]
    return device[first]
