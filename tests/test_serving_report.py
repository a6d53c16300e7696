import math
from dataclasses import replace

import numpy as np
import pytest
from test_serve import ALONE, constant

from benchmarks.simulator_queueing import line_row, wait_row
from simulator.arrivals import Slo, Traffic, draw
from simulator.closed import closed_line
from simulator.estimates import student
from simulator.experiment import experiment, study
from simulator.fast_serve import serve_fast
from simulator.run_figures import measure, present
from simulator.serve import serve
from simulator.service import service_times
from simulator.serving import Batching, Limits, Replica, ServiceTimes, Serving

ONE = Serving(batch=ALONE)


def report(fleet, traffic, serving=ONE, seed=0):
    return experiment(fleet, traffic, serving, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["M/M/1", "M/M/4", "M/D/1", "M/G/1"])
def test_mean_waits_are_those_of_the_closed_forms(name):
    assert wait_row(name, 0.8, 30_000).inside


def test_a_closed_line_is_as_fast_as_mean_value_analysis_says():
    assert line_row(4, 1000).inside


def test_one_job_goes_round_alone():
    line = [constant(0.25), constant(1.0)]
    rate = closed_line(line, 1, ONE, 1000.0, np.random.default_rng(0))
    assert rate == pytest.approx(1 / 1.25, rel=0.01)
    limited = replace(ONE, limits=Limits(queue=1))
    with pytest.raises(ValueError, match="no limits are needed"):
        closed_line(line, 1, limited, 10.0, np.random.default_rng(0))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """M/M/1 at 0.5: mean latency 2 service times."""
    server = Replica("s", service_times("exponential", 1.0, None))
    hits = 0
    for seed in range(40):
        found = report([server], Traffic(0.5, duration_s=1000), ONE, seed)
        low, high = found.latency_interval_s["mean"]
        hits += low <= 2.0 <= high
    assert 34 <= hits <= 40


def test_students_interval():
    low, high = student(10.0, [9.0, 10.0, 11.0])
    assert (10.0 - low, high - 10.0) == pytest.approx((4.303 / math.sqrt(3),) * 2, rel=1e-3)
    assert student(2.0, [2.0]) == (2.0, 2.0)


def test_presence_is_averaged_between_edges():
    edges = np.array([0.0, 1.0, 2.0, 4.0])
    found = present(edges, np.array([0.5, 0.0, 3.0]), np.array([1.5, 4.0, 3.5]))
    assert found == pytest.approx([1.5, 1.5, 1.25])


def test_series_and_figures_agree_with_littles_law():
    server = Replica("s", service_times("exponential", 1.0, None))
    found = report([server], Traffic(0.7, duration_s=5000, slo=Slo(5.0)))
    waiting = np.mean(found.series["waiting"])
    assert waiting == pytest.approx(0.7 * found.wait_s.mean, rel=0.1)
    assert np.mean(found.series["servers_busy"]) == pytest.approx(found.utilization, rel=1e-6)
    assert len(found.series["time_s"]) == len(found.series["waiting"]) == 60


def test_promise_and_goodput_count_who_was_turned_away():
    fleet, traffic = [constant(1.0)], Traffic(2.0, "deterministic", 1000, Slo(1.5))
    found = report(fleet, traffic, replace(ONE, limits=Limits(queue=1)))
    assert found.latency_s.p95 > 1.5
    assert not found.promise.kept
    assert report(
        fleet, replace(traffic, slo=Slo(3.0)), replace(ONE, limits=Limits(queue=1))
    ).promise.share_within == pytest.approx(0.5, abs=0.01)
    hopeless = report(fleet, Traffic(0.5, duration_s=100, slo=Slo(0.5)))
    assert hopeless.promise.reason == "one request alone takes 1 s, above the promise of 500 ms"
    assert hopeless.goodput_per_s == 0
    day = Traffic(0.5, "diurnal", 2000, Slo(1e6), period_s=2000)
    assert (easy := report(fleet, day)).goodput_per_s == easy.throughput_per_s


def test_money_is_the_rent_of_the_fleet_over_the_requests_answered():
    fleet = [replace(constant(0.1), usd_per_hour=3.6), replace(constant(0.2), usd_per_hour=1.8)]
    found = report(fleet, Traffic(5.0, "deterministic", 1000))
    assert found.usd_per_hour == pytest.approx(5.4)
    assert found.usd_per_1k == pytest.approx(5.4 / 3600 / 5 * 1000, rel=0.01)
    assert report([*fleet, constant(1.0)], Traffic(5.0, "deterministic", 100)).usd_per_hour is None


def test_relief_names_the_change_that_helps():
    server = Replica("s", service_times("exponential", 1.0, None))
    found = study([server], Traffic(0.9, duration_s=3000), ONE)
    assert found.relief[0].change == "one more s"
    assert found.relief[0].p95_s < found.latency_s.p95 / 2
    assert found.bottleneck.startswith("waiting: 90%")
    batches = Replica("b", ServiceTimes((1, 16), (1.0, 1.5), (1.0, 1.5)))
    small = Serving(1, Batching(4, 0.1))
    overload = study([batches], Traffic(4.5, duration_s=500), small)
    assert overload.queue_growth_per_s > 0
    assert "one more b carries the load" in overload.bottleneck
    p95_s = {relief.change: relief.p95_s for relief in overload.relief}
    assert p95_s["one more b"] < p95_s["twice the largest batch"]
    assert p95_s["half the largest batch"] is None
    idle = study([constant(1.0)], Traffic(0.1, "deterministic", 100), ONE)
    assert "no change here lowers the p95" in idle.bottleneck
    assert idle.bottleneck.startswith("computing: 100%")


def test_a_peak_above_capacity_is_said_though_the_mean_is_below():
    traffic = Traffic(0.7, "diurnal", 4000, peak_to_trough=4, period_s=4000)
    found = study([constant(1.0)], traffic, ONE)
    assert found.bottleneck.startswith("the peak of 1.")
    assert "is above capacity, the queue then grows by 0.1" in found.bottleneck
    assert found.latency_s.p95 > 10


def test_a_peak_that_is_chance_is_not_said():
    found = study([constant(1.0)], Traffic(0.8, duration_s=600), ONE)
    assert max(found.series["arrivals_per_s"]) > 1.0
    assert "peak" not in found.bottleneck


def test_traffic_too_short_for_an_answer_says_so():
    for rate in (1e-6, 0.05):
        found = study([constant(10.0)], Traffic(rate, "deterministic", 20), ONE)
        assert found.latency_s is None
        assert found.bottleneck.startswith("not known: no request was answered after the warm-up")


def test_an_experiment_interrupted_while_it_counts_keeps_the_run(monkeypatch):
    from simulator import experiment as module

    calls = []

    def unlucky(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(module, "measure", unlucky)
    found = study([constant(0.01)], Traffic(50, duration_s=20), ONE)
    assert found.status == "partial"
    assert found.requests["arrived"] > 500


@pytest.mark.parametrize("engine", ["simpy", "fast"])
def test_an_interrupted_run_leaves_what_is_known(engine, monkeypatch):
    fleet, traffic = [constant(0.01)], Traffic(50, duration_s=100)
    rng = np.random.default_rng(0)
    requests = draw(traffic, rng)
    calls = []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    if engine == "simpy":
        from simulator.server import Server

        original = Server._start
        monkeypatch.setattr(Server, "_start", stop)
        run = serve(fleet, requests, Serving(batch=ALONE), rng)
    else:
        from simulator import fast_serve

        original = fast_serve.run_fleet
        monkeypatch.setattr(fast_serve, "REQUESTS_AT_ONCE", 1000)
        monkeypatch.setattr(fast_serve, "run_fleet", stop)
        run = serve_fast(fleet, requests, Serving(batch=ALONE), rng)
        assert run.requests["arrived"] == 1000
    assert run.interrupted
    assert 0 < run.duration_s < 100
    assert run.requests["arrived"] == sum(run.requests.values()) - run.requests["arrived"]


def test_an_interrupted_experiment_is_marked_partial(monkeypatch):
    from simulator import experiment as module

    runs = []

    def third_time_unlucky(*args):
        runs.append(args)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return serve_fast(*args)

    monkeypatch.setattr(module, "choose_engine", lambda serving, actors: third_time_unlucky)
    found = study([constant(0.01)], Traffic(50, duration_s=20), ONE)
    assert found.status == "partial"
    assert found.method.startswith("2 independent runs")
    assert found.relief == ()


def test_unknown_services_are_refused():
    with pytest.raises(ValueError, match="unknown service:gamma; accepted: service:exponential"):
        service_times("gamma", 1.0, None)
    with pytest.raises(ValueError, match="cv: needed by service:lognormal"):
        service_times("lognormal", 1.0, None)
    with pytest.raises(ValueError, match="and by no other service"):
        service_times("exponential", 1.0, 2.0)


def test_a_lognormal_service_has_its_mean_and_its_spread():
    factors = service_times("lognormal", 1.0, 1.5).factors(400_000, np.random.default_rng(0))
    assert factors.mean() == pytest.approx(1.0, rel=0.02)
    assert factors.std() == pytest.approx(1.5, rel=0.05)
