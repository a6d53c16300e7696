"""The portfolio for throughput: split an order, then search and bound in turns until time is up."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Arrays, Ints, kinds
from scheduler.throughput.contiguous import best_order_split
from scheduler.throughput.contract import contract, together
from scheduler.throughput.dive import dive
from scheduler.throughput.exchange import exchanges
from scheduler.throughput.integer_programme import reassign
from scheduler.throughput.local_search import anneal, net, state
from scheduler.throughput.set_bound import CLOSE, SetBound, tighten

Tell = Callable[[float, float], None]
"""Called with the best load and the best bound (seconds per micro-batch) as they improve."""

LARGEST_FOR_BOUND = 4000
"""Operators, after merging, above which the column generation is left out."""
FIRST_S, SHORTEST_S, LONGEST_S = 0.5, 0.1, 2.0
"""Time of a step: doubled when it improved something, halved when not."""
NEIGHBOURHOOD, SOLVE_S = 3, 0.8
MOVES = 30_000
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


@dataclass
class Search:
    """What the steps work on: a merged problem, its best placement, and what they remember."""

    arrays: Arrays
    here: Split
    rng: np.random.Generator
    deadline_s: float
    over: bool = False
    sets: SetBound | None = None
    slices_s: dict[str, float] = field(default_factory=dict)
    rounds: int = 0


Step = Callable[[Search, float], None]
"""Improve the placement or the bound of a search until a time of `time.perf_counter()`."""


def improve(arrays: Arrays, best: Split, deadline_s: float, tell: Tell, name: str = "auto") -> None:
    """Take the steps of a search in turns until proven or `time.perf_counter()` is the deadline."""
    search = Search(arrays, best, np.random.default_rng(0), deadline_s)
    while time.perf_counter() < deadline_s and not (best.proven or search.over):
        unit = together(arrays, best.load)
        small = contract(arrays, unit)
        here = Split(_members(unit, best.device), np.inf, best.bound, best.algorithm)
        here.offer(small, here.device, best.algorithm)
        if not here.load <= best.load * (1 + 1e-9):
            unit, small = arrays.unit, contract(arrays, arrays.unit)
            here = Split(_members(unit, best.device), best.load, best.bound, best.algorithm)
        if search.arrays.num_ops != small.num_ops:
            search.sets = None
        search.arrays, search.here = small, here
        for step in SEARCHES[name][small.serialised]:
            _run(step, search)
            if best.offer(arrays, here.device[unit], here.algorithm) or here.bound > best.bound:
                best.bound = max(best.bound, here.bound)
                tell(best.load, best.bound)
        search.rounds += 1
        tell(best.load, best.bound)


def _run(step: Step, search: Search) -> None:
    """Give a step its slice of time, and decide on its next one."""
    here, began_s = search.here, time.perf_counter()
    if here.proven or began_s >= search.deadline_s:
        return
    load, bound = here.load, here.bound
    slice_s = search.slices_s.get(step.__name__, FIRST_S)
    step(search, min(search.deadline_s, began_s + slice_s))
    gained = here.load < load * (1 - CLOSE) or here.bound > bound * (1 + CLOSE)
    longer = slice_s * (2 if gained else 0.5)
    search.slices_s[step.__name__] = min(max(longer, SHORTEST_S), LONGEST_S)


def _exchange(search: Search, until_s: float) -> None:
    device = exchanges(search.arrays, search.here.device, until_s, search.rng)
    search.here.offer(search.arrays, device, "exchange")


def _bound(search: Search, until_s: float) -> None:
    if search.arrays.num_ops > LARGEST_FOR_BOUND:
        return
    load = search.here.load
    sets = search.sets = search.sets or SetBound(search.arrays, load)
    sets.value = min(sets.value, load)
    sets.ceiling = min(sets.ceiling, sets.value)
    search.here.bound = max(search.here.bound, tighten(sets, until_s))


def _dive(search: Search, until_s: float) -> None:
    here = search.here
    while search.sets and time.perf_counter() < until_s and not here.proven:
        device = dive(search.sets, here.load, here.bound, search.rng)
        here.offer(search.arrays, device, "device_sets")


def _anneal(search: Search, until_s: float) -> None:
    here, net_ = search.here, net(search.arrays)
    seed = 1000 * search.rounds
    moves = MOVES * (1 + search.rounds)
    while time.perf_counter() < until_s and not here.proven:
        at, found = state(search.arrays, here.device), here.device.copy()
        hot = TEMPERATURES[seed % len(TEMPERATURES)]
        anneal(net_, at, found, (hot, hot / COOLING, moves), seed)
        here.offer(search.arrays, found, "local_search")
        seed += 1


def _reassign(search: Search, until_s: float) -> None:
    """Solve the integer programme over the fullest device, another, and one of another kind."""
    arrays, here = search.arrays, search.here
    groups = kinds(arrays)
    while time.perf_counter() < until_s and not here.proven and arrays.num_devices > 1:
        fullest = int(arrays.loads(here.device)[: arrays.num_devices].argmax())
        among = {fullest}
        for group in search.rng.permutation(len(groups)).tolist():
            others = [d for d in groups[group] if d != fullest]
            if others and len(among) < NEIGHBOURHOOD:
                among.add(int(search.rng.choice(others)))
        limit_s = min(SOLVE_S, until_s - time.perf_counter())
        found = reassign(arrays, here.device, sorted(among), limit_s)
        if found.status in ("missing", "large"):
            if found.status == "missing":
                warnings.warn(f"integer programme: {UNSOLVED['missing']}; left out", stacklevel=2)
            return
        here.offer(arrays, found.device, "integer_programme")


def _whole(search: Search, _: float) -> None:
    """Solve the integer programme over all devices, from the best placement."""
    arrays, here = search.arrays, search.here
    limit_s = search.deadline_s - time.perf_counter()
    found = reassign(arrays, here.device, list(range(arrays.num_devices)), limit_s)
    search.over = True
    here.bound = max(here.bound, min(found.bound, here.load))
    here.offer(arrays, found.device, "integer_programme")
    if found.status not in ("optimal", "feasible"):
        reason = UNSOLVED.get(found.status, "found nothing better in its time")
        warnings.warn(f"integer programme: {reason}; the plan is the one before", stacklevel=2)


UNSOLVED = {"missing": "ortools is not installed", "large": "too many variables"}
SEARCHES: dict[str, dict[bool, tuple[Step, ...]]] = {
    "auto": {True: (_exchange, _bound, _dive, _reassign), False: (_anneal, _bound, _dive)},
    "local_search": {True: (_exchange, _anneal), False: (_anneal,)},
    "integer_programme": dict.fromkeys((True, False), (_whole,)),
}
"""Searches from the best split of an order: steps for serialised transfers, and for overlapped."""


def compile_loops(arrays: Arrays, name: str = "auto") -> None:
    """Compile the loops that a search needs, or load them from the cache (seconds, once)."""
    one = contract(arrays, np.zeros(arrays.num_ops, dtype=np.int64))
    steps = SEARCHES[name][arrays.serialised]
    if _exchange in steps or _bound in steps:
        SetBound(one, 1.0).price(np.ones(1), 1.0)
    if _anneal in steps:
        device = np.zeros(1, dtype=np.int64)
        anneal(net(one), state(one, device), device, (0.01, 0.001, 1), 0)


def _members(unit: Ints, device: Ints) -> Ints:
    """(num_units,) device of the first operator of each unit."""
    first = np.unique(unit, return_index=True)[1]
    return device[first]
