"""Which operators to split over devices: tries splits of the heaviest and keeps what pays."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.cost_model.costs import CostTable, cost_table
from scheduler.ir.graph import Graph
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.solution import Solution
from scheduler.tensor_parallel.operator_splits import split_graph, steps
from scheduler.tensor_parallel.split_rules import Cut, Split, Splits, cut_of

SHARES = (0.3, 0.1, 0.03, 0.01, 0.0)
"""Operators that take at least this share of the plan's time are split together."""

FOLLOW = ("elementwise", "norm", "pool", "view", "copy")
"""Classes of operators that are split with their neighbours, to spare a join."""

WORTH = 0.01
"""Share by which a plan with splits must be better than one without."""


def with_splits(problem: Problem, splits: Splits) -> Problem:
    """The problem with operators split.

    A part's time is its operator's times the cost model's ratio of the two, so that measured times
    carry over; joins take the model's, corrected by the device's measured over predicted total.

    Raises:
        ValueError: an operator cannot be cut so, or the problem's transfer times are literal.
    """
    if not splits:
        return problem
    if problem.costs.transfers or problem.costs.ends:
        raise ValueError("splits need transfer times from links; this problem's are literal")
    graph = split_graph(problem.graph, splits)
    costs = _costs(problem, graph, splits)
    return replace(problem, graph=graph, costs=costs)


def _costs(problem: Problem, graph: Graph, splits: Splits) -> CostTable:
    known = problem.costs
    base, predicted = (cost_table(g, problem.cluster) for g in (problem.graph, graph))
    row = problem.op_index
    listed = steps(problem.graph, splits)
    source = np.array([row.get(step.source, 0) for step in listed])
    of_one = np.array([step.role in ("keep", "part") for step in listed])[:, None]
    there = np.isfinite(base.seconds) & (base.seconds > 0)
    total = np.where(there, known.seconds, 0).sum(0) / np.where(there, base.seconds, 0).sum(0)
    usable = there[source] & np.isfinite(known.seconds[source])
    before = np.where(usable, known.seconds[source], 1) / np.where(usable, base.seconds[source], 1)
    factor = np.where(of_one & usable, before, np.where(np.isfinite(total), total, 1.0))
    seconds = np.where(of_one & np.isinf(known.seconds[source]), np.inf, predicted.seconds * factor)
    finite = np.isfinite(seconds)
    provenance = {
        device: replace(
            p, source=f"{p.source}; parts of split operators: in proportion to the cost model"
        )
        for device, p in known.provenance.items()
    }
    return replace(
        known,
        provenance=provenance if _is_measured(known) else known.provenance,
        seconds=seconds,
        low_s=np.where(finite, predicted.low_s * factor, np.inf),
        high_s=np.where(finite, predicted.high_s * factor, np.inf),
        common=np.where(of_one, known.common[source], predicted.common),
    )


def _is_measured(costs: CostTable) -> bool:
    return any(p.level == "measured" for p in costs.provenance.values())


def candidates(problem: Problem, plan: Plan) -> Iterator[Splits]:
    """Splits worth a try, the fewest operators first: by columns, heads and channels, or batch."""
    graph, seconds = problem.graph, problem.seconds
    at = np.array([problem.device_index[plan.placement[op.name]] for op in graph.ops])
    taken = np.take_along_axis(seconds, at[:, None], axis=1)[:, 0]
    whole_s = float(taken.sum()) / len(plan.devices)
    free = [op.name not in problem.pinned for op in graph.ops]
    tried: set[tuple[tuple[str, Split], ...]] = set()
    counts = sorted({2, 4, len(problem.cluster.devices)} & set(range(2, seconds.shape[1] + 1)))
    for share in SHARES:
        heavy = {
            op.name
            for op, s, may in zip(graph.ops, taken, free, strict=True)
            if may and s >= share * whole_s
        }
        for parts in counts:
            for inner in (True, False):
                splits = _along(graph, heavy, inner, parts)
                key = tuple(splits.items())
                if splits and key not in tried:
                    tried.add(key)
                    yield splits


def _along(graph: Graph, heavy: set[str], inner: bool, parts: int) -> dict[str, Split]:
    """Splits of the heavy operators, and of neighbours that read nothing but their parts."""
    splits: dict[str, Split] = {}
    for op in graph.ops:
        if len(op.outputs) != 1:
            continue
        rank = len(op.outputs[0].shape)
        last = {"matmul": rank - 1, "attention": rank - 3, "conv": 1}.get(op.kind)
        found = [splits[p] for p in map(graph.producer.get, op.inputs) if p in splits]
        if op.name in heavy and last is not None:
            split = Split(last if inner else 0, parts)
        elif found and op.kind in FOLLOW:
            split = found[0]
        else:
            continue
        cut = cut_of(graph, op, split)
        if cut and (op.name in heavy or _aligned(graph, op.inputs, cut, splits, parts)):
            splits[op.name] = split
    return splits


def _aligned(graph: Graph, inputs: tuple[str, ...], cut: Cut, splits: Splits, parts: int) -> bool:
    """Whether every input that is cut comes in just these parts."""
    return all(
        dim is None or splits.get(graph.producer.get(tensor, "")) == Split(dim, parts)
        for tensor, dim in zip(inputs, cut.inputs, strict=True)
    )


def may_split(problem: Problem) -> bool:
    """Whether splits are tried: no training, several devices, times of transfers from links."""
    literal = problem.costs.transfers or problem.costs.ends
    several = len(problem.cluster.devices) > 1
    return several and not literal and problem.graph.mode != "training"


def split_where_it_pays(
    problem: Problem,
    solution: Solution,
    algorithm: str,
    deadline_s: float,
    valued: Callable[[Problem, Solution], Solution] = lambda _, solution: solution,
) -> tuple[Problem, Solution]:
    """Try splits until the deadline (`time.perf_counter`); returns the best problem and solution.

    The bound and the gap of a plan with splits are those of the problem so split. `valued` says
    what plans are worth in the end, where that is more than one run of the graph.
    """
    best = problem, solution
    for splits in candidates(problem, solution.best):
        if time.perf_counter() >= deadline_s:
            break
        varied = with_splits(problem, splits)
        try:
            found = solve(varied, algorithm)
            plans = tuple(replace(plan, splits=splits) for plan in found.plans)
            found = valued(varied, replace(found, best=plans[0], plans=plans))
        except InfeasibleError:
            continue
        if found.best.value < best[1].best.value * (1 - WORTH):
            best = varied, found
    return best
