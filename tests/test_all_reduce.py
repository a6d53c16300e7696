"""Training steps whose stages are replicated: gradients are summed once a batch."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_cluster, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_pipeline import step

from hardware.errors import InfeasibleError
from scheduler.bounds.lower_bound import lower_bound
from scheduler.data_parallel.all_reduce import gradients, left_s, rings
from scheduler.data_parallel.replicas import turns
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.dispatch import most_waiting
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.stage_work import stage_work
from scheduler.evaluation.timeline import stage_timeline
from scheduler.ir.graph import sharing_weights
from scheduler.portfolio import solve
from simulator.replay import ReplayChoice, replay, simulate

FORWARD_BACKWARD = {"f": 1.0, "b": 0.5, "g": 0.5, "u": 0.0}


def training(num_layers, names, m, seconds=FORWARD_BACKWARD, cluster=None, **changes):
    graph = step(num_layers)
    rows = [[seconds[op.name[0]]] * len(names) for op in graph.ops]
    cluster = cluster or make_cluster(names)
    shared = sharing_weights(graph)
    return make_problem(graph, rows, cluster, num_micro_batches=m, colocated=shared, **changes)


def by_hand(problem, layers, teams):
    """A plan whose k-th team has the next `layers[k]` layers."""
    home = [team[0] for team, n in zip(teams, layers, strict=True) for _ in range(n)]
    placement = {op.name: home[int(op.name[1:])] for op in problem.graph.ops}
    replicas = {team[0]: tuple(team[1:]) for team in teams if len(team) > 1}
    return finish_plan(problem, "by hand", placement, 0.0, 0.0, replicas)


def test_a_ring_sends_all_but_a_share_of_the_bytes_twice():
    problem = training(1, "abcd", 4, cluster=make_cluster("abcd", 100.0, 0.5))
    assert rings(problem, ["abcd"]) == [(6 * 0.5, 6 / 4 / 100)]
    assert rings(problem, ["ab"]) == [(2 * 0.5, 1 / 100)]
    shared = make_cluster("abcd", 100.0, 0.5, medium="host")
    problem = training(1, "abcd", 4, cluster=shared)
    assert rings(problem, ["abcd"]) == [(3.0, 6 / 4 * 4 / 100)]
    assert rings(problem, ["ab", "cd"]) == [(1.0, 4 / 100)] * 2


def test_the_slowest_link_of_a_ring_counts():
    fast = make_cluster("abc", 100.0)
    links = tuple(
        replace(k, bytes_per_s=10.0) if (k.src, k.dst) == ("c", "a") else k for k in fast.links
    )
    problem = training(1, "abc", 3, cluster=replace(fast, links=links))
    assert rings(problem, ["abc"]) == [(0.0, 4 / 3 / 10)]
    alone = replace(fast, links=tuple(k for k in links if k.src != "c"))
    with pytest.raises(InfeasibleError, match="no link between 'c' and 'a'"):
        rings(training(1, "abc", 3, cluster=alone), ["abc"])


def test_gradients_are_summed_while_the_backward_pass_runs():
    """PipeDream: the longer of computing and summing, but for the last gradient's own time."""
    made_s, num_bytes = np.array([-3.0, -2.0, -1.0, 0.0]), np.full(4, 10.0)
    assert left_s((0.0, 0.05), made_s, num_bytes, overlaps=True) == pytest.approx(0.5)
    assert left_s((0.0, 0.2), made_s, num_bytes, overlaps=True) == pytest.approx(8.0 - 3.0)
    assert left_s((0.7, 0.2), made_s, num_bytes, overlaps=False) == pytest.approx(8.7)


def test_bytes_of_gradients_are_those_of_their_dtype():
    graph = step(2)
    assert sum(gradients(graph, [op.name for op in graph.ops]).values()) == 200
    half = tuple(
        replace(op, outputs=(replace(op.outputs[0], dtype="float16"),)) for op in graph.ops
    )
    names = [op.name for op in graph.ops]
    assert sum(gradients(replace(graph, ops=half), names).values()) == 100


@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
@pytest.mark.parametrize("m", [4, 8])
def test_a_step_on_four_replicas_takes_a_quarter_and_one_sum(pipeline, m):
    seconds = {"f": 1.0, "b": 1.0, "g": 1.0, "u": 0.5}
    cluster = make_cluster("abcd", bytes_per_s=100.0, latency_s=0.1)
    problem = training(8, "abcd", m, seconds, cluster, pipeline=pipeline)
    plan = by_hand(problem, [8], ["abcd"])
    # a layer's gradients take 1.5 s of the ring, and 2 s pass until the next are there: of the
    # last, made 1 s before the end, 0.5 s are left
    assert plan.value == pytest.approx(m / 4 * 24 + 0.5 + 0.6 + 4)
    assert check_plan(problem, plan, simulate(problem, plan, m)) == []
    assert all(need.gradient_bytes == 800 for need in plan.memory.values())


def test_the_report_of_replicas_has_the_traffic_of_their_ring():
    """Four devices pass 3/4 of 800 B twice; the awaited part ends where the optimizers begin."""
    seconds = {"f": 1.0, "b": 1.0, "g": 1.0, "u": 0.5}
    cluster = make_cluster("abcd", bytes_per_s=100.0, latency_s=0.1)
    problem = training(8, "abcd", 4, seconds, cluster)
    plan = by_hand(problem, [8], ["abcd"])
    report = replay(problem, plan)
    ring = {"a->b", "b->c", "c->d", "d->a"}
    assert report.link_bytes == dict.fromkeys(ring, pytest.approx(2 * 3 / 4 * 800 / 4))
    assert report.utilization["d->a"] == pytest.approx((0.6 + 12.0) / plan.value)
    spans = [span for span in report.spans if span.name == "sum of gradients"]
    assert {span.resource for span in spans} == ring
    assert all(
        (span.start_s, span.end_s) == (pytest.approx(24.0), pytest.approx(25.1)) for span in spans
    )
    updates = [span.start_s for span in report.spans if span.name == "u0"]
    assert min(updates) == pytest.approx(25.1)


def test_serialised_devices_pay_for_both_ends_and_hide_nothing():
    cluster = make_cluster("ab", bytes_per_s=400.0)
    problem = training(8, "ab", 2, cluster=cluster, communication="serialised")
    assert by_hand(problem, [8], ["ab"]).value == pytest.approx(16.0 + 2 * 800 / 400)


def test_pipedreams_example_two_and_one():
    """Figure 8: a stage twice as long on two workers, one on one: one micro-batch every 2 units."""
    problem = training(3, "abc", 12)
    plan = by_hand(problem, [2, 1], ["ab", "c"])
    runs = {span.resource: [] for span in stage_timeline(problem, plan.stages, plan.in_flight, 12)}
    for span in stage_timeline(problem, plan.stages, plan.in_flight, 12):
        runs[span.resource].append(span)
    assert {s.micro_batch % 2 for s in runs["a"]} == {0}
    assert {s.micro_batch % 2 for s in runs["b"] if s.duration_s} == {1}
    # fills in 2, one every 2, drains in 2
    assert plan.value == pytest.approx(2 + 12 * 2 + 2, rel=1e-6)
    waiting = most_waiting(problem, stage_work(problem, plan.stages))
    assert waiting.tolist() == [2, 2, 1]
    assert plan.value < by_hand(problem, [1, 1, 1], ["a", "b", "c"]).value + 1e-6


@pytest.mark.parametrize(
    ("layers", "teams", "m"),
    [([8], ["abcd"], 8), ([5, 3], ["ab", "c"], 6), ([2, 6], ["a", "bcd"], 6), ([8], ["abb"], 6),
     ([3, 2, 3], ["ab", "c", "d"], 4), ([4, 4], ["abb", "cd"], 6)],
)  # fmt: skip
@pytest.mark.parametrize("pipeline", ["1f1b", "gpipe"])
def test_both_replays_of_replicas_are_the_schedulers_timeline(layers, teams, m, pipeline):
    cluster = make_cluster("abcd", bytes_per_s=3000.0, latency_s=0.01)
    problem = training(8, "abcd", m, {**FORWARD_BACKWARD, "u": 0.25}, cluster, pipeline=pipeline)
    plan = by_hand(problem, layers, teams)
    assert check_plan(problem, plan, simulate(problem, plan, m)) == []
    slow, fast = (replay(problem, plan, ReplayChoice(engine=name)) for name in ("simpy", "fast"))
    assert slow == fast
    assert slow.latency_s.mean == pytest.approx(plan.value)
    assert sum(slow.busy_s.values()) == pytest.approx(
        8 * 2 + 0.25 * sum(n * len(set(t)) for n, t in zip(layers, teams, strict=True)) / m
    )
    for device, use in slow.memory.items():
        assert use.peak.num_bytes <= plan.memory[device].num_bytes * (1 + 1e-9)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_bounds_hold_and_replicas_are_near_brute_force(data):
    num_layers, num_devices = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 3))
    names, m = "abc"[:num_devices], data.draw(st.sampled_from([2, 3, 4, 6]))
    seconds = {kind: float(data.draw(st.integers(1, 6))) for kind in "fbgu"}
    cluster = make_cluster(names, data.draw(st.sampled_from([1e9, 300.0, 100.0])), 0.01)
    problem = training(num_layers, names, m, seconds, cluster, replicate=True)
    least = min(plan.value for plan in every_plan(problem, num_layers, names, m))
    best = solve(problem).best
    assert check_plan(problem, best) == []
    assert lower_bound(problem, replicas=True) <= min(least, best.value) * (1 + 1e-9)
    assert best.lower_bound <= best.value
    assert best.value <= least * 1.2


def every_plan(problem, num_layers, names, m):
    for k in range(1, num_layers + 1):
        for cuts in itertools.combinations(range(1, num_layers), k - 1):
            layers = np.diff([0, *cuts, num_layers]).tolist()
            for sizes in itertools.product(range(1, len(names) + 1), repeat=k):
                if sum(sizes) <= len(names) and all(m % size == 0 for size in sizes):
                    left = iter(names)
                    yield by_hand(problem, layers, [[next(left) for _ in range(s)] for s in sizes])


def test_auto_replicates_a_step_where_that_pays():
    seconds = {"f": 1.0, "b": 1.0, "g": 1.0, "u": 0.5}
    fast = training(8, "abcd", 8, seconds, replicate=True)
    best = solve(fast).best
    assert best.algorithm == "replicated"
    assert best.value == pytest.approx(8 / 4 * 24 + 4)
    assert turns(best.stages[0]) == dict.fromkeys("abcd", 1)
    slow = training(8, "abcd", 8, seconds, make_cluster("abcd", 4.0), replicate=True)
    assert not any(stage.replicas for stage in solve(slow).best.stages)
    assert not any(s.replicas for s in solve(replace(fast, replicate=False)).best.stages)


def test_a_batch_with_fewer_micro_batches_than_devices_has_fewer_replicas():
    best = solve(training(1, "abcd", 2, replicate=True), "replicated").best
    assert len(best.devices) == 2
    assert best.value == pytest.approx(2.0)


def test_literal_transfer_times_say_nothing_of_a_ring():
    problem = training(1, "ab", 2)
    transfers = {name: np.zeros((2, 2)) for name in problem.tensor_index}
    literal = replace(problem, costs=replace(problem.costs, transfers=transfers))
    with pytest.raises(InfeasibleError, match="how long summing gradients takes"):
        by_hand(literal, [1], ["ab"])
