"""Splits are taken where they pay, in plans that hold and that run."""

import time
from dataclasses import replace

import pytest

from executor.capture import capture
from hardware.catalog import find_instance, instance_cluster
from scheduler.check import check_plan
from scheduler.costs import cost_table
from scheduler.operator_splits import Split
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.split_search import may_split, split_where_it_pays, with_splits
from simulator.replay import ReplayChoice, replay

LONG_S = 60.0


@pytest.fixture(scope="module")
def problem() -> Problem:
    graph = capture("zoo:vit-b-16", 8)
    cluster = instance_cluster(find_instance("aws/g6.12xlarge"))
    return Problem(graph, cluster, cost_table(graph, cluster), "latency")


def test_a_batch_of_images_is_split_over_gpus_for_latency(problem):
    unsplit = solve(problem)
    varied, found = split_where_it_pays(problem, unsplit, "auto", time.perf_counter() + LONG_S)
    assert found.best.value < 0.7 * unsplit.best.value
    assert len(found.best.devices) > 1
    assert check_plan(varied, found.best) == []
    fifo = replay(varied, found.best, ReplayChoice(sharing="fifo"))
    assert fifo.latency_s.mean == pytest.approx(found.best.value)
    again = with_splits(problem, found.best.splits)
    assert [op.name for op in again.graph.ops] == [op.name for op in varied.graph.ops]


def test_one_device_splits_nothing(problem):
    cluster = replace(problem.cluster, devices={"gpu0": problem.cluster.devices["gpu0"]}, links=())
    alone = Problem(problem.graph, cluster, cost_table(problem.graph, cluster), "latency")
    assert not may_split(alone)


def test_measured_times_carry_over_in_proportion(problem):
    slow = replace(problem.costs, seconds=3 * problem.costs.seconds, low_s=None, high_s=None)
    parts = with_splits(replace(problem, costs=slow), {"linear": Split(2, 2)})
    plain = with_splits(problem, {"linear": Split(2, 2)})
    assert parts.costs.seconds == pytest.approx(3 * plain.costs.seconds)


def test_a_pinned_operator_is_not_split(problem):
    pinned = replace(problem, pins={"layers": "gpu0"})
    _, found = split_where_it_pays(pinned, solve(pinned), "auto", time.perf_counter() + LONG_S)
    assert not any(name in pinned.pinned for name in found.best.splits)
