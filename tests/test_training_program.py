from dataclasses import replace

import pytest
import torch
from conftest import make_cluster
from torch import nn

from executor.devices import local_devices
from executor.losses import loss
from executor.run import execute
from executor.training import Optimizer, capture_training
from executor.training_program import load_training
from executor.updates import LEARNING_RATE
from executor.whole import first_steps, op_times, run_whole_in
from executor.workers import Workers
from hardware.cluster import Cluster
from scheduler.evaluation.evaluate import finish_plan
from scheduler.ir.graph import sharing_weights
from scheduler.problem import Problem
from scheduler.training.accumulation import accumulating

BATCH = 4


class Tied(nn.Module):
    """A head that shares the embedding's weight, dropout, and a bias beside them."""

    def __init__(self, drop):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(drop), nn.Linear(16, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids)))


def tied(batch, drop=0.0):
    torch.manual_seed(3)
    return Tied(drop), (torch.arange(batch * 3).reshape(batch, 3) % 11,)


def dropping(batch):
    return tied(batch, 0.5)


def eager_steps(optimizer, m):
    """Loss and gradients by parameter of two steps, by torch's own autograd and optimizer."""
    module, (ids,) = tied(BATCH)
    rule = torch.optim.Adam if optimizer.name == "adam" else torch.optim.SGD
    options = {} if optimizer.name == "adam" else {"momentum": optimizer.momentum}
    steps = rule(module.parameters(), lr=LEARNING_RATE, **options)
    for batch in (ids, ids.flip(-1)):
        steps.zero_grad()
        losses = []
        for part in batch.chunk(m):
            value, _ = loss([module(part)])
            (value / m).backward()
            losses.append(value.item())
        yield losses, {name: p.grad.clone() for name, p in module.named_parameters()}
        steps.step()


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr("executor.run.SECONDS_PER_WINDOW", 0.1)
    monkeypatch.setattr("executor.whole.OP_TIMES_BUDGET_S", 0.2)
    monkeypatch.setattr("executor.whole.SECONDS_PER_BASELINE", 0.2)


@pytest.fixture(scope="module")
def workers():
    devices = [d for d in local_devices() if d.kind == "cpu"]
    if len(devices) < 2:
        pytest.skip("needs two CPU slices, this machine has one core")
    with Workers(tuple(devices)) as started:
        yield started


@pytest.mark.parametrize("optimizer", [Optimizer("adam"), Optimizer("sgd", 0.9), Optimizer("sgd")])
@pytest.mark.parametrize("m", [1, 2])
def test_unsplit_steps_are_those_of_autograd_and_torchs_optimizer(workers, optimizer, m):
    model = load_training("python:test_training_program:tied", BATCH, "float32", m, optimizer)
    kept = first_steps(workers, "cpu0", model)
    for step, (losses, gradients) in enumerate(eager_steps(optimizer, m)):
        ours = [kept[step * m + k][model.micro.outputs[0]] for k in range(m)]
        assert torch.tensor(ours).allclose(torch.tensor(losses), rtol=1e-6)
        for name, gradient in gradients.items():
            got = kept[step * m + m - 1][model.micro.gradients[name]]
            assert torch.allclose(got, gradient, rtol=1e-4, atol=1e-7), (step, name)


@pytest.mark.parametrize("source", ["tied", "dropping"])
@pytest.mark.parametrize("m", [1, 2])
def test_executed_steps_equal_the_unsplit_ones(workers, source, m):
    factory = f"python:test_training_program:{source}"
    model = load_training(factory, BATCH, "float32", m, Optimizer())
    problem, plan = _split(workers, model, factory, m)
    assert set(plan.devices) == {"cpu0", "cpu1"}
    reference = first_steps(workers, "cpu1", model)
    execution = execute(workers, model, plan, problem, reference, lambda share: None)
    assert execution.outputs_agree
    assert execution.report.throughput_per_s > 0
    assert {s.name for s in execution.report.spans if s.kind == "op"} == set(problem.op_index)
    wrong = {k: {name: 1.01 * t for name, t in kept.items()} for k, kept in reference.items()}
    assert not execute(workers, model, plan, problem, wrong, lambda share: None).outputs_agree


def test_every_update_counts_once_a_step(workers):
    model = load_training("python:test_training_program:tied", BATCH, "float32", 2, Optimizer())
    report, _ = run_whole_in(workers, "cpu0", model, BATCH, lambda share: None)
    assert report.throughput_per_s == pytest.approx(BATCH / report.busy_s["cpu0"])
    first = first_steps(workers, "cpu0", model)
    again = first_steps(workers, "cpu0", model)
    assert all(torch.equal(first[k][n], again[k][n]) for k in first for n in first[k])


def _split(workers, model, factory, m):
    """The layers of the forward pass on one device and the next in turn, the rest with them."""
    from executor.sources import build_model

    built = build_model(factory, BATCH // m, "float32", "meta")
    graph = capture_training(built, BATCH // m, Optimizer())
    graph = accumulating(graph) if m > 1 else graph
    links = make_cluster().links
    names = {"a": "cpu0", "b": "cpu1"}
    cluster = Cluster(
        "local",
        {names[k]: profile for k, profile in make_cluster().devices.items()},
        tuple(replace(link, src=names[link.src], dst=names[link.dst]) for link in links),
    )
    costs = op_times(workers, model, graph, lambda share: None)
    objective = "throughput" if m > 1 else "latency"
    problem = Problem(graph, cluster, costs, objective, num_micro_batches=m,
                      colocated=sharing_weights(graph), replicate=False)  # fmt: skip
    place = {op.name: f"cpu{int('mix.3' in op.module)}" for op in graph.ops}
    for group in problem.colocated:
        place |= dict.fromkeys(group, place[next(iter(group))])
    return problem, finish_plan(problem, "by hand", place, 0.0, 0.0)
