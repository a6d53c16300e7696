from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import write_layers

from simulator.answers import Deployment, answer
from simulator.autoscaling import Autoscaling
from simulator.availability import Failures
from simulator.boot import AT_ONCE
from simulator.continuous import generate, generate_while
from simulator.fast_continuous import generate_fast
from simulator.generations import ContinuousBatching, Fleet, Generations, Server
from simulator.layer_profile import read_step_times
from simulator.renting import Conditions, operate
from simulator.step_times import StepTimes, least_squares_skew


def step_times(skew=0.0):
    """1 ms a token, 10 ms a sequence, and 1 us for every token of context."""
    chunk, past, decodes, context = (np.array([0.0, 4096.0]) for _ in range(4))
    grid = np.zeros((2, 2, 2, 2))
    grid[:, :, 1, 1] = 4096 * 4096 * 1e-6
    line = np.array([0.0, 4096.0])
    return StepTimes(
        line, line * 1e-3, line, line * 1e-2, chunk, past, decodes, context, grid, skew
    )


def fleet(times=None, replicas=1, **limits):
    server = Server(ContinuousBatching(**limits), times or step_times())
    return Fleet((server,) * replicas)


def traffic(num, rate, seed=0):
    rng = np.random.default_rng(seed)
    return Generations(
        np.cumsum(rng.exponential(1 / rate, num)),
        rng.integers(1, 60, num),
        rng.integers(1, 40, num),
    )


def one(prompt, output):
    return Generations(np.array([2.0]), np.array([prompt]), np.array([output]))


def test_one_request_takes_its_prompt_then_a_step_a_token():
    got = generate(one(100, 3), fleet(num_blocks=64))
    first_s = 100e-3 + 10e-3
    assert got.first_token_s[0] == pytest.approx(2.0 + first_s)
    decoded_s = 2 * 11e-3 + (101 + 102) * 1e-6
    assert got.last_token_s[0] == pytest.approx(2.0 + first_s + decoded_s)
    assert got.steps[0] == 3


def test_a_prompt_longer_than_the_budget_comes_in_chunks():
    chunked = fleet(num_blocks=64, token_budget=40, max_sequences=8)
    assert generate(one(100, 1), chunked).steps[0] == 3


def test_a_request_that_no_replica_can_hold_is_not_served():
    got = generate(one(100, 100), fleet(num_blocks=3))
    assert np.isnan(got.last_token_s[0])
    assert got.server[0] == -1


@pytest.mark.parametrize("caching", [True, False])
def test_sequences_without_a_block_are_preempted_and_finish_later(caching):
    requests = traffic(60, 50.0)
    got = generate(requests, fleet(num_blocks=20, block_tokens=8, prefix_caching=caching))
    ample = generate(requests, fleet(num_blocks=4000, block_tokens=8))
    assert got.preemptions > 0
    assert ample.preemptions == 0
    assert np.isfinite(got.last_token_s).all()
    assert got.last_token_s.max() > ample.last_token_s.max()
    assert (got.first_token_s > requests.arrival_s).all()
    assert (got.last_token_s >= got.first_token_s).all()


def random_server(rng, times):
    limits = ContinuousBatching(
        num_blocks=int(rng.integers(15, 60)),
        token_budget=int(rng.integers(16, 80)),
        max_sequences=int(rng.integers(1, 16)),
        block_tokens=int(rng.integers(1, 17)),
        prefix_caching=bool(rng.integers(2)),
        steps_ahead=int(rng.integers(2)),
    )
    return Server(limits, times)


def assert_equal(slow, fast):
    for field in fields(slow):
        np.testing.assert_array_equal(
            getattr(slow, field.name), getattr(fast, field.name), err_msg=field.name
        )


@pytest.mark.parametrize("routing", ["round_robin", "shortest_queue", "fastest"])
@pytest.mark.parametrize("seed", range(8))
def test_the_compiled_engine_gives_the_same_times_to_the_last_bit(seed, routing):
    rng = np.random.default_rng(seed)
    kinds = [step_times(skew=0.1 * (seed % 3)), step_times()]
    servers = tuple(random_server(rng, kinds[k % 2]) for k in range(1 + seed % 3))
    bounds = [(None, None), (3, None), (None, 0.4), (2, 0.7)][seed % 4]
    mixed = Fleet(servers, routing, *bounds)
    requests = traffic(80, 20.0, seed)
    if seed % 2:
        tied_s = np.floor(requests.arrival_s * 10) / 10
        requests = replace(requests, arrival_s=tied_s)
    sample_s = [0.0, 0.5, 1.0, 3.0, 1000.0]
    slow, fast = (engine(requests, mixed, sample_s) for engine in (generate, generate_fast))
    assert_equal(slow, fast)
    left = np.isnan(slow.last_token_s)
    assert (left == (slow.timed_out | (slow.server < 0))).all()


def test_a_layer_profile_is_read_and_sums_its_layers(tmp_path):
    write_layers(tmp_path)
    times = read_step_times(tmp_path, num_layers=3)
    decode_us = (3 * 8 + 2) + 2 * 5 + 3 * 16
    assert times.step([], 1, 16, 16) == pytest.approx(decode_us * 1e-6)
    with pytest.raises(ValueError, match=r"dense\.csv: no such file"):
        read_step_times(tmp_path / "nowhere", 3)


def test_limits_that_let_nothing_run_are_refused():
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        ContinuousBatching(num_blocks=0)
    with pytest.raises(ValueError, match="must not exceed token_budget"):
        ContinuousBatching(num_blocks=1, token_budget=8, max_sequences=9)
    with pytest.raises(ValueError, match="arrival_s must be finite and in order"):
        Generations(np.array([1.0, 0.0]), np.array([1, 1]), np.array([1, 1]))


def test_skew_by_least_squares():
    mean, longest = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert least_squares_skew(mean, longest, mean + 0.25 * (longest - mean)) == 0.25


def test_a_lost_server_loses_its_cache_and_its_requests_start_again_elsewhere():
    two = fleet(num_blocks=64, replicas=2)

    def strike(door):
        yield door.env.timeout(2.15)
        door.lose(door.servers[0])

    requests = Generations(np.array([2.0, 20.0]), np.array([100, 100]), np.array([30, 3]))
    rng = np.random.default_rng(0)
    got = generate_while(requests, two, [], [strike], (30.0, rng))
    undisturbed = generate(requests, two)
    assert got.server.tolist() == [1, 1]
    assert got.last_token_s[0] == pytest.approx(undisturbed.last_token_s[0] + 0.15)
    assert got.first_token_s[0] == pytest.approx(undisturbed.first_token_s[0] + 0.15)
    assert got.turnover.retries == 1
    assert got.turnover.up_s.tolist() == [[0.0, 2.15], [0.0, 30.0]]
    assert got.busy_s[0] == pytest.approx(0.15)
    hopeless = replace(two, retries=0)
    alone = generate_while(requests, hopeless, [], [strike], (30.0, rng))
    assert alone.turnover.rejected.tolist() == [True, False]
    assert np.isnan(alone.last_token_s[0])


def test_a_request_waits_where_no_server_is_up_and_a_drained_server_ends_its_answers():
    def actor(door):
        yield door.env.timeout(1.0)
        door.lose(door.servers[0])
        yield door.env.timeout(4.0)
        door.add(door.rules.servers[0])
        yield door.env.timeout(0.001)
        door.drain(door.servers[1])

    rng = np.random.default_rng(0)
    got = generate_while(one(100, 3), fleet(num_blocks=64), [], [actor], (30.0, rng))
    assert got.scheduled_s[0] == 5.0
    assert got.turnover.up_s[1, 1] == pytest.approx(got.last_token_s[0])
    assert got.turnover.present == 0


@pytest.mark.parametrize("routing", ["round_robin", "shortest_queue", "fastest"])
@pytest.mark.parametrize("seed", range(4))
def test_no_request_vanishes_where_servers_come_and_go(seed, routing):
    rng = np.random.default_rng(seed)
    servers = tuple(random_server(rng, step_times()) for _ in range(3))
    bounds = [(None, None), (3, None), (None, 0.4), (2, 0.7)][seed]
    rules = Fleet(servers, routing, *bounds, retries=1)
    requests = traffic(200, 40.0, seed)
    duration_s = float(requests.arrival_s[-1])
    conditions = {"": Conditions(failures=Failures(1.0, 0.5), start_up=AT_ONCE)}
    actor = operate(conditions, Autoscaling(max=5, target=0.5, interval_s=0.3, cooldown_s=0.5))
    deployment = Deployment(rules, actors=(actor,), rng=rng)
    got = answer(requests, deployment, duration_s)
    assert got.counts["arrived"] == 200 == sum(got.counts.values()) - 200
    assert got.pools[0].turnover.retries > 0
    assert {r.ended_by for r in got.pools[0].turnover.rentals} >= {"failed", "kept"}


def test_a_run_in_which_nothing_goes_is_the_run_of_a_fleet_that_stays():
    requests, three = traffic(100, 20.0), fleet(num_blocks=20, replicas=3)
    stays = generate(requests, three)
    got = generate_while(requests, three, [], [], (1000.0, np.random.default_rng(0)))
    np.testing.assert_array_equal(got.last_token_s, stays.last_token_s)
    np.testing.assert_array_equal(got.busy_s, stays.busy_s)
