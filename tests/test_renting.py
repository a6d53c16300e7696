"""Machines that boot, break, are taken back, and follow the load."""

import math

import numpy as np
import pytest

from hardware.catalog import load_instances, load_prices, load_sources
from hardware.clouds import (
    MONTH_S,
    find_boot_times,
    find_spot_market,
    find_spot_pool,
    load_boot_times,
    load_clouds,
    load_grids,
    load_spot_markets,
)
from simulator.arrivals import Traffic, draw
from simulator.autoscaling import POLICIES, Autoscaling, Look, Step, wanted
from simulator.availability import Failures, Outage, merge
from simulator.boot import Boot, StartUp, start_up
from simulator.experiment import experiment
from simulator.renting import Conditions, operate
from simulator.serve import serve
from simulator.served import FINISHED, REJECTED
from simulator.serving import Batching, Limits, Replica, ServiceTimes, Serving
from simulator.spot import Recorded, Renewal, Spot, read_availability

ONE_SECOND = Replica("r", ServiceTimes((1,), (1.0,), (1.0,)))
ONE_BY_ONE = Serving(batch=Batching(1, 0))


def run(num_replicas, traffic, conditions, serving=ONE_BY_ONE, auto=None, seed=1):
    rng = np.random.default_rng(seed)
    replicas = [ONE_SECOND] * num_replicas
    actors = (operate({"r": conditions}, auto),)
    return serve(replicas, draw(traffic, rng), serving, rng, actors)


def up_s(served):
    return sum(server.end_s - server.start_s for server in served.servers)


@pytest.mark.parametrize("shape", [0.7, 1.0, 3.0])
def test_availability_is_mtbf_over_mtbf_plus_mttr(shape):
    """Renewal theory; the interval is that of 200 replicas' shares."""
    failures = Failures(1000, 250, shape)
    outages = failures.outages(200, 100_000, np.random.default_rng(0))
    down_s = [sum(min(o.up_s, 100_000) - o.down_s for o in each) for each in outages]
    up = 1 - np.array(down_s) / 100_000
    half = 3.3 * up.std() / math.sqrt(len(up))
    assert abs(up.mean() - 1000 / 1250) < half + 0.002


def test_availability_of_a_fleet_that_serves():
    served = run(10, Traffic(rate=1, duration_s=50_000), Conditions(failures=Failures(1000, 250)))
    assert up_s(served) / (10 * 50_000) == pytest.approx(0.8, abs=0.02)
    failed = [rental for rental in served.rentals if rental.ended_by == "failed"]
    assert len(failed) == pytest.approx(10 * 50_000 / 1250, rel=0.15)


def test_a_load_that_failing_servers_cannot_carry_has_no_percentiles():
    def report(mttr_s, **limits):
        rules = Serving(batch=Batching(1, 0), limits=Limits(**limits))
        actor = operate({"r": Conditions(failures=Failures(50.0, mttr_s))})
        rng = np.random.default_rng(3)
        return experiment([ONE_SECOND], Traffic(0.8, duration_s=1000), rules, rng, [actor])

    overload = report(50.0)
    assert overload.latency_s is None
    assert overload.queue_growth_per_s == pytest.approx(0.3, abs=0.1)
    assert report(2.0).latency_s is not None
    assert report(50.0, queue=5).latency_s is not None


def test_outages_of_two_causes_are_joined():
    first = ((Outage(1, 3), Outage(10, 12)), ())
    second = ((Outage(2, 5, "preempted"), Outage(20, 21, "preempted")), (Outage(0, 1),))
    assert merge(first, second) == (
        (Outage(1, 5), Outage(10, 12), Outage(20, 21, "preempted")),
        (Outage(0, 1),),
    )


def test_what_a_lost_machine_had_not_answered_is_answered_by_another():
    """A request a second, each takes one; all machines are gone from 1.5 to 5."""
    steady = Traffic(rate=1, arrivals="deterministic", duration_s=30)
    trace = Recorded(np.array([0.0, 1.5, 5.0]), np.array([2, 0, 2]))
    served = run(2, steady, Conditions(spot=trace))
    assert served.retries == 1
    assert (served.start_s[0], served.end_s[0], served.state[0]) == (5.0, 6.0, FINISHED)
    one_left = Recorded(np.array([0.0, 1.5]), np.array([2, 1]))
    served = run(2, steady, Conditions(spot=one_left))
    assert (served.retries, served.end_s[0]) == (0, 2.0)


def test_a_request_that_is_lost_too_often_is_rejected_then():
    serving = Serving(batch=Batching(1, 0), limits=Limits(retries=2))
    slow = Replica("slow", ServiceTimes((1,), (5.0,), (5.0,)))
    rng = np.random.default_rng(0)
    requests = draw(Traffic(rate=0.01, arrivals="deterministic", duration_s=140), rng)
    trace = Recorded(np.arange(100.0, 140.0), np.arange(1, 41) % 2)
    served = serve([slow], requests, serving, rng, (operate({"slow": Conditions(spot=trace)}),))
    assert served.state.tolist() == [REJECTED]
    assert served.retries == 2
    assert served.end_s[0] > 100


def test_a_warned_machine_drains_while_another_boots():
    trace = Recorded(np.array([0.0, 100.0, 101.0]), np.array([2, 1, 2]))
    conditions = Conditions(StartUp(((0.5, 30.0),)), spot=trace, notice_s=40)
    auto = Autoscaling(max=2, min=1, policy="schedule", schedule=(Step(0, 1),))
    steady = Traffic(rate=0.5, arrivals="deterministic", duration_s=200)
    # one wanted, two to be had: slot 0 stays, so the warning of slot 1 changes nothing
    served = run(1, steady, Conditions(conditions.start_up, spot=trace), auto=auto)
    assert len(served.rentals) == 1
    gone = Recorded(np.array([0.0, 100.0, 300.0]), np.array([1, 0, 1]))
    served = run(1, steady, Conditions(conditions.start_up, spot=gone, notice_s=40))
    assert served.retries == 0
    assert [r.ended_by for r in served.rentals] == ["preempted"]
    assert served.rentals[0].end_s == 100
    assert served.servers[0].end_s < 62


def test_boot_time_is_rented_and_serves_nothing():
    gone = Recorded(np.array([0.0, 10.0, 12.0]), np.array([1, 0, 1]))
    conditions = Conditions(StartUp(((0.5, 20.0),), load_s=5.0), spot=gone)
    served = run(1, Traffic(rate=0.1, duration_s=100), conditions)
    second = served.rentals[1]
    assert (second.booked_s, second.up_s, second.ended_by) == (12.0, 37.0, "kept")


@pytest.mark.parametrize("cloud", load_boot_times())
@pytest.mark.parametrize("software", ["image", "installed"])
def test_drawn_boot_times_have_the_measured_quantiles(cloud, software):
    boot = start_up(Boot(software=software), cloud, load_bytes=3e9, rate=1e9)
    rng = np.random.default_rng(0)
    drawn = np.array([boot.draw(rng) for _ in range(4000)]) - 3.0
    times = find_boot_times(cloud)
    known = times.running_s if software == "image" else times.installed_s
    for share, seconds in known.items():
        below = (drawn <= seconds * 1.0001).mean()
        assert abs(below - share) < 0.03 or share in (0.1, 0.99)
    assert drawn.min() >= known[0.1] - 1e-6
    assert drawn.max() <= known[0.99] + 1e-6


@pytest.mark.parametrize(("rate", "target"), [(3, 0.6), (3, 0.8), (8, 0.5)])
def test_autoscaling_reaches_the_target_utilization_under_constant_load(rate, target):
    """busy = rate * 1 s, so ceil(rate / target) replicas serve, give or take the noise."""
    auto = Autoscaling(max=60, target=target, interval_s=300, cooldown_s=1500)
    traffic = Traffic(rate=rate, duration_s=15_000)
    served = run(1, traffic, Conditions(StartUp(((0.5, 30.0),))), auto=auto)
    late = served.batches.start_s > 5000
    busy = served.busy_within()[late].sum() / 10_000
    up = sum(max(0.0, s.end_s - max(s.start_s, 5000)) for s in served.servers) / 10_000
    assert busy / up == pytest.approx(target, abs=0.1)


def test_policies_at_hand_examples():
    auto = Autoscaling(max=10, target=0.5)
    assert wanted(auto, Look(0, 2.0, 0)) == 4
    assert wanted(auto, Look(0, 2.01, 0)) == 5
    assert wanted(auto, Look(0, 0.0, 0)) == 1
    assert wanted(auto, Look(0, 9.0, 0)) == 10
    assert wanted(Autoscaling(max=10, policy="queue", target=4), Look(0, 0, 17)) == 5
    steps = (Step(0, 2), Step(100, 6))
    auto = Autoscaling(max=6, policy="schedule", schedule=steps, period_s=200)
    assert [wanted(auto, Look(t, 0, 0)) for t in (0, 99, 100, 199, 200, 350)] == [2, 2, 6, 6, 2, 6]
    assert set(POLICIES) == {"utilization", "queue", "schedule"}


def test_replicas_are_given_back_no_sooner_than_the_cooldown_allows():
    steps = (Step(0, 1), Step(50, 5), Step(60, 1))
    auto = Autoscaling(
        max=5, policy="schedule", schedule=steps, interval_s=10, cooldown_s=100, delay_s=3
    )
    served = run(1, Traffic(rate=0.01, duration_s=400), Conditions(), auto=auto)
    given_back = [r for r in served.rentals if r.ended_by == "given_back"]
    assert [r.booked_s for r in given_back] == [53.0] * 4
    assert {r.end_s for r in given_back} == {153.0}


def test_a_same_seed_gives_the_same_run():
    conditions = Conditions(
        StartUp(((0.1, 10.0), (0.9, 60.0))),
        Failures(5000, 100),
        Renewal(3000, 500),
        notice_s=30,
        on_demand=1,
    )
    auto = Autoscaling(max=12, target=0.6)
    first, second, other = (
        run(4, Traffic(rate=4, duration_s=2500), conditions, auto=auto, seed=seed)
        for seed in (7, 7, 8)
    )
    assert first.rentals == second.rentals
    assert np.array_equal(first.end_s, second.end_s, equal_nan=True)
    assert first.rentals != other.rentals
    assert {r.market for r in first.rentals} == {"on_demand", "spot"}


@pytest.mark.parametrize("routing", ["round_robin", "shortest_queue", "shared_queue", "fastest"])
def test_no_request_vanishes_whatever_befalls_the_fleet(routing):
    conditions = Conditions(StartUp(((0.5, 20.0),)), Failures(300, 50), Renewal(200, 40), 30)
    serving = Serving(
        batch=Batching(4, 0.1), routing=routing, limits=Limits(timeout_s=60, retries=0)
    )
    served = run(3, Traffic(rate=2, duration_s=3000), conditions, serving, Autoscaling(max=8))
    counts = dict(served.requests)
    assert counts.pop("arrived") == sum(counts.values())
    assert counts["rejected"] > 0


def test_traces_of_availability_are_read_and_refused(tmp_path):
    def read(text, name="trace.csv"):
        (tmp_path / name).write_text(text)
        return read_availability(tmp_path / name)

    trace = read("time_s,available\n10,2\n20,0\n35,1\n")
    assert trace.outages(3, 100, None) == (
        (Outage(10, 25, "preempted"),),
        (Outage(10, math.inf, "preempted"),),
        (Outage(0, math.inf, "preempted"),),
    )
    sky = read('{"metadata": {"gap_seconds": 60}, "data": [1, 0, 0, 1]}', "sky.json")
    assert sky.outages(1, 1000, None) == ((Outage(60, 180, "preempted"),),)
    for text, message in (
        ("time_s,available\n5,1\n2,0\n", "row 2: time_s must rise"),
        ("time_s,available\n-5,1\n", "row 1: time_s must be finite and not negative"),
        ("time_s,available\n0,-1\n", "available must not be negative"),
        ("time_s,available\n0,0.5\n", "whole number"),
        ("time_s,available\n0,x\n", "available must be a number"),
        ("time_s\n0\n", "column available is missing"),
        ("time_s,available\n", "number in every row|no rows"),
        ("", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read(text)
    with pytest.raises(ValueError, match="no such file"):
        read_availability(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"metadata\.gap_seconds"):
        read('{"data": [1]}', "sky.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Failures(-1, 1), "mtbf_s must be positive, got -1"),
        (lambda: Failures(math.nan, 1), "mtbf_s must be positive"),
        (lambda: Failures(1, -1), "mttr_s must not be negative"),
        (lambda: Failures(1, 1, 0), "shape must be positive"),
        (lambda: Autoscaling(max=1, min=2), r"max must be at least min \(2\), got 1"),
        (lambda: Autoscaling(max=1, min=0), "min must be at least 1"),
        (lambda: Autoscaling(max=1, target=70), "share of the time"),
        (lambda: Autoscaling(max=1, interval_s=0), "interval_s must be positive"),
        (lambda: Autoscaling(max=1, cooldown_s=-1), "cooldown_s must not be negative"),
        (lambda: Autoscaling(max=1, policy="schedule"), "belong together"),
        (
            lambda: Autoscaling(max=3, policy="schedule", schedule=(Step(5, 1),)),
            "begin with at_s: 0",
        ),
        (
            lambda: Autoscaling(max=3, policy="schedule", schedule=(Step(0, 4),)),
            "asks for 4 replicas",
        ),
        (lambda: Spot(mean_up_s=1, pool="x"), "mean_up_s and pool, not both"),
        (lambda: Spot(pool="nowhere"), "unknown spot pool 'nowhere'"),
        (lambda: Spot(mean_down_s=5), "needs mean_up_s"),
        (lambda: Spot(mean_up_s=0), "mean_up_s must be positive"),
        (lambda: Boot(cloud="azur"), "did you mean 'azure'"),
        (lambda: Boot(seconds=-1), "seconds must not be negative"),
        (lambda: Boot(seconds=1, cloud="aws"), "either cloud or seconds"),
        (lambda: start_up(Boot(), None, 1, 1), "set cloud: aws, or seconds"),
        (lambda: start_up(Boot(), "aws", 1, None), "set load_bytes_per_s"),
        (lambda: Limits(retries=-1), "retries must not be negative"),
        (lambda: find_spot_market("aws/g5.xlarge", "moon"), "in 'moon'.*us-east-1"),
        (lambda: find_spot_market("gcp/x", "moon"), "none is known"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_figures_of_clouds_name_their_source_and_are_possible():
    for cloud in load_clouds().values():
        figures = set(vars(cloud)) - {"sources"}
        assert set(cloud.sources) == figures
        for source in cloud.sources.values():
            assert source.split(";")[0] in load_sources()
        prices = [price for _, price in sorted(cloud.internet_usd_per_byte.items())]
        assert prices[0] == 0
        assert prices[1:] == sorted(prices[1:], reverse=True)
        assert cloud.pue > 1
    for grid in load_grids().values():
        assert grid.source in load_sources()
        assert all(5 < g < 1000 for g in grid.g_per_kwh.values())
    for times in load_boot_times().values():
        assert times.source in load_sources()
        assert times.n >= 30
    assert set(load_spot_markets()) <= set(load_instances())


def test_egress_is_priced_by_the_tiers_of_a_month():
    aws = load_clouds()["aws"]
    assert aws.internet_usd(1e12, MONTH_S) == pytest.approx(0.9e12 * 9e-11)
    assert aws.internet_usd(1e12 / 730, 3600) == pytest.approx(0.9e12 * 9e-11 / 730)
    assert aws.internet_usd(5e10, MONTH_S) == 0
    assert aws.internet_usd(2e13, MONTH_S) == pytest.approx(9.9e12 * 9e-11 + 1e13 * 8.5e-11)


def test_spot_rates_and_prices_follow_the_published_bands():
    market = find_spot_market("aws/g5.xlarge", "us-east-1")
    assert 1 - math.exp(-MONTH_S / market.mean_up_s) == pytest.approx(market.taken_back, abs=0.026)
    spot, on_demand = (
        load_prices().find("aws/g5.xlarge", m, "us-east-1").usd_per_hour
        for m in ("spot", "on_demand")
    )
    assert spot == pytest.approx(on_demand * (1 - market.saving))
    assert find_spot_pool("aws-us-west-2a-v100x1-2023-02-15").mean_up_s > 20_000
