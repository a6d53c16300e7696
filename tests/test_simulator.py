import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_problem
from hypothesis import given, settings
from test_scheduler import problems

from hardware.catalog import find_instance, load_prices
from scheduler.evaluation.timeline import makespan, stage_timeline
from scheduler.portfolio import solve
from simulator.arrivals import Slo, Traffic
from simulator.billing import cost_at_full_load
from simulator.capacity import Candidate, size_fleet, size_fleets
from simulator.experiment import experiment
from simulator.replay import replay, simulate
from simulator.serving import Batching, Replica, ServiceTimes, Serving
from simulator.whatif import compare_instances, service_times, try_instance


@settings(max_examples=60, deadline=None)
@given(problems())
def test_replay_equals_the_schedulers_makespan(problem):
    for plan in solve(problem).plans:
        planned = stage_timeline(problem, plan.stages, plan.in_flight, plan.num_micro_batches)
        replayed = simulate(problem, plan, plan.num_micro_batches)
        assert makespan(replayed) == pytest.approx(makespan(planned), rel=1e-9)


def test_steady_state_runs_at_the_largest_load():
    problem = make_problem(make_chain(40), [[1.0, 3.0]] * 40)
    report = replay(problem, solve(problem).best)
    assert report.throughput_per_s == pytest.approx(1 / 30, rel=1e-6)
    assert report.utilization["a"] == pytest.approx(1.0, rel=1e-6)


def test_report_counts_bytes_and_lays_operators_inside_stages():
    problem = make_problem(make_chain(4, out_bytes=4000), [[1.0, 1.0]] * 4, make_cluster())
    report = replay(problem, solve(problem).best)
    assert sum(report.link_bytes.values()) == 4000
    ops = [span for span in report.spans if span.kind == "op"]
    assert [span.name for span in ops] == ["o0", "o1", "o2", "o3"]
    assert max(span.end_s for span in report.spans) == pytest.approx(report.latency_s.mean)


def constant(seconds):
    return ServiceTimes((1,), (seconds,), (seconds,))


def promise(rate, p95_s):
    return Traffic(rate=rate, duration_s=200, slo=Slo(p95_s))


def test_the_fleet_is_the_smallest_that_keeps_the_promise():
    candidate = Candidate("m", constant(1.0), 2.0, "literal")
    traffic, serving = promise(5.0, 2.0), Serving(batch=Batching(1, 0))
    fleet = size_fleet(candidate, traffic, serving)
    assert fleet.replicas >= fleet.lower_bound_replicas == 5
    assert fleet.usd_per_hour == 2.0 * fleet.replicas
    assert fleet.report.latency_s.p95 <= 2.0

    fewer = [Replica("m", candidate.times)] * (fleet.replicas - 1)
    report = experiment(fewer, traffic, serving, np.random.default_rng(traffic.seed))
    assert report.latency_s is None or report.latency_s.p95 > 2.0


def test_infeasible_fleets_say_why_and_come_last():
    candidates = [
        Candidate("slow", constant(3.0), 1.0, "literal"),
        Candidate("refused", None, None, "literal", "no price"),
        Candidate("unpriced", constant(0.1), None, "literal"),
        Candidate("dear", constant(0.1), 9.0, "literal"),
        Candidate("cheap", constant(0.2), 1.0, "literal"),
    ]
    fleets = size_fleets(candidates, promise(1.0, 2.0), Serving(), lambda share: None)
    assert [f.name for f in fleets[:3]] == ["cheap", "dear", "unpriced"]
    reasons = {f.name: f.reason for f in fleets if f.replicas is None}
    assert reasons["slow"] == "one request alone takes 3 s, above the promise of 2 s"
    assert reasons["refused"] == "no price"


def test_bill():
    assert cost_at_full_load(3.6, 10.0, "").usd_per_1k == pytest.approx(0.1)


def test_instances_are_sorted_by_cost_and_say_why_not():
    graph = make_chain(3, flops=1e9, bytes_read=1e6)
    names = ["aws/p4d.24xlarge", "aws/g4dn.xlarge", "gcp/ct5lp-hightpu-1t", "aws/c7a.xlarge"]
    outcomes = compare_instances(
        graph, 1, [find_instance(n) for n in names], load_prices(), "throughput", "on_demand",
        lambda share: None,
    )  # fmt: skip
    costs = [o.cost.usd_per_1k for o in outcomes if o.cost]
    assert costs == sorted(costs)
    assert len(costs) == 4
    reserved = compare_instances(
        graph,
        1,
        [find_instance("aws/g5.xlarge")],
        load_prices(),
        "throughput",
        "reserved",
        lambda s: None,
    )
    assert "no price" in reserved[0].reason


def test_an_instance_replicates_where_it_may():
    graph = make_chain(1, flops=1e12, bytes_read=1e6)
    four = find_instance("aws/g4dn.12xlarge")
    tried = [
        try_instance(graph, 1, four, load_prices(), replicate=replicate)
        for replicate in (False, True)
    ]
    shares = [one.report.throughput_per_s for one in tried]
    assert shares[1] > 3.9 * shares[0]


def test_service_times_follow_the_measured_graph():
    problem = make_problem(make_chain(3, flops=1e6), np.full((3, 2), 0.5))
    times = service_times(problem.graph, problem.cluster, 4, problem.costs)
    assert times.sizes == (1, 2, 4)
    assert times.latency(4) == pytest.approx(4 * times.latency(1), rel=0.1)
    assert times.period(1) <= times.latency(1)
