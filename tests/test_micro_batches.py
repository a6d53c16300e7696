"""The number of micro-batches of a training step: graphs, sums of gradients, and the choice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_cluster, make_problem
from test_training_pipeline import SECONDS, step
from torch import nn

from executor.sources import Model
from executor.training import Optimizer, capture_training
from hardware.errors import InfeasibleError
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.memory import gradients
from scheduler.ir.graph import sharing_weights
from scheduler.portfolio import solve
from scheduler.training.accumulation import accumulating
from scheduler.training.affine import affine
from scheduler.training.micro_batches import best_of, bubble, divisors, over_all, try_micro_batches
from simulator.replay import replay
from ui import cli, exits
from ui.training import tried_micro_batches

BATCH = 8


class Net(nn.Module):
    """Convolution, normalisation (over the batch or not) and a linear layer."""

    def __init__(self, over_batch):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8) if over_batch else nn.GroupNorm(2, 8)
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def captured(samples, over_batch=False):
    with torch.device("meta"):
        model = Model("net", Net(over_batch), (torch.zeros(samples, 3, 8, 8),))
    return capture_training(model, samples, Optimizer())


def problem(m, launch_s=0.0, num_devices=4, batch=BATCH, update_s=SECONDS["u"], **more):
    """A step of 8 alike layers cut in m: a launch and a time per sample."""
    graph = accumulating(step(8)) if m > 1 else step(8)
    graph = replace(graph, samples=batch // m)
    seconds = np.zeros((len(graph.ops), num_devices))
    for row, op in zip(seconds, graph.ops, strict=True):
        if op.phase == "optimizer":
            row[:] = update_s
        elif not op.name.startswith("accumulate"):
            row[:] = SECONDS[op.name[0]] * batch / m + launch_s
    cluster = make_cluster("pqrs"[:num_devices])
    colocated = sharing_weights(graph)
    return make_problem(graph, seconds, cluster, num_micro_batches=m, colocated=colocated, **more)


def sized(samples, size):
    """A step whose first operator has a size."""
    graph = step(1)
    first = replace(graph.ops[0], dims={"size": size})
    return replace(graph, samples=samples, ops=(first, *graph.ops[1:]))


def tried(launch_s, **more):
    numbers = divisors(more.get("batch", BATCH))
    return list(try_micro_batches(numbers[-1], lambda m: problem(m, launch_s, **more), numbers))


def test_two_captures_give_the_graph_of_a_third_batch():
    found = affine(captured(8), captured(4), 2)
    assert found.samples == 2
    assert found == captured(2)


def test_captures_of_other_networks_give_none():
    other = replace(captured(4), ops=captured(4).ops[:-1])
    with pytest.raises(ValueError, match="other operators; capture it with batch 2"):
        affine(captured(8), other, 2)
    sizes = [sized(8, 8), sized(4, 5)]
    with pytest.raises(ValueError, match=r"a size of 3\.5 is no whole number"):
        affine(*sizes, 2)


def test_updates_read_sums_that_stay_with_them():
    graph = accumulating(step(2))
    sums = [op for op in graph.ops if op.name.startswith("accumulate")]
    assert [op.name for op in sums] == ["accumulate_u1", "accumulate_u0"]
    assert [op.inputs for op in sums] == [("t_g1",), ("t_g0",)]
    assert all((op.bytes_read, op.bytes_written, op.params_read) == (200, 100, 0) for op in sums)
    assert graph.by_name["u1"].inputs == ("accumulated_t_g1",)
    assert gradients(graph, ["u0", "u1"]) == {"accumulated_t_g0": 100, "accumulated_t_g1": 100}
    groups = [set(group) for group in sharing_weights(graph)]
    assert {"f0", "b0", "accumulate_u0", "u0"} in groups
    assert accumulating(graph) == graph
    phases = [op.phase for op in graph.ops]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)


@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("m", [4, 8])
def test_an_even_pipeline_has_the_bubble_of_the_paper(m, num_devices, pipeline):
    asked = problem(m, num_devices=num_devices, pipeline=pipeline, update_s=0.0)
    plan = solve(asked, "training_pipeline").best
    assert len(plan.devices) == num_devices
    assert bubble(asked, plan) == pytest.approx((num_devices - 1) / (m + num_devices - 1), rel=1e-6)


def test_launches_decide_how_often_a_batch_is_cut():
    free = tried(0.0)
    assert best_of(free) == 8
    # 4 stages of 2 layers: (m + 3) x 6 x 8/m and two updates; a 3 + 3 + 2 split for two
    assert [one.value for one in free[1:]] == pytest.approx([120.5, 85, 67], rel=1e-6)
    dear = tried(10.0)
    assert best_of(dear) in (2, 4)
    # m + 3 rounds of 6 operators of 8/m + 10 s
    planned = {one.num_micro_batches: one.value for one in dear if one.value}
    assert planned[4] == pytest.approx(7 * 6 * 12 + 1, rel=1e-6)
    assert planned[2] == pytest.approx(5 * 6 * 14 + 0.5, rel=1e-6)


def test_the_bound_holds_for_all_numbers_tried():
    found = tried(10.0)
    m = best_of(found)
    plan = over_all(solve(problem(m, 10.0)).best, found)
    assert plan.lower_bound == min(one.lower_bound for one in found)
    assert plan.lower_bound <= min(one.value for one in found if one.value)
    assert plan.gap == pytest.approx(1 - plan.lower_bound / plan.value)


def test_numbers_whose_bound_is_worse_are_not_planned():
    found = tried(1000.0)
    assert [one.value is None for one in found] == [False, False, False, True]
    assert "bound" in found[-1].reason
    assert found[-1].lower_bound >= found[0].value


def test_what_is_chosen_replays_to_its_value():
    m = best_of(tried(1.0))
    asked = problem(m, 1.0)
    plan = solve(asked, "training_pipeline").best
    assert check_plan(asked, plan) == []
    assert replay(asked, plan).latency_s.mean == pytest.approx(plan.value)


def test_no_number_that_fits_is_an_answer():
    def tight(m):
        cluster = make_cluster("pqrs", memory_bytes=10)
        return replace(problem(m), cluster=cluster)

    found = list(try_micro_batches(BATCH, tight, [1, 2]))
    with pytest.raises(InfeasibleError, match="no number of micro-batches gives a plan: 1: "):
        best_of(found)


def test_batch_normalisation_leaves_the_batch_whole():
    def state(graph, m):
        return make_problem(graph, np.ones((len(graph.ops), 2)), num_micro_batches=m)

    found = tried_micro_batches(4, lambda m: captured(4 // m, True), state, lambda share: None)
    assert [one.num_micro_batches for one in found] == [1, 2, 4]
    assert best_of(found) == 1
    assert all("normalises over the batch" in one.reason for one in found[1:])


@pytest.mark.parametrize("m", [3, 16, 0])
def test_micro_batches_that_do_not_divide_the_batch_are_refused(m, tmp_path, capsys):
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "model: {source: zoo:gpt2, batch: 8, mode: training}\n"
        f"hardware: {{instances: [aws/g6.xlarge]}}\nnum_micro_batches: {m}\n"
    )
    assert cli.main(["plan", str(scenario)]) == exits.BAD_INPUT
    assert f"num_micro_batches must divide model.batch (8), got {m}" in capsys.readouterr().err
