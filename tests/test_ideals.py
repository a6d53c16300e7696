import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_graph, make_problem
from hypothesis import given, settings
from test_throughput import arrays

from hardware.errors import InfeasibleError
from scheduler.arrays import kinds
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.ir.instances import read_instance
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.throughput import ideals as module
from scheduler.throughput.ideal_sets import enumerate_ideals
from scheduler.throughput.ideals import ideal_split, ideals, ideals_beam

PUBLISHED = Path(__file__).parents[2] / "shared/data/placement/dnn-partitioning/throughput"
needs_files = pytest.mark.skipif(not PUBLISHED.exists(), reason="published instances not here")


def forward(problem):
    return np.zeros(problem.num_ops, dtype=bool)


def topological(problem):
    for order in itertools.permutations(range(problem.num_ops)):
        place = {u: k for k, u in enumerate(order)}
        if all(place[a] < place[b] for a, b in zip(*problem.edges, strict=True)):
            yield list(order)


def best_contiguous(problem):
    """Every cut of every topological order, on every sequence of devices."""
    best, n, d = np.inf, problem.num_ops, problem.num_devices
    for order in topological(problem):
        for num in range(1, min(n, d) + 1):
            for cuts in itertools.combinations(range(1, n), num - 1):
                for devices in itertools.permutations(range(d), num):
                    device = np.empty(n, dtype=np.int64)
                    for k, (a, b) in enumerate(itertools.pairwise([0, *cuts, n])):
                        device[order[a:b]] = devices[k]
                    apart = any(
                        len(set(device[problem.unit == u])) > 1 for u in range(problem.num_units)
                    )
                    fits = (problem.held_bytes(device) <= problem.limit_bytes).all()
                    if fits and not apart:
                        best = min(best, float(problem.loads(device).max()))
    return best


@settings(max_examples=60, deadline=None)
@given(arrays(most=5))
def test_equals_brute_force_over_all_contiguous_splits(problem):
    best = best_contiguous(problem)
    try:
        device = ideal_split(problem, forward(problem), 10_000, exact=True)
    except InfeasibleError:
        assert best == np.inf
        return
    load = float(problem.loads(device).max())
    if problem.serialised or problem.num_tensors == 0:
        assert load == pytest.approx(best)
    else:
        assert load >= best * (1 - 1e-9)  # tensors that skip a stage are charged at every cut


@settings(max_examples=30, deadline=None)
@given(arrays())
def test_beam_is_contiguous_in_some_order_and_never_beats_the_exact_split(problem):
    try:
        exact = ideal_split(problem, forward(problem), 10_000, exact=True)
    except InfeasibleError:
        return
    some = ideal_split(problem, forward(problem), 2, exact=False)
    if problem.serialised:
        assert problem.loads(some).max() >= problem.loads(exact).max() * (1 - 1e-9)


@pytest.mark.parametrize(
    ("before", "count"),
    [([[], [0], [1]], 4), ([[], [], []], 8), ([[], [0], [0], [1, 2]], 6), ([[i - 1] if i else []
     for i in range(70)], 71)],
)  # fmt: skip
def test_number_of_ideals(before, count):
    sets = enumerate_ideals(before, 1000)
    assert len(np.unique(sets, axis=0)) == len(sets) == count
    assert enumerate_ideals(before, count - 1) is None


def test_a_split_that_no_given_order_shows():
    """Two chains of three; the heavy ends of both belong on the fast device's side."""
    parents = {f"{c}{i}": [f"{c}{i - 1}"] if i else [] for i in range(3) for c in "pq"}
    graph = make_graph(parents, out_bytes=4)
    seconds = [[1.0, 1.0], [1.0, 1.0], [4.0, 1.0], [1.0, 4.0], [4.0, 1.0], [1.0, 4.0]]
    problem = make_problem(graph, seconds, make_cluster(bytes_per_s=4.0))
    device = ideals(problem)
    assert {device[name] for name in ("q1", "q2", "q0")} == {"a"}
    assert {device["p1"], device["p2"]} == {"b"}
    plan = finish_plan(problem, "ideals", device, 0.0, 0.0)
    assert check_plan(problem, plan) == []
    assert plan.value == 3.0


def test_too_many_ideals_is_said_and_the_beam_answers(monkeypatch):
    monkeypatch.setattr(module, "MOST_IDEALS", 50)
    problem = make_problem(make_graph({f"o{i}": [] for i in range(12)}), np.ones((12, 2)))
    with pytest.raises(InfeasibleError, match=r"too many downward-closed sets.*take ideals_beam"):
        ideals(problem)
    assert solve(problem, "ideals_beam").best.value == 6.0


def test_colocated_backward_operators_follow_their_forward_ones():
    parents = {"f0": [], "f1": ["f0"], "b1": ["f1"], "b0": ["b1"]}
    graph = make_graph(parents)
    ops = tuple(
        op if op.name[0] == "f" else type(op)(**{**op.__dict__, "phase": "backward"})
        for op in graph.ops
    )
    graph = type(graph)(graph.name, ops, graph.inputs, graph.outputs)
    problem = make_problem(
        graph, np.ones((4, 2)), colocated=(("f0", "b0"), ("f1", "b1")), communication="serialised"
    )
    assert len(set(ideals(problem).values())) == 2


def test_chain_over_unequal_devices_and_memory():
    problem = make_problem(make_chain(6, weights={}), np.column_stack([np.ones(6), 2 * np.ones(6)]))
    assert solve(problem, "ideals").best.value == 4.0
    assert [len(group) for group in kinds(problem.arrays)] == [1, 1]


@needs_files
@pytest.mark.parametrize(
    ("name", "contiguous"),
    [
        ("LayerGraphs/bert24_inference", 17.7899),
        ("LayerGraphs/bert24_training", 41.7458),
        ("LayerGraphs/gnmt_inference", 32.9107),
        ("LayerGraphs/resnet50_inference", 33.7747),
        ("OperatorGraphs/bert_l-3_inference", 27.9186),
        ("OperatorGraphs/bert_l-3_training", 65.3031),
        ("OperatorGraphs/bert_l-6_inference", 29.5795),
        ("OperatorGraphs/resnet50_inference", 124.349),
        ("OperatorGraphs/resnet50_training", 255.194),
    ],
)
def test_equals_the_authors_exact_contiguous_split(name, contiguous):
    read = read_instance(PUBLISHED / f"{name}.json")
    problem = Problem(
        read.graph, read.cluster, read.costs, memory_headroom=0.0, colocated=read.colocated,
        communication="serialised",
    )  # fmt: skip
    for algorithm in (ideals, ideals_beam):
        device = algorithm(problem)
        placed = np.array([problem.device_index[device[op.name]] for op in problem.graph.ops])
        assert problem.arrays.loads(placed).max() == pytest.approx(contiguous, rel=1e-5)
