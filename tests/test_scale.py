from dataclasses import replace

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_graph, make_op, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_list_scheduling import problems

from benchmarks.deep_decoder import cluster_of, decoder
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError
from scheduler.bounds.load_bound import load_bound
from scheduler.bounds.lower_bound import lower_bound
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.ir.graph import Graph, sharing_weights
from scheduler.large.multilevel import coarse_splits, multilevel
from scheduler.large.portfolio import LARGE, list_schedules
from scheduler.large.refine import refine
from scheduler.large.two_sides import two_sides
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.throughput.even_split import crossing, split_evenly


def planned(problem, place):
    plan = finish_plan(problem, place.__name__, place(problem), 0.0, lower_bound(problem))
    assert check_plan(problem, plan) == []
    assert plan.lower_bound <= plan.value * (1 + 1e-9)
    return plan


def decoder_problem(num_layers, training, num_devices, objective):
    graph, cluster = decoder(num_layers, training), cluster_of(num_devices)
    colocated = sharing_weights(graph) if training else ()
    return Problem(graph, cluster, cost_table(graph, cluster), objective, colocated=colocated)


def test_multilevel_balances_a_deep_decoder_over_two_kinds_of_devices():
    problem = decoder_problem(200, False, 16, "throughput")
    assert len(problem.graph.ops) > LARGE
    plan = planned(problem, multilevel)
    assert len(plan.devices) == len(plan.stages) == 16
    assert plan.gap < 0.2


def test_multilevel_lays_the_backward_pass_beside_the_forward_pass():
    """Pipelined as in PipeDream: a device holds layers forward and backward."""
    problem = decoder_problem(40, True, 16, "throughput")
    problem = replace(problem, graph=replace(problem.graph, mode="inference"))
    plan = planned(problem, multilevel)
    assert plan.gap < 0.25
    assert len(plan.stages) < 12 * 16


def test_two_sides_trade_what_suits_the_other_kind_of_device():
    """Every second stretch of ten is slow on b: contiguous parts take 286 s, mixed ones 200."""
    seconds = np.array(([[1.0, 4.0]] * 10 + [[1.0, 1.0]] * 10) * 20)
    problem = make_problem(make_chain(400), seconds, make_cluster(bytes_per_s=100.0))
    plan = planned(problem, two_sides)
    assert plan.value < 204 < 280 < planned(problem, multilevel).value
    assert plan.gap < 0.02


def test_priced_moves_lower_the_load_and_keep_classes_and_memory(monkeypatch):
    monkeypatch.setattr("scheduler.large.portfolio.LARGE", 100)
    seconds = np.array(([[1.0, 4.0]] * 10 + [[1.0, 1.0]] * 10) * 20)
    problem = make_problem(
        make_chain(400), seconds, make_cluster(bytes_per_s=100.0),
        colocated=tuple((f"o{i}", f"o{i + 1}") for i in range(0, 400, 2)),
    )  # fmt: skip
    told = []
    plans = solve(problem, time_limit_s=1.0, tell=lambda *pair: told.append(pair)).plans
    moved = next(plan for plan in plans if plan.algorithm == "priced_moves")
    assert check_plan(problem, moved) == []
    assert moved.value <= min(plan.value for plan in plans)
    assert moved.lower_bound <= moved.value
    assert all(value >= moved.value * (1 - 1e-9) for value, _ in told)


@settings(max_examples=40, deadline=None)
@given(problems(most=10))
def test_two_sides_keep_pins_classes_and_memory(problem):
    problem = replace(problem, objective="throughput")
    try:
        planned(problem, two_sides)
    except InfeasibleError:
        return


def test_list_schedules_never_lose_to_the_fastest_device():
    problem = decoder_problem(20, True, 16, "latency")
    alone_s = problem.seconds.sum(axis=0).min()
    assert planned(problem, list_schedules).value <= alone_s


def test_auto_takes_near_linear_algorithms_for_a_large_graph():
    problem = decoder_problem(200, False, 8, "throughput")
    solution = solve(problem, time_limit_s=1.0)
    assert solution.best.algorithm in ("multilevel", "priced_moves")
    assert {plan.algorithm.split(":")[0] for plan in solution.plans} <= {
        "multilevel", "single_device", "memory_fill", "contiguous", "heft", "priced_moves",
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_split_evenly_is_the_best_split_of_a_chain(data):
    times = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=8))
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=len(times), max_size=len(times)))
    speeds = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    names = "abc"[: len(speeds)]
    graph = make_chain(len(times))
    ops = tuple(
        replace(op, outputs=(replace(op.outputs[0], shape=(1, size)),))
        for op, size in zip(graph.ops, sizes, strict=True)
    )
    seconds = np.outer(times, speeds)
    problem = make_problem(
        replace(graph, ops=ops), seconds, make_cluster(names, bytes_per_s=4.0, latency_s=0.0)
    )
    arrays, sequence = problem.arrays, np.arange(len(names))
    device = split_evenly(arrays, sequence)
    n = len(times)
    best = np.inf
    for cuts in np.ndindex(*(n + 1,) * (len(names) - 1)):
        if list(cuts) == sorted(cuts):
            best = min(best, _loads(times, sizes, speeds, (0, *cuts, n)))
    assert arrays.loads(device).max() == pytest.approx(best)
    assert arrays.loads(refine(arrays, device, sequence)).max() <= best * (1 + 1e-9)


def _loads(times, sizes, speeds, cuts):
    worst = 0.0
    for d, speed in enumerate(speeds):
        worst = max(worst, speed * sum(times[cuts[d] : cuts[d + 1]]))
    for cut in set(cuts[1:-1]) - {0, len(times)}:
        worst = max(worst, float(sizes[cut - 1]))
    return worst


def test_crossing_counts_a_tensor_at_every_cut_between_its_ends():
    problem = make_problem(make_graph({"a": [], "b": ["a"], "c": ["a", "b"]}), np.ones((3, 2)))
    assert crossing(problem.arrays, np.array([10.0, 1.0])).tolist() == [0, 10, 11, 0]


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_load_bound_is_the_linear_programme_s(kinds):
    rng = np.random.default_rng(kinds)
    seconds = rng.uniform(1, 5, (30, kinds))[:, np.arange(6) % kinds]
    seconds[3, 1] = np.inf
    problem = make_problem(make_chain(30), seconds, make_cluster("abcdef"))
    assert load_bound(problem) == pytest.approx(_linear_programme(seconds), rel=1e-5)


def _linear_programme(seconds):
    from scipy.optimize import linprog

    n, d = seconds.shape
    never = ~np.isfinite(seconds.ravel())
    busy = np.hstack(
        [
            np.where(never, 0.0, seconds.ravel()) * (np.arange(n * d) % d == k)[None]
            for k in range(d)
        ]
    )
    load = np.column_stack([busy.reshape(d, n * d), -np.ones(d)])
    once = np.column_stack([np.kron(np.eye(n), np.ones(d)), np.zeros(n)])
    bounds = [(0, 0.0 if no else None) for no in never] + [(0, None)]
    cost = np.append(np.zeros(n * d), 1.0)
    return linprog(cost, load, np.zeros(d), once, np.ones(n), bounds).fun


def isolated(count):
    ops = tuple(make_op(f"o{i}", ["x"]) for i in range(count))
    return replace(make_chain(1), ops=ops, outputs=())


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_a_hundred_thousand_isolated_operators_with_equal_times(objective):
    problem = make_problem(
        isolated(100_000), np.ones((100_000, 4)), make_cluster("abcd"), objective=objective
    )
    plan = solve(problem).best
    assert plan.value == pytest.approx(25_000)
    assert plan.gap == pytest.approx(0.0, abs=1e-9)


def test_ties_are_broken_alike_every_time():
    graph = make_graph({f"o{i}": [f"o{i - 7}"] if i >= 7 else [] for i in range(LARGE + 1)})
    problem = make_problem(graph, np.ones((len(graph.ops), 3)), make_cluster("abc"))
    assert multilevel(problem) == multilevel(replace(problem))
    problem = replace(problem, objective="latency")
    assert list_schedules(problem) == list_schedules(replace(problem))


def test_a_graph_of_one_operator_and_of_none():
    problem = make_problem(make_chain(1), [[2.0, 1.0]])
    for objective in ("throughput", "latency"):
        plan = solve(replace(problem, objective=objective)).best
        assert (plan.value, plan.gap, plan.devices) == (1.0, 0.0, ["b"])
    with pytest.raises(ValueError, match="graph 'empty' has no operators"):
        Graph("empty", (), (), ())


def apart(memory_bytes):
    """Devices a and b with no link between them."""
    joined = make_cluster(memory_bytes=memory_bytes)
    return Cluster("apart", joined.devices)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
@pytest.mark.parametrize("length", [3, LARGE + 1])
def test_devices_without_a_link_do_what_needs_none(objective, length):
    problem = make_problem(make_chain(length), np.ones((length, 2)), apart(10**6))
    plan = solve(replace(problem, objective=objective)).best
    assert len(plan.devices) == 1
    assert plan.value == length


def test_devices_that_serialise_without_a_link_are_refused_as_others_are():
    cluster = Cluster("apart", make_cluster("abc", memory_bytes=500).devices)
    problem = make_problem(
        make_chain(4, out_bytes=400), np.ones((4, 3)), cluster, communication="serialised"
    )
    with pytest.raises(InfeasibleError):
        solve(problem)


def test_devices_without_a_link_use_both_for_graphs_in_two_parts():
    parents = {f"{part}{i}": [f"{part}{i - 1}"] if i else [] for part in "pq" for i in range(4)}
    problem = make_problem(make_graph(parents), np.ones((8, 2)), apart(10**6))
    assert solve(problem).best.value == 4.0


def test_isolated_operators_need_no_link_and_fill_every_device():
    """Memory alone makes the first split uneven: 3, 3, 2."""
    cluster = Cluster("apart", make_cluster("abcd", memory_bytes=3).devices)
    ops = tuple(replace(op, weights={op.name: 1}) for op in isolated(8).ops)
    graph = replace(isolated(8), ops=ops)
    problem = make_problem(graph, np.ones((8, 4)), cluster, memory_headroom=0.0)
    split = split_evenly(problem.arrays, np.arange(4))
    assert problem.arrays.loads(split).max() == 2.0


@pytest.mark.parametrize("length", [4, LARGE + 1])
def test_devices_without_a_link_are_named_where_a_plan_needs_one(length):
    weights = [{f"w{i}": 100} for i in range(length)]
    graph = make_chain(length)
    ops = tuple(replace(op, weights=w) for op, w in zip(graph.ops, weights, strict=True))
    problem = make_problem(
        replace(graph, ops=ops), np.ones((length, 2)), apart(70 * length), memory_headroom=0.0
    )
    for objective in ("throughput", "latency"):
        with pytest.raises(InfeasibleError, match="no link between 'a' and 'b'"):
            solve(replace(problem, objective=objective))


def test_coarse_splits_keep_colocated_operators_together():
    length = 3 * LARGE // 2
    colocated = tuple((f"o{i}", f"o{length - 1 - i}") for i in range(100))
    problem = make_problem(make_chain(length), np.ones((length, 2)), colocated=colocated)
    for split in coarse_splits(problem, problem.arrays):
        device = split.projected()
        assert (device[:100] == device[::-1][:100]).all()
