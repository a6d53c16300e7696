"""Better pipelines of a training step: boundaries and devices of stages move while it gets faster.

    layers   0 0 0 1 1 1 2 2      a boundary shifts        0 0 1 1 1 1 2 2
                                  two stages swap devices  2 2 2 1 1 1 0 0
                                  a device takes over      0 0 0 3 3 3 2 2
                                  a stage goes             0 0 0 0 0 2 2 2
                                  a stage comes            0 0 0 1 3 3 2 2

The dynamic programme splits by loads; here every move is timed as a whole step (warm-up, drain,
transfers), and taken where the memory suffices.

Source: iterated local search (Lourenco, Martin, Stutzle, Handbook of Metaheuristics, 2003,
doi:10.1007/0-306-48056-5_11).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from scheduler.arrays import Floats, Ints
from scheduler.evaluation.evaluate import in_flight_of
from scheduler.evaluation.memory import memory_needs
from scheduler.evaluation.timeline import stage_makespan
from scheduler.plan import cut_stages
from scheduler.problem import Placement, Problem
from scheduler.training.folding import folded

CLOSE = 1e-9
"""Share by which a step must be faster to count."""
FORBIDDEN_S = 1e15
"""Seconds of an operator where it must not run."""
MOST_TIMED = 60_000
"""Operators of all splits that a heuristic times."""
KICKS = 3
"""Random moves from the best split, from which the search starts again."""

STALE = 50

Split = tuple[tuple[int, ...], tuple[int, ...]]
"""First layer of every stage, and its device."""


def descended(problem: Problem, placement: Placement) -> Placement:
    """Take moves that make the step faster, a few at most: `MOST_TIMED` operators in all."""
    search = _search(problem, placement, np.inf)
    if search is None:
        return placement
    search.most = MOST_TIMED // len(problem.graph.ops)
    return search.placement(_descend(search, search.start))


def refine(
    problem: Problem, placement: Placement, deadline_s: float, tell: Callable[[float], None]
) -> Placement:
    """Move the stages of a pipeline until `time.perf_counter()` is the deadline; the best found.

    It ends before where `STALE` kicks in a row lead to no split that is new. `tell` is called with
    the seconds of a step as they fall.
    """
    search = _search(problem, placement, deadline_s)
    if search is None:
        return placement
    best = _descend(search, search.start)
    tell(search.seconds(best))
    rng, stale = np.random.default_rng(0), 0
    while not search.is_over and stale < STALE:
        num_known = len(search.known_s)
        found = _descend(search, _kicked(search, best, rng))
        stale = stale + 1 if len(search.known_s) == num_known else 0
        if search.seconds(found) < search.seconds(best) * (1 - CLOSE) and search.fits(found):
            best = found
            tell(search.seconds(best))
    return search.placement(best)


@dataclass
class _Search:
    """The splits of an order of layers, and what is known of them.

    Attributes:
        layer: (num_ops,) layer of every operator.
        work_s: (num_layers + 1, num_devices) seconds of a step, summed up to a layer.
        start: the split to start from.
        deadline_s, most: the time, and the number of splits timed, at which it is over.
    """

    problem: Problem
    layer: Ints
    work_s: Floats
    start: Split
    deadline_s: float
    most: float = np.inf
    known_s: dict[Split, float] = field(default_factory=dict)
    known_fits: dict[Split, bool] = field(default_factory=dict)

    def placement(self, split: Split) -> Placement:
        """The device of every operator."""
        start, device = split
        lengths = np.diff([*start, len(self.work_s) - 1])
        names = self.problem.costs.devices
        at = np.repeat(device, lengths)[self.layer].tolist()
        return {op.name: names[d] for op, d in zip(self.problem.graph.ops, at, strict=True)}

    def load_s(self, split: Split) -> float:
        """Seconds of work of the fullest device in a step, which is never shorter."""
        start, device = split
        ends = [*start[1:], len(self.work_s) - 1]
        return float((self.work_s[ends, device] - self.work_s[start, device]).max())

    def seconds(self, split: Split) -> float:
        """Seconds of a step."""
        if split not in self.known_s:
            stages = cut_stages(self.problem.graph, self.placement(split))
            in_flight = in_flight_of(self.problem, stages)
            m = self.problem.num_micro_batches
            self.known_s[split] = stage_makespan(self.problem, stages, in_flight, m)
        return self.known_s[split]

    def fits(self, split: Split) -> bool:
        """Whether every device has the memory."""
        if split not in self.known_fits:
            placement = self.placement(split)
            stages = cut_stages(self.problem.graph, placement)
            in_flight = in_flight_of(self.problem, stages)
            needs = memory_needs(self.problem, placement, stages, in_flight).values()
            self.known_fits[split] = all(need.num_bytes <= need.limit_bytes for need in needs)
        return self.known_fits[split]

    @property
    def is_over(self) -> bool:
        """Whether the time is up, or enough was timed."""
        return time.perf_counter() >= self.deadline_s or len(self.known_s) >= self.most


def _search(problem: Problem, placement: Placement, deadline_s: float) -> _Search | None:
    """A search from a placement; None where that is no sequence of stages over layers."""
    device = np.array([problem.device_index[placement[op.name]] for op in problem.graph.ops])
    for last in (False, True):
        layer = np.unique(folded(problem, last), return_inverse=True)[1].astype(np.int64)
        start = stages_of(device, layer)
        if start:
            return _Search(problem, layer, _work_s(problem, layer), start, deadline_s)
    return None


def _work_s(problem: Problem, layer: Ints) -> Floats:
    seconds = problem.seconds_per_micro_batch * problem.num_micro_batches
    work_s = np.zeros((layer.max() + 2, seconds.shape[1]))
    np.add.at(work_s, layer + 1, np.where(np.isfinite(seconds), seconds, FORBIDDEN_S))
    return np.asarray(work_s.cumsum(axis=0))


def _descend(search: _Search, split: Split) -> Split:
    """Take moves that make the step faster, boundaries by half as many layers where none does."""
    num_layers, num_devices = len(search.work_s) - 1, search.work_s.shape[1]
    best_s = search.seconds(split) if search.fits(split) else np.inf
    step = max(1, num_layers // (2 * len(split[0])))
    while step and not search.is_over:
        for move in moves(split, num_layers, num_devices, step):
            if search.is_over:
                break
            if not search.load_s(move) < best_s * (1 - CLOSE):
                continue
            if search.seconds(move) < best_s * (1 - CLOSE) and search.fits(move):
                split, best_s = move, search.seconds(move)
                break
        else:
            step //= 2
    return split


def _kicked(search: _Search, split: Split, rng: np.random.Generator) -> Split:
    num_layers, num_devices = len(search.work_s) - 1, search.work_s.shape[1]
    for _ in range(KICKS):
        step = int(rng.integers(1, max(2, num_layers // len(split[0]))))
        around = [
            move
            for move in moves(split, num_layers, num_devices, step)
            if search.load_s(move) < FORBIDDEN_S / 2
        ]
        if around:
            split = around[int(rng.integers(len(around)))]
    return split


def stages_of(device: Ints, layer: Ints) -> Split | None:
    """The stages of a placement (num_ops,); None where a layer lies on two devices."""
    of_layer = np.zeros(layer.max() + 1, dtype=np.int64)
    of_layer[layer] = device
    if (of_layer[layer] != device).any():
        return None
    first = np.flatnonzero(np.diff(of_layer, prepend=-1))
    return tuple(first.tolist()), tuple(of_layer[first].tolist())


def moves(split: Split, num_layers: int, num_devices: int, step: int) -> Iterator[Split]:
    """Every split that one move of a boundary by `step` layers, or of a device, makes."""
    start, device = split
    ends = (*start[1:], num_layers)
    unused = [d for d in range(num_devices) if d not in device]
    for i in range(1, len(start)):
        for at in (start[i] - step, start[i] + step):
            if start[i - 1] < at < ends[i]:
                yield (*start[:i], at, *start[i + 1 :]), device
    for i, j in combinations(range(len(device)), 2):
        swapped = list(device)
        swapped[i], swapped[j] = device[j], device[i]
        yield start, tuple(swapped)
    for i in range(len(device)):
        for d in unused:
            yield start, (*device[:i], d, *device[i + 1 :])
        if len(start) > 1:  # its layers go to the stage before, or the first stage's to the next
            left = (*start[:i], *start[i + 1 :])
            yield (0, *left[1:]), (*device[:i], *device[i + 1 :])
            if 0 < i < len(start) - 1:
                later = (*start[: i + 1], *start[i + 2 :])
                yield later, (*device[:i], *device[i + 1 :])
        middle = (start[i] + ends[i]) // 2
        for d in unused if start[i] < middle else ():
            for pair in ((device[i], d), (d, device[i])):
                yield (
                    (*start[: i + 1], middle, *start[i + 1 :]),
                    (*device[:i], *pair, *device[i + 1 :]),
                )
