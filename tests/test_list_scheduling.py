import time
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from conftest import make_cluster, make_graph, make_op, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.cluster import Cluster
from scheduler.bounds.longest_paths import heads, tails
from scheduler.bounds.lower_bound import lower_bound
from scheduler.bounds.modules import cuts, forced_load
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.timeline import makespan, stage_timeline
from scheduler.ir.graph import Graph, Tensor
from scheduler.latency.by_clock import run_by_clock
from scheduler.latency.in_order import keep, media_are_private, room_for, run_in_order
from scheduler.latency.makespan import makespan_of, simulate
from scheduler.latency.placed import no_times, ordered
from scheduler.latency.portfolio import compile_loops, latency
from scheduler.latency.search import _best_list, _improved
from scheduler.latency.series import series_schedule
from scheduler.list_scheduling.cpop import cpop_schedule
from scheduler.list_scheduling.heft import by_rank, heft_schedule, upward_ranks
from scheduler.list_scheduling.m_etf import earliest_task, m_etf_schedule
from scheduler.list_scheduling.m_sct import favourites, m_sct_schedule
from scheduler.list_scheduling.peft import optimistic_costs, peft_schedule
from scheduler.list_scheduling.tasks import fits, tasks_of
from scheduler.plan import cut_runs
from scheduler.portfolio import ALGORITHMS

# Topcuoglu, Hariri, Wu 2002, figure 2: computation costs and communication costs of ten tasks.
HEFT_W = [
    [14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10],
    [13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16],
]  # fmt: skip
HEFT_C = {
    (0, 1): 18, (0, 2): 12, (0, 3): 9, (0, 4): 11, (0, 5): 14, (1, 7): 19, (1, 8): 16, (2, 6): 23,
    (3, 7): 27, (3, 8): 23, (4, 8): 13, (5, 7): 15, (6, 9): 17, (7, 9): 11, (8, 9): 13,
}  # fmt: skip


# Arabnejad, Barbosa 2014, figure 1.
PEFT_W = [
    [22, 21, 36], [22, 18, 18], [32, 27, 43], [7, 10, 4], [29, 27, 35],
    [26, 17, 24], [14, 25, 30], [29, 23, 36], [15, 21, 8], [13, 16, 33],
]  # fmt: skip
PEFT_C = {
    (0, 1): 17, (0, 2): 31, (0, 3): 29, (0, 4): 13, (0, 5): 7, (1, 7): 3, (1, 8): 30, (2, 6): 16,
    (3, 7): 11, (3, 8): 7, (4, 8): 57, (5, 7): 5, (6, 9): 9, (7, 9): 42, (8, 9): 7,
}  # fmt: skip


def literal(w, c, **changes):
    """A problem with literal transfer times: a tensor of its own for every edge."""
    ops = []
    for i in range(len(w)):
        op = make_op(f"o{i}", [f"t{j}_{k}" for j, k in c if k == i] or ["x"])
        made = [f"t{j}_{k}" for j, k in c if j == i] or [f"t{i}"]
        ops.append(replace(op, outputs=tuple(Tensor(t, (1,), "float32") for t in made)))
    last = tuple(f"t{i}" for i in range(len(w)) if all(j != i for j, _ in c))
    graph = Graph("test", tuple(ops), (Tensor("x", (1,), "float32"),), last)
    names = "abcdefgh"[: len(w[0])]
    cluster = Cluster("no links", make_cluster(names).devices)
    problem = make_problem(graph, w, cluster, objective="latency", **changes)
    away = 1 - np.eye(len(names))
    moves = {f"t{i}_{j}": seconds * away for (i, j), seconds in c.items()}
    return replace(problem, costs=replace(problem.costs, transfers=moves))


def end_of(tasks, schedule):
    device, start = schedule(tasks)
    return max(start + tasks.w[np.arange(len(start)), device])


def test_heft_ranks_and_order_of_the_paper():
    tasks = tasks_of(literal(HEFT_W, HEFT_C))
    rank = upward_ranks(tasks)
    assert rank.round(3).tolist() == [108, 77, 80, 80, 69, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert by_rank(tasks, rank).tolist() == [0, 2, 3, 1, 4, 5, 8, 6, 7, 9]


@pytest.mark.parametrize(
    ("w", "c", "schedule", "makespan"),
    [
        (HEFT_W, HEFT_C, heft_schedule, 80),
        (HEFT_W, HEFT_C, cpop_schedule, 86),
        (PEFT_W, PEFT_C, heft_schedule, 133),
        (PEFT_W, PEFT_C, peft_schedule, 122),
    ],
)
def test_makespans_of_the_papers(w, c, schedule, makespan):
    assert end_of(tasks_of(literal(w, c)), schedule) == makespan


def test_optimistic_costs_of_the_paper():
    assert optimistic_costs(tasks_of(literal(PEFT_W, PEFT_C))).tolist() == [
        [64, 68, 86], [42, 39, 42], [27, 41, 43], [42, 39, 50], [28, 37, 28],
        [42, 39, 44], [13, 16, 22], [13, 16, 33], [13, 16, 20], [0, 0, 0],
    ]  # fmt: skip


def with_memory(problem, num_bytes, limit_bytes):
    """Tasks that hold `num_bytes` each, on devices of `limit_bytes`."""
    ops = tuple(
        replace(op, weights={f"w_{op.name}": size})
        for op, size in zip(problem.graph.ops, num_bytes, strict=True)
    )
    tasks = tasks_of(replace(problem, graph=replace(problem.graph, ops=ops)))
    return tasks._replace(limit_bytes=np.full(tasks.w.shape[1], float(limit_bytes)))


# Jeon et al. 2020, the paper's example graph (dummy_graphs.py of the authors' BaechiPyTorch).
BAECHI_S, BAECHI_BYTES = [1, 3, 3, 3, 1, 1], [1, 2, 2, 1, 1, 1]
BAECHI_C = {(0, 1): 1, (0, 3): 1, (1, 2): 1, (2, 5): 1, (3, 4): 1, (4, 5): 1}


@pytest.mark.parametrize("schedule", [m_etf_schedule, m_sct_schedule])
def test_baechi_pays_for_memory_with_time(schedule):
    """Two devices: the branch of 3 and 3 s stays on one in 8 s; with 4 units each it is parted."""
    problem = literal([[s, s] for s in BAECHI_S], BAECHI_C)
    roomy, scarce = (with_memory(problem, BAECHI_BYTES, limit) for limit in (8, 4))
    assert end_of(roomy, schedule) == 8
    assert schedule(roomy)[0].tolist() == [0, 0, 0, 1, 1, 0]  # 6 units on one: does not fit 4
    device, start = schedule(scarce)
    assert np.bincount(device, BAECHI_BYTES).tolist() == [4, 4]
    assert device.tolist() == [0, 0, 1, 1, 0, 1]
    assert start.tolist() == [0, 1, 5, 2, 6, 8]


@pytest.mark.parametrize(
    ("seconds", "num_bytes", "c", "favourite", "device", "start"),
    [
        ([2, 3, 5], [5, 6, 2], {(0, 2): 1, (1, 2): 3}, [-1, -1, -1], [0, 1, 1], [0, 0, 3]),
        ([2, 5, 3], [5, 3, 2], {(0, 1): 3, (0, 2): 1}, [1, -1, -1], [0, 0, 1], [0, 2, 3]),
        ([2, 3, 3], [5, 3, 2], {(0, 2): 2, (1, 2): 1}, [-1, 2, -1], [0, 1, 0], [0, 0, 4]),
        ([2, 3, 3], [5, 3, 2], {(0, 2): 2, (1, 2): 1}, [2, -1, -1], [0, 1, 0], [0, 0, 4]),
    ],
)
def test_schedules_of_baechi_s_own_tests(seconds, num_bytes, c, favourite, device, start):
    """Two devices of 10 units (m_etf_v1_test.py and m_sct_v1_test.py of BaechiPyTorch)."""
    tasks = with_memory(literal([[s, s] for s in seconds], c), num_bytes, 10)
    found = earliest_task(tasks, np.array(favourite))
    assert [part.tolist() for part in found] == [device, start]


def test_m_sct_keeps_a_device_free_for_the_favourite_child():
    # o0 -> o1 (1 s) and o0 -> o2 (3 s), a transfer takes 1 s: only w = 4 with x_02 = 0 is least.
    # m-ETF starts o1 first, as it comes first: 1 + 1 + 3. m-SCT keeps device a for o2: 1 + 3.
    tasks = tasks_of(literal([[1, 1], [1, 1], [3, 3]], {(0, 1): 1, (0, 2): 1}))
    assert favourites(tasks).tolist() == [2, -1, -1]
    assert end_of(tasks, m_etf_schedule) == 5
    assert end_of(tasks, m_sct_schedule) == 4


@st.composite
def problems(draw, most=10):
    n = draw(st.integers(1, most))
    parents = {
        f"o{i}": [f"o{j}" for j in range(i) if draw(st.integers(0, 3)) == 0] for i in range(n)
    }
    names = "abc"[: draw(st.integers(1, 3))]
    seconds = [[draw(st.floats(0.1, 10)) for _ in names] for _ in range(n)]
    cluster = make_cluster(names, draw(st.floats(5, 1e3)), draw(st.floats(0, 1)), 10_000)
    cluster = replace(
        cluster,
        devices={
            name: replace(device, kind=draw(st.sampled_from(["gpu", "cpu"])))
            for name, device in cluster.devices.items()
        },
    )
    first, second = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    return make_problem(
        make_graph(parents), seconds, cluster, objective="latency",
        communication=draw(st.sampled_from(["overlapped", "serialised"])),
        pins={f"o{first}": names[-1]} if draw(st.booleans()) else {},
        colocated=((f"o{first}", f"o{second}"),) if first != second else (),
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(problems())
def test_list_schedules_and_search_keep_every_rule(problem):
    bound = lower_bound(problem)
    values = {}
    for name, algorithm in {**ALGORITHMS, "search": search}.items():
        if name not in ("heft", "cpop", "peft", "m_etf", "m_sct", "search"):
            continue
        plan = finish_plan(problem, name, algorithm(problem), 0.0, bound)
        assert check_plan(problem, plan, stage_timeline(problem, plan.stages)) == []
        assert plan.value >= bound * (1 - 1e-9)
        values[name] = plan.value
    assert values["search"] <= min(values.values()) * (1 + 1e-9)


def search(problem):
    return latency(problem, time.perf_counter() + 0.2, name="latency_search")[0]


def orders_of(problem):
    """All orders in which the tasks can run."""
    return [
        np.array(o)
        for o in permutations(range(len(problem.graph.ops)))
        if all(o.index(i) < o.index(j) for i, j in zip(*problem.arrays.edges, strict=True))
    ]


def least_makespan(problem):
    """By every placement and every order of the tasks (transfers first come, first served)."""
    tasks, ops = tasks_of(problem), problem.graph.ops
    d, orders = tasks.w.shape[1], orders_of(problem)
    return min(
        makespan_of(tasks, device, order)
        for device in map(np.array, product(range(d), repeat=len(ops)))
        if fits(tasks, device)
        for order in orders
    )


@settings(max_examples=15, deadline=None)
@given(problems(most=5))
def test_proofs_and_bounds_against_every_schedule(problem):
    least = least_makespan(problem)
    assert lower_bound(problem) <= least * (1 + 1e-9)
    placed, _, bound = latency(problem, time.perf_counter() + 300, name="latency_exact")
    assert bound <= least * (1 + 1e-9)
    exact = finish_plan(problem, "latency_exact", placed, 0.0, bound).value
    assert bound <= exact * (1 + 1e-9)
    placed, _, _ = latency(problem, time.perf_counter() + 300, name="latency_search")
    found = finish_plan(problem, "latency_search", placed, 0.0, 0.0).value
    assert found == pytest.approx(least)
    if not problem.arrays.serialised:
        assert bound == pytest.approx(least, rel=1e-5)


def test_a_graph_in_series_falls_apart_where_all_paths_meet():
    c = {(0, 1): 2, (0, 2): 2, (1, 3): 2, (2, 3): 2, (3, 4): 1, (3, 5): 1, (4, 6): 1, (5, 6): 1}
    tasks = tasks_of(literal([[1, 9], [4, 2], [2, 4], [1, 1], [3, 3], [3, 9], [1, 9]], c))
    assert cuts(tasks) == [0, 3, 6]
    device, order, bound = series_schedule(tasks, time.perf_counter() + 300)
    # o1 on b and o2 on a are both on b at 5, o3 there ends at 6 (all on a: 8); o4 on b and o5 on
    # a are both on a at 10, o6 there ends at 11.
    assert bound == pytest.approx(11, rel=1e-5)
    assert makespan_of(tasks, device, order) == 11


@settings(max_examples=30, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_search_s_simulation_is_the_plan_s_timeline(problem, random):
    tasks, n, d = tasks_of(problem), len(problem.graph.ops), len(problem.costs.devices)
    device = np.array([random.randrange(d) for _ in range(n)])
    placed = dict(
        zip(problem.graph.by_name, (problem.costs.devices[p] for p in device), strict=True)
    )
    spans = stage_timeline(problem, cut_runs(problem.graph, placed))
    tasks = tasks._replace(w=problem.costs.seconds)
    order, untold = np.arange(n), np.zeros((n, d))
    value = makespan_of(tasks, device, order)
    assert value == pytest.approx(makespan(spans))
    at, times = ordered(device, order), no_times(tasks)
    assert run_by_clock(tasks, at, untold, np.inf, times) == pytest.approx(value)
    # What must still follow each task is never overstated.
    most_s = value * (1 + 1e-9)
    assert simulate(tasks, device, order, tails(tasks), most_s)[0] == value
    if media_are_private(tasks):
        check_runs_from_a_place(tasks, at, random)


def check_runs_from_a_place(tasks, at, random):
    """A schedule run from the first changed place on equals one run from the first task on."""
    n, d = tasks.w.shape
    now, trial, room, untold = no_times(tasks), no_times(tasks), room_for(tasks), np.zeros((n, d))
    run_in_order(tasks, at, untold, np.inf, 0, now, trial, room)
    keep(tasks, at, 0, now, trial)
    for _ in range(4):
        i = random.randrange(n)
        at.device[i] = random.randrange(d)
        read = tasks.producer[tasks.ins[tasks.ins_start[i] : tasks.ins_start[i + 1]]]
        first = min([i, *read.tolist()])
        value = run_in_order(tasks, at, untold, np.inf, first, now, trial, room)
        assert value == makespan_of(tasks, at.device, at.order)
        if value < np.inf and random.random() < 0.5:
            keep(tasks, at, first, now, trial)
        else:
            at.device[i] = random.randrange(d)
            run_in_order(tasks, at, untold, np.inf, first, now, trial, room)
            keep(tasks, at, first, now, trial)


def test_loops_are_compiled_before_a_time_limit_starts_whatever_the_problem():
    ends = {"communication": "serialised"}
    graph, w = make_graph({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}), [[1, 2, 2]] * 4
    problems = [
        make_problem(graph, w, make_cluster("abc", medium=m), objective="latency", **rule)
        for m, rule in (("", {}), ("bus", {}), ("", ends))
    ] + [literal(HEFT_W, HEFT_C)]
    compile_loops(problems[0])
    loops = (_best_list, _improved, makespan_of, tails, heads, heft_schedule, forced_load)
    compiled = [len(loop.signatures) for loop in loops]
    assert all(compiled)
    for problem in problems:
        latency(problem, time.perf_counter() + 0.1)
    assert [len(loop.signatures) for loop in loops] == compiled


def test_memory_keeps_a_device_s_weights_within_its_limit():
    graph = make_graph({"a": [], "b": ["a"], "c": ["b"]}, out_bytes=4)
    ops = tuple(replace(op, weights={f"w_{op.name}": 400}) for op in graph.ops)
    problem = make_problem(
        replace(graph, ops=ops), [[1, 9]] * 3, make_cluster(memory_bytes=1000), objective="latency"
    )
    for name in ("heft", "cpop", "peft", "m_etf", "m_sct"):
        plan = finish_plan(problem, name, ALGORITHMS[name](problem), 0.0, 0.0)
        assert sorted(plan.placement.values()) == ["a", "a", "b"], name
