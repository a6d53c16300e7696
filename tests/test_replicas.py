import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError
from scheduler.bounds.lower_bound import lower_bound
from scheduler.data_parallel.replicas import copies, cycle, turns
from scheduler.data_parallel.replicated import replicated
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.portfolio import solve
from simulator.replay import ReplayChoice, replay, simulate


def planned(problem):
    placed, replicas = replicated(problem)
    bound = lower_bound(problem, replicas=True)
    plan = finish_plan(problem, "replicated", placed, 0.0, bound, replicas)
    assert check_plan(problem, plan) == []
    assert plan.lower_bound <= plan.value * (1 + 1e-9)
    return plan


def chain(times, sizes, names="abcd", **changes):
    """A chain with tensors of `sizes` units, one of which takes a link a second."""
    graph = make_chain(len(times))
    ops = tuple(
        replace(op, outputs=(replace(op.outputs[0], shape=(1, size)),))
        for op, size in zip(graph.ops, sizes, strict=True)
    )
    cluster = make_cluster(names, bytes_per_s=4.0)
    seconds = np.repeat(np.array(times, dtype=float)[:, None], len(names), axis=1)
    return make_problem(replace(graph, ops=ops), seconds, cluster, **changes)


def test_a_long_stage_is_shared_by_three_devices():
    """PipeDream's figure: a stage three times as long on three devices keeps up with the next."""
    problem = chain([3.0, 1.0], [0, 0])
    plan = planned(problem)
    assert plan.value == 1.0
    assert sorted(len(stage.devices) for stage in plan.stages) == [1, 3]
    assert cycle(plan.stages) == 3
    assert {copy[0].device for copy in copies(plan.stages)} == set(plan.stages[0].devices)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_programme_equals_brute_force_on_chains(data):
    times = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=len(times), max_size=len(times)))
    num_devices = data.draw(st.integers(1, 4))
    problem = chain(times, sizes, "abcd"[:num_devices])
    assert planned(problem).value == pytest.approx(brute_force(times, sizes, num_devices))


def brute_force(times, sizes, num_devices):
    n, best = len(times), np.inf
    for num_stages in range(1, n + 1):
        for cuts in itertools.combinations(range(1, n), num_stages - 1):
            ends = [0, *cuts, n]
            for team in itertools.product(range(1, num_devices + 1), repeat=num_stages):
                if sum(team) <= num_devices:
                    stages = [
                        sum(times[a:b]) / r
                        for (a, b), r in zip(itertools.pairwise(ends), team, strict=True)
                    ]
                    links = [
                        sizes[cut - 1] / np.lcm(p, q)
                        for cut, (p, q) in zip(cuts, itertools.pairwise(team), strict=True)
                    ]
                    best = min(best, max([*stages, *links]))
    return best


@pytest.mark.parametrize("engine", ["simpy", "fast"])
@pytest.mark.parametrize(
    ("times", "sizes"), [([3.0, 1.0], [0, 0]), ([6.0, 4.0, 2.0], [2, 1, 0]), ([5.0], [0])]
)
def test_replay_keeps_the_period_that_is_planned(times, sizes, engine):
    problem = chain(times, sizes)
    plan = planned(problem)
    assert cycle(plan.stages) > 1
    report = replay(problem, plan, ReplayChoice(engine=engine))
    assert 1 / report.throughput_per_s == pytest.approx(plan.value)
    assert report.latency_s.mean == pytest.approx(sum(times) + _moved(plan))
    assert sum(report.busy_s.values()) == pytest.approx(sum(times))
    assert max(report.utilization.values()) == pytest.approx(1.0, rel=0.05)
    num = 4 * cycle(plan.stages)
    assert check_plan(problem, plan, simulate(problem, plan, num)) == []


def _moved(plan):
    return sum(sent.num_bytes for sent in plan.transfers) / 4.0


def test_auto_replicates_where_asked_and_where_it_pays():
    problem = chain([3.0, 1.0], [0, 0])
    assert solve(problem).best.value == 3.0
    asked = solve(replace(problem, replicate=True)).best
    assert (asked.value, asked.algorithm) == (1.0, "replicated")
    assert asked.gap < 1e-9
    even = chain([1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0], replicate=True)
    assert all(not stage.replicas for stage in solve(even).best.stages)


def test_replicas_share_a_batch_evenly():
    plan = planned(chain([6.0], [0], num_micro_batches=6))
    assert len(plan.stages[0].devices) == 3
    assert plan.value == pytest.approx(12.0)


def test_every_replica_holds_its_weights():
    problem = chain([8.0, 1.0], [0, 0])
    heavy = replace(problem.graph.ops[0], weights={"w": 800_000_000})
    graph = replace(problem.graph, ops=(heavy, problem.graph.ops[1]))
    plan = planned(replace(problem, graph=graph))
    assert all(plan.memory[d].param_bytes == 800_000_000 for d in plan.stages[0].devices)


def test_a_faster_replica_takes_more_turns():
    seconds = np.array([[6.0, 3.0]])
    problem = make_problem(make_chain(1), seconds, make_cluster("ab"))
    plan = planned(problem)
    assert plan.value == pytest.approx(2.0)
    assert turns(plan.stages[0]) == {"a": 1, "b": 2}
    assert set(plan.memory) == {"a", "b"}
    reports = [replay(problem, plan, ReplayChoice(engine=engine)) for engine in ("simpy", "fast")]
    for report in reports:
        assert 1 / report.throughput_per_s == pytest.approx(2.0)
        assert report.utilization["a"] == pytest.approx(1.0)
        assert report.latency_s.mean == pytest.approx(3.0)
    assert check_plan(problem, plan, simulate(problem, plan, 9)) == []


def test_replicas_within_a_latency_bound():
    asked = {"objective": "cost", "usd_per_hour": 3600.0, "replicate": True}
    problem = chain([3.0, 1.0], [0, 0], **asked, latency_bound_s=4.0)
    assert solve(problem).best.algorithm == "replicated"
    with pytest.raises(InfeasibleError, match="latency_bound_s"):
        solve(replace(problem, latency_bound_s=3.9))


def test_replicas_are_refused_where_no_batch_gets_faster():
    with pytest.raises(ValueError, match="shortens no batch"):
        solve(chain([1.0], [0], objective="latency"), "replicated")
    problem = chain([1.0], [0])
    for mode, words in (("decode", "wait for each other"), ("training", "set num_micro_batches")):
        with pytest.raises(InfeasibleError, match=words):
            replicated(replace(problem, graph=replace(problem.graph, mode=mode)))


def test_replicas_hold_activations_in_the_replay():
    problem = chain([3.0, 1.0], [0, 40])
    plan = planned(problem)
    report = replay(problem, plan)
    team = next(stage for stage in plan.stages if stage.replicas)
    peaks = {report.memory[device].peak.num_bytes for device in team.devices}
    assert len(peaks) == 1
    assert peaks.pop() > 0


def test_check_plan_names_what_is_wrong_with_replicas():
    problem = chain([3.0, 1.0], [0, 0])
    plan = planned(problem)
    first, second = plan.stages

    def broken(*stages, **changes):
        return "; ".join(check_plan(problem, replace(plan, stages=stages, **changes)))

    twice = replace(second, replicas=(first.device,))
    assert "is a replica of two" in broken(first, twice)
    unknown = replace(first, replicas=("z",))
    assert "there is no device 'z'" in broken(unknown, second)
    assert "no multiple of the 3" in broken(first, second, num_micro_batches=2)
