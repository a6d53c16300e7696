import time
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from conftest import make_cluster, make_graph, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError
from scheduler.bounds.lower_bound import lower_bound
from scheduler.bounds.relaxation_bound import relaxation_bound
from scheduler.evaluation.evaluate import finish_plan
from scheduler.latency.makespan import makespan_of
from scheduler.list_scheduling.tasks import tasks_of
from scheduler.portfolio import solve


@st.composite
def problems(draw, objectives=("throughput", "latency"), most=5):
    """Short of memory, with shared weights, states, pins, forbidden devices and colocation."""
    n, names = draw(st.integers(1, most)), "abc"[: draw(st.integers(2, 3))]
    parents = {
        f"o{i}": [f"o{j}" for j in range(i) if draw(st.integers(0, 2)) == 0] for i in range(n)
    }
    graph = make_graph(parents, out_bytes=draw(st.sampled_from([4, 400])))
    trains = draw(st.booleans())
    ops = []
    turn = draw(st.integers(1, n)) if trains else n
    for i, op in enumerate(graph.ops):
        used = draw(st.lists(st.sampled_from("uvwxyz"), max_size=2, unique=True))
        size = {w: 400 * (1 + "uvwxyz".index(w)) for w in used}
        is_read = any(op.name in above for above in parents.values())
        phase = "forward" if i < turn else "backward"
        reads_gradients = parents[op.name] and all(int(j[1:]) >= turn for j in parents[op.name])
        if reads_gradients and not is_read and draw(st.booleans()):
            phase = "optimizer"
        ops.append(
            replace(op, weights=size, state_bytes=draw(st.sampled_from([0, 300])), phase=phase)
        )
    graph = replace(graph, ops=tuple(ops), mode="training" if trains else graph.mode)
    medium = draw(st.sampled_from(["", "bus"]))
    cluster = make_cluster(names, draw(st.sampled_from([1e2, 1e4])), 0.01, 10**4, medium)
    limits = st.sampled_from([1000, 2000, 3000, 10**4])
    kinds = st.sampled_from(["gpu", "cpu"])
    devices = {
        name: replace(device, kind=draw(kinds), memory_bytes=draw(limits))
        for name, device in cluster.devices.items()
    }
    figure = st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0])
    same = draw(st.booleans())
    rows = [[draw(figure)] * len(names) if same else [draw(figure) for _ in names] for _ in ops]
    some, other = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    return make_problem(
        graph, rows, replace(cluster, devices=devices),
        objective=draw(st.sampled_from(objectives)),
        communication=draw(st.sampled_from(["overlapped", "serialised"])),
        pins={f"o{some}": names[-1]} if draw(st.booleans()) else {},
        forbidden={f"o{other}": ("a",)} if draw(st.booleans()) else {},
        colocated=((f"o{some}", f"o{other}"),) if some != other and draw(st.booleans()) else (),
        num_micro_batches=draw(st.sampled_from([1, 2])), memory_headroom=0.0,
    )  # fmt: skip


def least_value(problem):
    """The least value of any placement; for latency and one micro-batch in any order."""
    best, names, ops = np.inf, problem.costs.devices, problem.graph.ops
    for device in product(range(len(names)), repeat=int(problem.unit.max()) + 1):
        at = np.array(device)[problem.unit]
        placed = {op.name: names[p] for op, p in zip(ops, at, strict=True)}
        try:
            best = min(best, finish_plan(problem, "all", placed, 0.0, 0.0).value)
        except InfeasibleError:
            continue
        if problem.objective == "latency" and problem.num_micro_batches == 1:
            best = min(best, least_makespan(problem, at))
    return best


def least_makespan(problem, at):
    """The least makespan (s) of a placement over all orders."""
    tasks, edges = tasks_of(problem), list(zip(*problem.arrays.edges, strict=True))
    orders = [
        order
        for order in permutations(range(len(at)))
        if all(order.index(i) < order.index(j) for i, j in edges)
    ]
    return min(makespan_of(tasks, at, np.array(order)) for order in orders)


@settings(max_examples=25, deadline=None)
@given(problems(most=4))
def test_bounds_hold_where_memory_is_short(problem):
    best = least_value(problem)
    try:
        assert lower_bound(problem) <= best * (1 + 1e-9)
    except InfeasibleError:
        assert best == np.inf


def test_a_row_of_runs_pays_for_what_does_not_fit():
    """Three operators of 400 bytes and 1 s, two of which fit on a device: one transfer of 2 s."""
    graph = make_graph({"a": [], "b": ["a"], "c": ["b"]}, out_bytes=4)
    ops = tuple(replace(op, weights={f"w_{op.name}": 400}) for op in graph.ops)
    cluster = make_cluster(latency_s=2.0, memory_bytes=1000)
    problem = make_problem(replace(graph, ops=ops), [[1.0, 1.0]] * 3, cluster, objective="latency")
    assert lower_bound(problem) == pytest.approx(5.0)
    one = replace(problem, colocated=(("a", "b"), ("b", "c")))
    assert lower_bound(one) == pytest.approx(3.0)  # fits nowhere: no plan, and no bound of memory


def test_bytes_that_fast_devices_cannot_hold_take_the_time_of_slow_ones():
    """A tenth of ten operators of 100 bytes has to run ten times slower: 9 + 10 s, not 10."""
    graph = make_graph({f"o{i}": [f"o{i - 1}"] if i else [] for i in range(10)}, out_bytes=4)
    ops = tuple(replace(op, weights={f"w_{op.name}": 100}) for op in graph.ops)
    cluster = make_cluster("ab", bytes_per_s=1e12)
    fast = replace(cluster.devices["a"], memory_bytes=1000)  # 900 with the headroom
    cluster = replace(cluster, devices={"a": fast, "b": cluster.devices["b"]})
    seconds = [[1.0, 10.0]] * 10
    for objective, bound, by in (("latency", 19.0, "path"), ("throughput", 10.0, "loads")):
        problem = make_problem(replace(graph, ops=ops), seconds, cluster, objective=objective)
        assert lower_bound(problem) == pytest.approx(bound)
        assert solve(problem).best.bound_by == by


def best_relaxation(problem, value_s):
    return relaxation_bound(problem, value_s, 0.0, time.perf_counter() + 300)


@settings(max_examples=20, deadline=None)
@given(problems(objectives=("latency",), most=4), st.floats(1.0, 2.0))
def test_the_relaxation_is_below_every_schedule(problem, above):
    best = least_value(problem)
    value_s = best * above if best < np.inf else 100.0
    assert best_relaxation(problem, value_s) <= best * (1 + 1e-9)


def test_a_load_waits_for_what_comes_before_it_and_after_it():
    """One operator, six beside each other on two devices, and one: 1 + 3 + 1 s, not 4 or 3."""
    inner = [f"o{i}" for i in range(1, 7)]
    graph = make_graph({"o0": [], **{name: ["o0"] for name in inner}, "o7": inner}, out_bytes=4)
    problem = make_problem(graph, np.ones((8, 2)), objective="latency")
    assert lower_bound(problem) == pytest.approx(4.0)
    assert best_relaxation(problem, 6.0) == pytest.approx(5.0)
