import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.arrivals import Slo, Traffic, draw
from simulator.experiment import experiment
from simulator.fast_serve import serve_fast
from simulator.serve import serve
from simulator.serving import Batching, Limits, Replica, ServiceTimes, Serving

ROUTINGS = ["round_robin", "shortest_queue", "shared_queue", "fastest"]
ALONE = Batching(1, 0)


def constant(seconds, **spread):
    return Replica(f"{seconds} s", ServiceTimes((1,), (seconds,), (seconds,), **spread))


def run(replicas, traffic, serving, actors=()):
    rng = np.random.default_rng(traffic.seed)
    return serve(replicas, draw(traffic, rng), serving, rng, actors)


def waits(served):
    return (served.start_s - served.arrival_s)[np.isfinite(served.start_s)]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_no_request_vanishes_while_servers_come_and_go(routing):
    def trouble(fleet):
        for k in range(30):
            yield fleet.env.timeout(5)
            victim = fleet.up[k % len(fleet.up)]
            (fleet.lose, fleet.drain)[k % 2](victim)
            yield fleet.env.timeout(2)
            fleet.add(victim.replica)

    batches = Replica("batches", ServiceTimes((1, 4), (1.0, 2.0), (0.8, 1.6)))
    serving = Serving(
        batch=Batching(None, 0.3), routing=routing, limits=Limits(queue=20, timeout_s=15.0)
    )
    traffic = Traffic(rate=8, arrivals="gamma", cv=3.0, duration_s=250)
    served = run([batches, batches, constant(0.5)], traffic, serving, [trouble])
    counts = served.requests
    assert counts["arrived"] == sum(counts.values()) - counts["arrived"]
    assert counts["finished"] > 1000
    assert served.retries > 10
    assert len(served.servers) == 33
    done = served.state == 1
    assert (served.start_s[done] >= served.arrival_s[done]).all()
    assert (served.end_s[done] - served.arrival_s[done]).max() <= 15.0


def test_a_lost_servers_requests_are_answered_by_another():
    def loss(fleet):
        yield fleet.env.timeout(0.5)
        fleet.lose(fleet.servers[0])

    traffic = Traffic(rate=10, arrivals="deterministic", duration_s=0.35)
    replicas = [constant(1.0), constant(2.0)]
    serving = Serving(batch=ALONE, routing="round_robin")
    rng = np.random.default_rng(0)
    requests = draw(traffic, rng).until(20.0)
    served = serve(replicas, requests, serving, rng, [loss])
    # 0.1 s and 0.3 s went to the lost one; the other works on 0.2 s and then in order of arrival
    assert served.end_s == pytest.approx([4.2, 2.2, 6.2])
    assert served.retries == 2
    assert served.batches.busy_s[0] == pytest.approx(0.4)


def test_requests_wait_where_no_server_is_up():
    def boot(fleet):
        fleet.lose(fleet.servers[0])
        yield fleet.env.timeout(10)
        fleet.add(constant(1.0))

    traffic = Traffic(rate=1, arrivals="deterministic", duration_s=15)
    served = run([constant(1.0)], traffic, Serving(batch=ALONE), [boot])
    assert served.start_s[:3] == pytest.approx([10, 11, 12])


def test_a_draining_server_answers_what_it_holds():
    def shrink(fleet):
        yield fleet.env.timeout(3.5)
        fleet.drain(fleet.servers[0])

    traffic = Traffic(rate=1, arrivals="deterministic", duration_s=40)
    replicas = [constant(5.0), constant(0.5)]
    served = run(replicas, traffic, Serving(batch=ALONE, routing="round_robin"), [shrink])
    assert served.end_s[:3] == pytest.approx([6.0, 2.5, 11.0])
    assert served.servers[0].end_s == pytest.approx(11.0)
    assert (served.batches.server[2:] == 1).sum() == len(served.batches.server) - 3


def test_one_shared_queue_waits_least():
    replicas = [constant(1.0, spread="exponential")] * 3
    traffic = Traffic(rate=2.4, duration_s=10_000)
    mean = {
        routing: waits(run(replicas, traffic, Serving(batch=ALONE, routing=routing))).mean()
        for routing in ROUTINGS
    }
    assert mean["shared_queue"] < mean["shortest_queue"] < mean["round_robin"]


@pytest.mark.parametrize("routing", ["shared_queue", "fastest"])
def test_waits_are_those_of_the_kiefer_wolfowitz_recursion(routing):
    served = run(
        [constant(1.0)] * 3, Traffic(rate=2.4, duration_s=2000), Serving(1, ALONE, routing)
    )
    free_s, expected = [0.0] * 3, []
    for arrival_s in served.arrival_s:
        start_s = max(free_s[0], arrival_s)
        expected.append(start_s - arrival_s)
        free_s = sorted([*free_s[1:], start_s + 1.0])
    assert waits(served) == pytest.approx(expected[: len(waits(served))], abs=1e-9)


def test_a_fast_server_gets_more_when_the_finish_is_predicted():
    fleet = [constant(1.0), constant(0.1)]
    traffic = Traffic(rate=5, duration_s=2000)
    served = run(fleet, traffic, Serving(batch=ALONE, routing="fastest"))
    share = (served.batches.server == 1).mean()
    assert share > 0.95
    blind = run(fleet, traffic, Serving(batch=ALONE, routing="shortest_queue"))
    assert waits(served).mean() < waits(blind).mean()


def test_deterministic_arrivals_below_capacity_never_wait():
    traffic = Traffic(rate=0.5, arrivals="deterministic", duration_s=1000)
    assert waits(run([constant(1.0)], traffic, Serving(batch=ALONE))).max() == 0


def test_a_batch_waits_for_company_but_not_for_ever():
    replica = Replica("r", ServiceTimes((1, 8), (1.0, 1.0), (1.0, 1.0)))
    lonely = Traffic(rate=0.01, arrivals="deterministic", duration_s=10_000)
    served = run([replica], lonely, Serving(batch=Batching(8, 3.0)))
    assert waits(served) == pytest.approx(np.full(99, 3.0))
    crowd = Traffic(rate=100, arrivals="deterministic", duration_s=0.985)
    served = run([replica], crowd, Serving(batch=Batching(8, 3.0)))
    assert served.batches.size.tolist() == [8]
    assert served.batches.start_s[0] == pytest.approx(0.08)


def test_a_full_queue_rejects():
    traffic = Traffic(rate=10, arrivals="deterministic", duration_s=10)
    served = run([constant(1.0)], traffic, Serving(batch=ALONE, limits=Limits(queue=2)))
    assert served.requests["rejected"] == pytest.approx(87, abs=2)
    assert waits(served).max() <= 2.0


def test_who_waits_too_long_leaves_the_queue_or_is_computed_in_vain():
    traffic = Traffic(rate=2, arrivals="deterministic", duration_s=100)
    served = run([constant(1.0)], traffic, Serving(batch=ALONE, limits=Limits(timeout_s=3.0)))
    late = served.state == 3
    assert (served.end_s - served.arrival_s)[late] == pytest.approx(np.full(late.sum(), 3.0))
    assert (served.end_s - served.arrival_s)[served.state == 1].max() <= 3.0
    assert served.requests["timed_out"] > 80


def test_admission_keeps_the_latency_by_turning_requests_away():
    traffic = Traffic(rate=2, duration_s=500)
    served = run([constant(1.0)], traffic, Serving(batch=ALONE, limits=Limits(predicted_s=2.5)))
    assert (served.end_s - served.arrival_s)[served.state == 1].max() <= 2.5
    assert served.requests["finished"] > 450
    assert served.requests["timed_out"] == 0


def test_overload_is_said_with_the_growth_of_the_queue():
    report = experiment(
        [constant(1.0)] * 2, Traffic(rate=3), Serving(batch=ALONE), np.random.default_rng(0)
    )
    assert report.latency_s is None
    assert report.queue_growth_per_s == pytest.approx(1.0)


def test_round_robin_is_overloaded_by_its_slowest():
    fleet, rng = [constant(1.0), constant(0.1)], np.random.default_rng(0)
    traffic = Traffic(rate=4)
    assert (
        experiment(fleet, traffic, Serving(batch=ALONE, routing="round_robin"), rng).latency_s
        is None
    )
    assert experiment(fleet, traffic, Serving(batch=ALONE), rng).queue_growth_per_s == 0


def test_same_seed_same_report_and_another_seed_another():
    def report(seed):
        return experiment(
            [constant(0.1, spread="exponential")],
            Traffic(rate=7, duration_s=100, slo=Slo(0.5)),
            Serving(batch=ALONE),
            np.random.default_rng(seed),
        )

    assert report(5) == report(5)
    assert report(5) != report(6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traffic(rate=-1), "traffic: rate must be positive, got -1"),
        (lambda: Traffic(rate=1, duration_s=math.nan), "duration_s must be positive, got nan"),
        (lambda: Traffic(), "either rate or trace is needed"),
        (lambda: Traffic(rate=1, trace="a.csv"), "either rate or trace is needed"),
        (lambda: Traffic(rate=1, cv=2.0), "cv needs arrivals: gamma, got arrivals: poisson"),
        (lambda: Traffic(1, "diurnal", peak_to_trough=0.5), "peak_to_trough is at least 1"),
        (lambda: Serving(replicas=0), "serving: replicas must be positive, got 0"),
        (lambda: Serving(limits=Limits(timeout_s=0.001)), "must be longer than batch.wait_s"),
        (lambda: Limits(queue=0), "serving.limits: queue must be positive, got 0"),
        (lambda: Slo(0), "slo: p95_s must be positive, got 0"),
        (lambda: Batching(wait_s=-1), "wait_s must not be negative, got -1"),
    ],
)
def test_impossible_traffic_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@st.composite
def servings(draw_from):
    wait_s = draw_from(st.sampled_from([0.0, 0.25, 0.7]))
    limits = Limits(
        draw_from(st.sampled_from([None, 1, 5])),
        draw_from(st.sampled_from([None, 1.0, 3.5])),
        draw_from(st.sampled_from([None, 2.0])),
    )
    largest = draw_from(st.sampled_from([None, 1, 3]))
    return Serving(1, Batching(largest, wait_s), draw_from(st.sampled_from(ROUTINGS)), limits)


FLEET = st.lists(
    st.sampled_from(
        [
            constant(0.5),
            constant(1.0, spread="exponential"),
            constant(1.0, spread="lognormal", cv=2.0),
            Replica("pipeline", ServiceTimes((1, 4), (1.0, 2.0), (0.5, 1.25))),
        ]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(
    FLEET,
    servings(),
    st.sampled_from(["poisson", "deterministic", "gamma"]),
    st.floats(0.2, 8.0),
    st.integers(0, 99),
)
def test_the_fast_engine_is_simpy_to_the_last_bit(fleet, serving, arrivals, rate, seed):
    traffic = Traffic(rate, arrivals, 60, cv=2.5 if arrivals == "gamma" else None)
    slow, fast = (
        engine(fleet, draw(traffic, rng), serving, rng)
        for engine in (serve, serve_fast)
        for rng in [np.random.default_rng(seed)]
    )
    for name in ("arrival_s", "start_s", "end_s", "state"):
        np.testing.assert_array_equal(getattr(slow, name), getattr(fast, name))
    for name in ("start_s", "busy_s", "server", "size"):
        np.testing.assert_array_equal(getattr(slow.batches, name), getattr(fast.batches, name))
    assert slow.requests == fast.requests


def test_fast_is_refused_where_servers_come_and_go():
    with pytest.raises(ValueError, match="engine fast has no servers that come and go"):
        experiment(
            [constant(1.0)], Traffic(0.5), Serving(engine="fast"), np.random.default_rng(0), [None]
        )
