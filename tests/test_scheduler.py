import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    LITERAL,
    make_chain,
    make_cluster,
    make_graph,
    make_op,
    make_problem,
    make_profile,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.cluster import Cluster
from hardware.errors import InfeasibleError
from scheduler.baselines.single_device import memory_fill
from scheduler.bounds.lower_bound import lower_bound
from scheduler.cost_model.costs import CostTable, cost_table, op_seconds, rescale
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.timeline import loads, makespan, stage_timeline
from scheduler.ir.batch_size import with_samples
from scheduler.ir.graph import Graph, Tensor
from scheduler.plan import cut_stages
from scheduler.portfolio import algorithms, solve


def test_roofline_takes_the_larger_of_compute_and_memory():
    profile = make_profile(flops_per_s=100, memory_bytes_per_s=10, launch_overhead_s=1)
    assert op_seconds(make_op("a", ["x"], flops=1000.0), profile) == 11
    assert op_seconds(make_op("a", ["x"], flops=1000.0, bytes_read=200.0), profile) == 21
    assert op_seconds(make_op("a", ["x"], kind="view", bytes_read=9.0), profile) == 0
    half = make_profile(flops_per_s=100, memory_bytes_per_s=10, efficiency={"matmul": 0.5})
    assert op_seconds(make_op("a", ["x"], flops=1000.0), half) == 20


def test_a_dtype_that_no_device_has_is_said():
    graph = make_chain(1, dtype="float16")
    with pytest.raises(
        ValueError, match=r"operator 'o0': no device supports dtype float16; p_a has float32"
    ):
        cost_table(graph, make_cluster())


def test_device_without_the_dtype_is_left_out():
    cluster = make_cluster()
    fast = make_profile("fast", peak_flops_per_s={"float16": 1e9})
    cluster = type(cluster)("c", {"a": fast, "b": cluster.devices["b"]}, cluster.links)
    graph = make_chain(3, dtype="float16")
    from scheduler.problem import Problem

    plan = solve(Problem(graph, cluster, cost_table(graph, cluster))).best
    assert plan.devices == ["a"]


def test_cost_table_refuses_nan():
    with pytest.raises(ValueError, match="operator times must be numbers"):
        CostTable(("a",), np.array([[np.nan]]), {"a": LITERAL})


def test_rescale_carries_measured_times_in_proportion():
    def table(*seconds):
        return CostTable(("a",), np.array([[s] for s in seconds]), {"a": LITERAL})

    got = rescale(table(3.0, 5.0), table(1.0, 0.0), table(2.0, 0.0))
    assert got.seconds.ravel().tolist() == [6.0, 5.0]


def test_with_samples_leaves_what_no_input_reaches():
    arange = make_op("arange", [], bytes_written=8.0, kind="copy")
    graph = Graph(
        "positions",
        (arange, make_op("add", ["x", "t_arange"], bytes_written=8.0)),
        (Tensor("x", (1, 10), "float32"),),
        ("t_add",),
    )
    scaled = with_samples(graph, 3)
    assert [op.bytes_written for op in scaled.ops] == [8.0, 24.0]
    assert scaled.ops[0].outputs == arange.outputs


def test_with_samples_scales_work_but_not_parameters():
    graph = make_chain(2, weights={"w": 100}, bytes_read=8.0)
    scaled = with_samples(graph, 4)
    assert scaled.totals()["flops"] == 4 * graph.totals()["flops"]
    assert scaled.weights() == graph.weights()
    assert scaled.tensors["t_o0"].shape == (4, 10)


def test_a_shared_parameter_counts_once():
    graph = make_chain(3, weights={"tied": 100})
    assert graph.totals()["param_bytes"] == 100


def test_graph_prints_a_cycle():
    ops = (make_op("a", ["t_b"]), make_op("b", ["t_a"]))
    with pytest.raises(ValueError, match=r"has a cycle: [ab] -> [ab] -> [ab]"):
        Graph("g", ops, (Tensor("x", (1,), "float32"),), ())


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ((), "has no operators"),
        ((make_op("a", ["nothing"]),), "nothing produces its input 'nothing'"),
        ((make_op("a", ["x"]), make_op("a", ["x"])), "two operators are named 'a'"),
        (
            (make_op("a", ["x"], flops=float("nan")),),
            "flops must be a number from 0 to 1e30, got nan",
        ),
    ],
)
def test_graph_refuses(ops, message):
    with pytest.raises(ValueError, match=message):
        Graph("g", ops, (Tensor("x", (1,), "float32"),), ())


def test_even_pipeline_fills_in_m_plus_n_minus_1_steps():
    graph = make_chain(4)
    cluster = make_cluster("abcd")
    problem = make_problem(graph, np.ones((4, 4)), cluster)
    stages = cut_stages(graph, dict(zip(graph.by_name, "abcd", strict=True)))
    spans = stage_timeline(problem, stages, in_flight=10, num_micro_batches=6)
    assert makespan(spans) == pytest.approx((6 + 4 - 1) * 1.0)


def test_a_tensor_used_twice_on_one_device_is_sent_once():
    graph = make_graph({"a": [], "b": ["a"], "c": ["a"]})
    stages = cut_stages(graph, {"a": "a", "b": "b", "c": "b"})
    assert [len(stage.sends) for stage in stages] == [1, 0]
    assert stages[1].receives == stages[0].sends


def test_media_are_shared():
    graph = make_graph({"a": [], "b": ["a"], "c": ["a"]}, out_bytes=1000)
    place = {"a": "a", "b": "b", "c": "c"}
    stages = cut_stages(graph, place)
    for medium, expected in (("", 1.0 + 1.0), ("bus", 1.0 + 2.0)):
        cluster = make_cluster("abc", bytes_per_s=1000, medium=medium)
        problem = make_problem(graph, [[1.0] * 3, [0.0] * 3, [0.0] * 3], cluster)
        assert makespan(stage_timeline(problem, stages)) == pytest.approx(expected, abs=1e-6)


def test_memory_limit_refuses_with_device_need_and_limit():
    graph = make_chain(2, weights={"w": 2000})
    problem = make_problem(graph, np.ones((2, 2)), make_cluster(memory_bytes=1000))
    with pytest.raises(
        InfeasibleError, match=r"device 'a': the plan needs 2.* parameters.*the limit is 900 B"
    ):
        solve(problem, "single_device:a")


def filled(weights, room):
    """Devices by memory fill of layers that hold `weights`, on devices with so much room."""
    graph = make_graph({f"o{i}": [] for i in range(len(weights))}, out_bytes=0)
    ops = tuple(replace(op, weights=held) for op, held in zip(graph.ops, weights, strict=True))
    names = "abc"[: len(room)]
    devices = {
        name: make_profile(memory_bytes=size) for name, size in zip(names, room, strict=True)
    }
    problem = make_problem(
        replace(graph, ops=ops), np.ones((len(ops), len(room))), Cluster("fill", devices),
        memory_headroom=0.0,
    )  # fmt: skip
    return "".join(memory_fill(problem).values())


def layers(num):
    """Weights and biases of linear 3 to 4, batch norm, and linear 4 to 5: 64, 72, 100 bytes."""
    sizes = {"linear1": (48, 16), "batchnorm": (72, 0), "linear2": (80, 20)}
    return [
        {f"{k}.{name}.weight": weight, f"{k}.{name}.bias": bias}
        for k in range(num)
        for name, (weight, bias) in sizes.items()
    ]


@pytest.mark.parametrize(
    ("num", "tied", "room", "expected"),
    [
        (1, {}, (100, 200), "abb"),
        (1, {}, (100, 172, 200), "abb"),
        (1, {}, (100, 171, 200), "abc"),  # ours
        (3, {}, (400, 500), "aaaaabbbb"),
        (3, {8: 2}, (300, 500), "aaabbbbba"),
        (3, {8: 2, 5: 2}, (300, 500), "aaabbabba"),
        (3, {8: 2, 5: 2, 3: 0}, (300, 500), "aaaababba"),
        (3, {8: 2}, (255, 500), "aabbbbbbb"),  # ours: 236 fit, not the 20 of what is tied to them
    ],
)
def test_memory_fill_places_the_models_of_accelerate_s_own_tests(num, tied, room, expected):
    """Layers of 64, 72 and 100 bytes, some with another's weight (tests/test_modeling_utils.py).

    Its first device keeps room for the largest layer, 100 bytes, in case that others are
    offloaded; that is taken off here.
    """
    weights = layers(num)
    for i, j in tied.items():
        (own, _), (bias, size) = weights[i].items()
        assert own.endswith("weight")
        name, of_other = next(iter(weights[j].items()))
        weights[i] = {name: of_other, bias: size}
    assert filled(weights, room) == expected


def test_memory_fill_goes_on_when_a_device_is_full():
    parents = {f"o{i}": [f"o{i - 1}"] if i else [] for i in range(4)}
    ops = tuple(
        make_op(n, [f"t_{p}" for p in above] or ["x"], weights={f"w_{n}": 400})
        for n, above in parents.items()
    )
    graph = Graph("g", ops, (Tensor("x", (1, 10), "float32"),), ("t_o3",))
    problem = make_problem(graph, np.ones((4, 2)), make_cluster(memory_bytes=1200))
    plan = solve(problem, "memory_fill").best
    assert list(plan.placement.values()) == ["a", "a", "b", "b"]


def test_activations_die_after_their_last_use():
    chain = make_problem(make_chain(10, out_bytes=400), np.ones((10, 1)), make_cluster("a"))
    need = solve(chain).best.memory["a"]
    assert need.activation_bytes == 800


# Milliseconds of nodes 2 to 41 of VGG-16 as PipeDream profiled them, forward and backward.
VGG16_MS = [
    46.920, 9.999, 159.531, 9.766, 9.374, 54.803, 5.097, 75.441, 5.133, 4.999, 29.149, 2.757,
    44.481, 3.103, 48.133, 2.870, 2.682, 23.823, 1.722, 37.259, 1.527, 40.445, 1.523, 1.583,
    12.989, 1.050, 11.466, 0.653, 12.690, 0.630, 0.787, 0, 0, 7.050, 0.407, 0, 1.443, 0.309, 0,
    0.941,
]  # fmt: skip


def test_contiguous_equals_pipedream_s_published_split_of_vgg16():
    """Straight pipeline on four GPUs (models/vgg16/gpus=4_straight in msr-fiddle/pipedream).

    Its stages end before nodes 5, 14 and 25; its optimizer counts no activations by default.
    """
    published = np.add.reduceat(VGG16_MS, [0, 5 - 2, 14 - 2, 25 - 2])
    assert published.tolist() == pytest.approx([216.450, 196.519, 207.568, 51.998])
    problem = make_problem(make_chain(40), np.tile(VGG16_MS, (4, 1)).T, make_cluster("abcd"))
    for name in ("contiguous", "ideals"):
        assert solve(problem, name).best.value == pytest.approx(published.max())


def test_contiguous_balances_unequal_devices():
    problem = make_problem(make_chain(40), [[1.0, 3.0]] * 40)
    plan = solve(problem, "contiguous").best
    assert plan.value == pytest.approx(30.0)
    assert plan.gap == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_contiguous_is_the_best_split_of_a_chain(data):
    n = data.draw(st.integers(1, 6))
    seconds = data.draw(st.lists(st.tuples(*[st.floats(0.1, 10)] * 2), min_size=n, max_size=n))
    problem = make_problem(make_chain(n, out_bytes=400), seconds, make_cluster(bytes_per_s=200))
    best = solve(problem, "contiguous").best.value
    for cut, (first, second) in itertools.product(range(n + 1), (("a", "b"), ("b", "a"))):
        place = {f"o{i}": first if i < cut else second for i in range(n)}
        value = max(loads(problem, cut_stages(problem.graph, place)).values())
        assert best <= value * (1 + 1e-9)


@st.composite
def problems(draw):
    n = draw(st.integers(1, 9))
    parents = {
        f"o{i}": [f"o{j}" for j in range(i) if draw(st.integers(0, 2)) == 0] for i in range(n)
    }
    names = "abc"[: draw(st.integers(1, 3))]
    seconds = [[draw(st.floats(0.1, 10)) for _ in names] for _ in range(n)]
    cluster = make_cluster(
        names, bytes_per_s=draw(st.floats(5, 1e5)), latency_s=draw(st.floats(0, 1))
    )
    return make_problem(
        make_graph(parents), seconds, cluster,
        objective=draw(st.sampled_from(["latency", "throughput"])),
        num_micro_batches=draw(st.integers(1, 3)),
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(problems())
def test_every_plan_of_every_algorithm_is_valid_and_above_the_bound(problem):
    bound = lower_bound(problem)
    for name, algorithm in algorithms(problem).items():
        plan = finish_plan(problem, name, algorithm(problem), 0.0, bound)
        assert sorted(op for stage in plan.stages for op in stage.ops) == sorted(
            problem.graph.by_name
        )
        assert plan.value >= bound * (1 - 1e-9)
        check_spans(problem, plan)


def check_spans(problem, plan):
    m = plan.num_micro_batches
    spans = stage_timeline(problem, plan.stages, plan.in_flight, m)
    stage_spans = {(s.micro_batch, int(s.name.split()[1])): s for s in spans if s.kind == "stage"}
    assert len(stage_spans) == m * len(plan.stages)
    transfers = {(s.micro_batch, s.name, s.resource): s for s in spans if s.kind == "transfer"}
    for (k, i), span in stage_spans.items():
        for t in plan.stages[i].receives:
            arrival = transfers[k, t.tensor, f"{t.src}->{t.dst}"]
            assert arrival.end_s <= span.start_s + 1e-9
    for resource in {s.resource for s in spans}:
        mine = sorted(
            (s for s in spans if s.resource == resource), key=lambda s: (s.start_s, s.end_s)
        )
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(mine))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_no_placement_beats_the_lower_bound(problem):
    if len(problem.graph.ops) > 5:
        return
    bound = lower_bound(problem)
    for devices in itertools.product(problem.cluster.devices, repeat=len(problem.graph.ops)):
        place = dict(zip(problem.graph.by_name, devices, strict=True))
        assert finish_plan(problem, "any", place, 0.0, bound).value >= bound * (1 - 1e-9)


def test_pins_hold_and_forbid():
    problem = make_problem(make_chain(5), [[1.0, 5.0]] * 5, pins={"o2": "b"})
    solution = solve(problem)
    assert all(plan.placement["o2"] == "b" for plan in solution.plans)
    assert "pinned to 'b'" in solution.refusals["single_device:a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pins": {"o0": "z"}}, "pin 'o0': unknown device 'z'"),
        ({"pins": {"o9": "a"}}, "pin 'o9': no operator or module has this name; accepted: o0, o1"),
        ({"memory_headroom": 1.0}, "memory_headroom must be at least 0 and below 1"),
        ({"objective": "cost"}, "objective cost needs a price"),
        ({"num_micro_batches": 0}, "num_micro_batches must be from 1 to 100,000"),
        ({"num_micro_batches": 10**12}, "to 100,000, got 1,000,000,000,000"),
    ],
)
def test_problem_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_problem(make_chain(2), np.ones((2, 2)), **changes)


def test_unknown_algorithm_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown algorithm 'hefd'; did you mean 'heft'.*round_robin"
    ):
        solve(make_problem(make_chain(2), np.ones((2, 2))), "hefd")


def test_missing_link_refuses_the_plan_but_not_the_single_devices():
    from hardware.cluster import Cluster

    cluster = Cluster("c", make_cluster().devices)
    solution = solve(make_problem(make_chain(4), np.ones((4, 2)), cluster))
    assert len(solution.best.devices) == 1


def test_cost_is_rent_over_throughput():
    problem = make_problem(
        make_chain(1), [[2.0]], make_cluster("a"), objective="cost", usd_per_hour=3.6
    )
    assert solve(problem).best.value == pytest.approx(3.6 / 3600 * 2.0 * 1000)


def test_every_algorithm_shows_its_best_plan_once():
    problem = make_problem(make_chain(6), [[1.0, 1.0]] * 6)
    names = [plan.algorithm for plan in solve(problem, time_limit_s=0.5).plans]
    assert len(names) == len(set(names))
