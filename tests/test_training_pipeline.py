"""Training steps with several micro-batches as pipelines."""

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from conftest import make_cluster, make_op, make_problem

from hardware.errors import InfeasibleError
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.ir.graph import Graph, Tensor, sharing_weights
from scheduler.portfolio import solve
from scheduler.training.accumulation import accumulating
from scheduler.training.folding import folded
from scheduler.training.stage_moves import moves, refine
from scheduler.training.training_pipeline import training_pipeline
from simulator.replay import ReplayChoice, replay

SECONDS = {"f": 1.0, "b": 1.0, "g": 1.0, "u": 0.5}
"""Of a layer's forward, gradient of input, gradient of weight, update."""


def step(num_layers, act_bytes=1000):
    """A chain of layers: forward, backward that reads the layer's input, and update."""

    ops = []
    for i in range(num_layers):
        above = f"t_f{i - 1}" if i else "x"
        ops.append(make_op(f"f{i}", [above], act_bytes, {f"w{i}": 100}))
    grad = f"t_f{num_layers - 1}"
    for i in reversed(range(num_layers)):
        saved = f"t_f{i - 1}" if i else "x"
        ops.append(make_op(f"g{i}", [grad, saved], 100, phase="backward"))
        ops.append(make_op(f"b{i}", [grad, saved], act_bytes, {f"w{i}": 100}, phase="backward"))
        grad = f"t_b{i}"
    for i in range(num_layers):
        ops.append(make_op(f"u{i}", [f"t_g{i}"], 4, {f"w{i}": 100}, phase="optimizer"))
    x = Tensor("x", (1, act_bytes // 4), "float32")
    return Graph("chain", tuple(ops), (x,), ("t_u0",), mode="training")


def problem(m=8, speeds=(1.0, 1.0, 1.0, 1.0), memory_bytes=10**9, **more):
    graph = step(8)
    cluster = make_cluster("pqrs", memory_bytes=memory_bytes)
    seconds = np.array([[SECONDS[op.name[0]]] for op in graph.ops]) / np.array(speeds)
    colocated = sharing_weights(graph)
    return make_problem(graph, seconds, cluster, num_micro_batches=m, colocated=colocated, **more)


def test_every_operator_stands_with_its_forward_operator():
    place = dict(zip((op.name for op in step(8).ops), folded(problem()), strict=True))
    assert all(place[f"{kind}{i}"] == i for kind in "fbgu" for i in range(8))


@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
def test_four_devices_train_almost_four_times_as_fast(pipeline):
    asked = problem(pipeline=pipeline)
    plan = solve(asked, "training_pipeline").best
    alone = solve(asked, "single_device:p").best
    assert alone.value == pytest.approx(8 * 24 + 4)
    # (m + n - 1) rounds of two layers, forward and backward, and an update of two layers
    assert plan.value == pytest.approx((8 + 4 - 1) * 6 + 1, rel=1e-6)
    assert len(plan.devices) == 4
    assert check_plan(asked, plan) == []
    assert plan.lower_bound <= plan.value
    assert replay(asked, plan).latency_s.mean == pytest.approx(plan.value)
    solution = solve(asked)
    assert solution.best.value <= plan.value
    assert "training_pipeline" in {one.algorithm for one in solution.plans}


def test_layers_stay_whole_and_slow_devices_get_fewer():
    asked = problem(speeds=[1.0, 3.0, 1.0, 3.0])
    placement = training_pipeline(asked)
    layers = [{placement[f"{kind}{i}"] for kind in "fbgu"} for i in range(8)]
    assert all(len(devices) == 1 for devices in layers)
    assert sum(devices <= {"q", "s"} for devices in layers) >= 6


def test_early_stages_hold_more_micro_batches_and_fit():
    roomy = solve(problem(), "training_pipeline").best
    first = max(need.num_bytes for need in roomy.memory.values())
    tight = problem(memory_bytes=0.9 * first, memory_headroom=0.0)
    plan = solve(tight, "training_pipeline").best
    assert all(need.num_bytes <= need.limit_bytes for need in plan.memory.values())
    assert check_plan(tight, plan) == []
    assert plan.value >= roomy.value * (1 - 1e-9)


def test_only_training_steps_have_one():
    asked = problem(m=1)
    with pytest.raises(InfeasibleError, match="no backward pass"):
        training_pipeline(replace(asked, graph=replace(asked.graph, mode="inference")))


def contiguous_splits(num_layers, names):
    """Device of each layer, for every sequence of stages over some of the devices."""
    for num_stages in range(1, len(names) + 1):
        for devices in permutations(names, num_stages):
            for cuts in combinations(range(1, num_layers), num_stages - 1):
                lengths = np.diff([0, *cuts, num_layers])
                yield np.repeat(devices, lengths)


def uneven(m, seed, pipeline="1f1b"):
    """Five layers of random sizes on three devices of random speeds, some memory short."""
    rng = np.random.default_rng(seed)
    graph = step(5)
    layer_s, speed = rng.uniform(0.5, 2.0, 5), rng.uniform(0.5, 2.0, 3)
    seconds = [SECONDS[op.name[0]] * layer_s[int(op.name[1:])] / speed for op in graph.ops]
    tight = 1000 * int(rng.integers(8, 40))
    cluster = make_cluster("pqr", bytes_per_s=2000.0, memory_bytes=tight)
    return make_problem(
        graph, seconds, cluster, num_micro_batches=m, memory_headroom=0.0,
        colocated=sharing_weights(graph), pipeline=pipeline,
    )  # fmt: skip


def brute_force(asked):
    """The fastest step over all contiguous splits that fit."""
    best = np.inf
    for layers in contiguous_splits(5, "pqr"):
        placement = {op.name: str(layers[int(op.name[1:])]) for op in asked.graph.ops}
        try:
            best = min(best, finish_plan(asked, "all", placement, 0.0, 0.0).value)
        except InfeasibleError:
            continue
    return best


@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
@pytest.mark.parametrize("seed", range(3))
def test_moving_stages_finds_the_best_of_all_splits(seed, pipeline):
    for m in (2, 4):
        asked = uneven(m, seed, pipeline)
        fastest = brute_force(asked)
        plan = solve(asked, "training_pipeline", 10.0).best
        assert plan.value == pytest.approx(fastest, rel=1e-9)
        assert plan.lower_bound <= fastest * (1 + 1e-9)
        assert check_plan(asked, plan) == []
        fifo = ReplayChoice(sharing="fifo")
        assert replay(asked, plan, fifo).latency_s.mean == pytest.approx(plan.value)


def test_moves_change_one_boundary_or_device():
    found = set(moves(((0, 4), (0, 1)), 8, 3, 2))
    assert {((0, 2), (0, 1)), ((0, 6), (0, 1))} <= found
    assert {((0, 4), (1, 0)), ((0, 4), (2, 1)), ((0, 4), (0, 2))} <= found
    assert {((0,), (0,)), ((0,), (1,))} <= found
    assert {((0, 2, 4), (2, 0, 1)), ((0, 4, 6), (0, 1, 2))} <= found
    for start, device in found:
        assert start[0] == 0
        assert list(start) == sorted(set(start))
        assert len(start) == len(device) == len(set(device))


def test_what_is_no_sequence_of_stages_is_left_alone():
    asked = problem()
    placement = {op.name: "pq"[k % 2] for k, op in enumerate(asked.graph.ops)}
    assert refine(asked, placement, np.inf, lambda step_s: None) is placement


def tied(num_layers):
    """A step whose last layer reads the first one's weight: its gradient waits for the other."""
    graph = step(num_layers)
    last = num_layers - 1
    ops = []
    for op in graph.ops:
        if op.name in (f"f{last}", f"b{last}"):
            op = replace(op, weights={"w0": 100})
        if op.name == f"g{last}":
            op = replace(op, outputs=(replace(op.outputs[0], shape=(1, 2000)),))
        if op.name == "u0":
            op = replace(op, inputs=("t_g0", f"t_g{last}"))
        if op.name != f"u{last}":
            ops.append(op)
    return replace(graph, ops=tuple(ops))


@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
def test_gradients_that_wait_for_the_other_end_are_held_for_every_micro_batch(pipeline):
    graph = accumulating(tied(6))
    cluster = make_cluster("pqr")
    asked = make_problem(
        graph, np.ones((len(graph.ops), 3)), cluster, num_micro_batches=6,
        colocated=sharing_weights(graph), pipeline=pipeline,
    )  # fmt: skip
    layers = "pqqrrp"
    device = {op.name: layers[int(op.name[-1])] for op in graph.ops}
    plan = finish_plan(asked, "by hand", device, 0.0, 0.0)
    for name, use in replay(asked, plan).memory.items():
        assert use.peak.num_bytes <= plan.memory[name].num_bytes
        assert use.peak.num_bytes >= 0.6 * plan.memory[name].num_bytes


@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
def test_a_device_that_only_updates_waits_for_nothing_of_its_own(pipeline):
    """A step without backward operators: two forward passes of 2 s, then the update, on q."""
    ops = [make_op("f", ["x"], 100), make_op("u", ["t_f"], 4, phase="optimizer")]
    graph = Graph("step", tuple(ops), (Tensor("x", (1, 25), "float32"),), ("t_u",), mode="training")
    asked = make_problem(
        graph, np.array([[2.0, 2.0], [10.0, 10.0]]), make_cluster("pq"),
        num_micro_batches=2, pipeline=pipeline,
    )  # fmt: skip
    plan = finish_plan(asked, "by hand", {"f": "p", "u": "q"}, 0.0, 0.0)
    assert plan.value == pytest.approx(14.0)
    assert check_plan(asked, plan) == []
    for engine in ("simpy", "fast"):
        found = replay(asked, plan, ReplayChoice(engine))
        assert found.latency_s.mean == pytest.approx(plan.value)


@pytest.mark.parametrize("m", [1, 4])
def test_no_placement_holds_more_than_its_plan_says(m):
    """Backward passes apart from their forward passes, tensors that arrive early."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        graph = tied(4) if seed % 2 else step(4)
        graph = accumulating(graph) if m > 1 else graph
        asked = make_problem(
            graph, rng.integers(1, 5, (len(graph.ops), 3)).astype(float), make_cluster("pqr"),
            num_micro_batches=m, colocated=sharing_weights(graph),
            pipeline=("1f1b", "gpipe")[seed // 2 % 2],
        )  # fmt: skip
        device = rng.integers(0, 3, asked.arrays.num_units)[asked.unit]
        placed = {op.name: "pqr"[d] for op, d in zip(graph.ops, device, strict=True)}
        plan = finish_plan(asked, "at random", placed, 0.0, 0.0)
        assert check_plan(asked, plan) == []
        for name, use in replay(asked, plan, ReplayChoice("fast")).memory.items():
            assert use.peak.num_bytes <= plan.memory[name].num_bytes * (1 + 1e-9)
