"""Training steps with several micro-batches as pipelines."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_cluster, make_op, make_problem

from hardware.errors import InfeasibleError
from scheduler.check import check_plan
from scheduler.graph import Graph, Tensor, sharing_weights
from scheduler.portfolio import solve
from scheduler.training_pipeline import folded, training_pipeline
from simulator.replay import replay

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
