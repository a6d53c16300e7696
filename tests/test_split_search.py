"""Splits are taken where they pay, in plans that hold and that run."""

import json
import time
from dataclasses import replace

import pytest

from executor.capture import capture
from executor.generation import capture_generation
from hardware.catalog import find_instance, instance_cluster
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.tensor_parallel import split_search
from scheduler.tensor_parallel.split_rules import Split
from scheduler.tensor_parallel.split_search import may_split, split_where_it_pays, with_splits
from simulator.generation import predict_generation
from simulator.replay import ReplayChoice, replay

LONG_S = 600.0


@pytest.fixture(scope="module")
def problem() -> Problem:
    graph = capture("zoo:vit-b-16", 8)
    cluster = instance_cluster(find_instance("aws/g6.12xlarge"))
    return Problem(graph, cluster, cost_table(graph, cluster), "latency")


def test_a_batch_of_images_is_split_over_gpus_for_latency(problem, monkeypatch):
    monkeypatch.setattr(split_search, "SHARES", (0.0,))
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


def test_a_pinned_operator_is_not_split(problem, monkeypatch):
    monkeypatch.setattr(split_search, "SHARES", (0.0,))
    pinned = replace(problem, pins={"layers": "gpu0"})
    _, found = split_where_it_pays(pinned, solve(pinned), "auto", time.perf_counter() + LONG_S)
    assert not any(name in pinned.pinned for name in found.best.splits)


TWO_LAYERS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 2, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


def test_columns_of_a_decode_step_are_split_and_its_prefill_with_them(tmp_path):
    (tmp_path / "llama.json").write_text(json.dumps(TWO_LAYERS))
    generation = capture_generation(f"hf:{tmp_path / 'llama.json'}", 1, "bfloat16", 128, 128)
    cluster = instance_cluster(find_instance("aws/g6.12xlarge"))
    costs = cost_table(generation.decode, cluster)
    decode = Problem(generation.decode, cluster, costs, "latency")
    linear = [op.name for op in generation.decode.ops if op.kind == "matmul"]
    varied = with_splits(decode, dict.fromkeys(linear, Split(2, 4)))
    plan, unsplit = solve(varied, "heft").best, solve(decode, "heft").best
    assert plan.value < 0.6 * unsplit.value
    plan = replace(plan, splits=dict.fromkeys(linear, Split(2, 4)))
    alone = predict_generation(decode, unsplit, generation, replay(decode, unsplit))
    split = predict_generation(varied, plan, generation, replay(varied, plan))
    assert split.tpot_s < 0.6 * alone.tpot_s
    assert split.ttft_s < 2 * alone.ttft_s
