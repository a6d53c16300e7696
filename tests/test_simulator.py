import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_problem
from hypothesis import given, settings
from test_scheduler import problems

from hardware.catalog import find_instance, load_prices
from scheduler.portfolio import solve
from scheduler.timeline import makespan, stage_timeline
from simulator.billing import bill
from simulator.capacity import Candidate, size_fleet, size_fleets
from simulator.replay import replay, simulate
from simulator.serve import Batching, ServiceTimes, Serving, Slo, Traffic, serve
from simulator.whatif import compare_instances, service_times


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


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_mean_wait_of_an_m_d_1_queue(rho):
    """Pollaczek-Khinchine: W = rho s / (2 (1 - rho))."""
    traffic = Traffic(rate=rho, duration_s=200_000)
    serving = Serving(batch=Batching(max=1, wait_s=0))
    report = serve(constant(1.0), traffic, serving, np.random.default_rng(1))
    assert report.wait_s.mean == pytest.approx(rho / (2 * (1 - rho)), rel=0.05)


@pytest.mark.parametrize("routing", ["round_robin", "shortest_queue", "shared_queue"])
def test_no_request_vanishes_and_replicas_share_the_load(routing):
    serving = Serving(3, Batching(max=4, wait_s=0.1), routing)
    times = ServiceTimes((1, 4), (1.0, 2.0), (1.0, 2.0))
    report = serve(times, Traffic(rate=3, duration_s=5000), serving, np.random.default_rng(0))
    counts = report.requests
    assert counts["arrived"] == counts["finished"] + counts["in_flight"]
    assert counts["in_flight"] < 100
    assert 0.4 < report.utilization < 1
    assert report.latency_s.p50 >= 1.0


def test_one_shared_queue_waits_least():
    traffic = Traffic(rate=2.4, duration_s=20_000)
    waits = {
        routing: serve(
            constant(1.0), traffic, Serving(3, Batching(1, 0), routing), np.random.default_rng(0)
        ).wait_s.mean
        for routing in ("round_robin", "shortest_queue", "shared_queue")
    }
    assert waits["shared_queue"] < waits["shortest_queue"]
    assert waits["shared_queue"] < 1.05 * waits["round_robin"]


def test_deterministic_arrivals_below_capacity_never_wait():
    traffic = Traffic(rate=0.5, arrivals="deterministic", duration_s=1000)
    report = serve(constant(1.0), traffic, Serving(batch=Batching(1, 0)), np.random.default_rng(0))
    assert report.wait_s.p99 == 0
    assert report.latency_s.p99 == pytest.approx(1.0)


def test_a_batch_waits_for_company_but_not_for_ever():
    times = ServiceTimes((1, 8), (1.0, 1.0), (1.0, 1.0))
    traffic = Traffic(rate=0.01, arrivals="deterministic", duration_s=10_000)
    serving = Serving(batch=Batching(max=8, wait_s=3.0))
    report = serve(times, traffic, serving, np.random.default_rng(0))
    assert report.latency_s.p50 == pytest.approx(4.0)


def test_overload_is_said_with_the_growth_of_the_queue():
    report = serve(constant(1.0), Traffic(rate=3), Serving(2), np.random.default_rng(0))
    assert report.latency_s is None
    assert report.queue_growth_per_s == pytest.approx(1.0)


def test_same_seed_same_report():
    runs = [
        serve(constant(0.1), Traffic(rate=7, duration_s=100), Serving(), np.random.default_rng(5))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traffic(rate=-1), "traffic: rate must be positive, got -1"),
        (lambda: Traffic(rate=1, duration_s=float("nan")), "duration_s must be positive, got nan"),
        (lambda: Serving(replicas=0), "serving: replicas must be positive, got 0"),
        (lambda: Slo(0), "slo: p95_s must be positive, got 0"),
        (lambda: Batching(wait_s=-1), "wait_s must not be negative, got -1"),
    ],
)
def test_impossible_traffic_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def promise(rate, p95_s):
    return Traffic(rate=rate, duration_s=200, slo=Slo(p95_s))


def test_the_fleet_is_the_smallest_that_keeps_the_promise():
    candidate = Candidate("m", constant(1.0), 2.0, "literal")
    traffic, serving = promise(5.0, 2.0), Serving(batch=Batching(1, 0))
    fleet = size_fleet(candidate, traffic, serving)
    assert fleet.replicas >= fleet.lower_bound_replicas == 5
    assert fleet.usd_per_hour == 2.0 * fleet.replicas
    assert fleet.report.latency_s.p95 <= 2.0

    fewer = Serving(fleet.replicas - 1, Batching(1, 0))
    report = serve(candidate.times, traffic, fewer, np.random.default_rng(traffic.seed))
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
    assert bill(3.6, 10.0, "").usd_per_1k == pytest.approx(0.1)


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
    spot = compare_instances(
        graph,
        1,
        [find_instance("aws/g5.xlarge")],
        load_prices(),
        "throughput",
        "spot",
        lambda s: None,
    )
    assert "no price" in spot[0].reason


def test_service_times_follow_the_measured_graph():
    problem = make_problem(make_chain(3, flops=1e6), np.full((3, 2), 0.5))
    times = service_times(problem.graph, problem.cluster, 4, problem.costs)
    assert times.sizes == (1, 2, 4)
    assert times.latency(4) == pytest.approx(4 * times.latency(1), rel=0.1)
    assert times.period(1) <= times.latency(1)
