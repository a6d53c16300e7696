import itertools
import os
import signal
import time
from dataclasses import replace
from threading import Timer

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_graph, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.latency import portfolio as latency
from scheduler.latency import windows as latency_windows
from scheduler.portfolio import solve
from scheduler.throughput import portfolio as throughput
from simulator.replay import replay


@st.composite
def problems(draw):
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    parents = {f"o{i}": [f"o{j}" for j in range(i) if draw(st.booleans())] for i in range(n)}
    seconds = [[draw(st.integers(1, 9)) for _ in range(d)] for _ in range(n)]
    cluster = make_cluster("abc"[:d], bytes_per_s=draw(st.sampled_from([8.0, 80.0])))
    pins = {"o0": "a"} if draw(st.booleans()) else {}
    together = (("o0", f"o{n - 1}"),) if n > 1 and draw(st.booleans()) else ()
    graph = make_graph(parents)
    if draw(st.booleans()):
        cluster = make_cluster("abc"[:d], memory_bytes=draw(st.integers(100, 300)))
    return make_problem(
        graph, seconds, cluster, objective=draw(st.sampled_from(["latency", "throughput"])),
        pins=pins, colocated=together, memory_headroom=0.0,
        communication=draw(st.sampled_from(["overlapped", "serialised"])),
    )  # fmt: skip


def brute_force(problem):
    """The least value of all placements, each device running its operators in graph order."""
    best = np.inf
    names = [op.name for op in problem.graph.ops]
    for devices in itertools.product(problem.costs.devices, repeat=len(names)):
        try:
            plan = finish_plan(problem, "any", dict(zip(names, devices, strict=True)), 0.0, 0.0)
        except InfeasibleError:
            continue
        if not check_plan(problem, plan):
            best = min(best, plan.value)
    return best


@settings(max_examples=40, deadline=None)
@given(problems())
def test_every_plan_of_every_algorithm_is_valid_and_above_its_bound(problem):
    best = brute_force(problem)
    try:
        solution = solve(problem)
    except InfeasibleError:
        return
    for plan in solution.plans:
        assert check_plan(problem, plan) == [], plan.algorithm
        assert plan.lower_bound <= plan.value
        if problem.objective == "throughput":
            assert plan.lower_bound <= best * (1 + 1e-6)
            assert plan.value >= best * (1 - 1e-9)
    assert np.isfinite(best) or problem.objective == "latency"
    if solution.best.gap == 0 and problem.objective == "throughput":
        assert solution.best.value == pytest.approx(best)


def test_many_kinds_of_devices_do_not_multiply_the_states_of_a_split():
    """2^20 states of devices used: the order is split over sequences of devices instead."""
    slowness = np.linspace(1.0, 2.0, 20)
    cluster = make_cluster("abcdefghijklmnopqrst")
    problem = make_problem(make_chain(60), np.tile(slowness, (60, 1)), cluster)
    plan = solve(problem, "contiguous").best
    assert check_plan(problem, plan) == []
    assert plan.value <= 1.2 * 60 / (1 / slowness).sum()


def test_a_split_whose_activations_do_not_fit_is_made_again_with_less_memory():
    """Weights alone would fit three to one; what is sent for batches in flight takes their room."""
    chain = make_chain(8, out_bytes=2**20)
    ops = tuple(replace(op, weights={f"w{i}": 2**25}) for i, op in enumerate(chain.ops))
    seconds = np.column_stack([np.ones(8), 3 * np.ones(8)])
    cluster = make_cluster(memory_bytes=6 * 2**25 + 2**20)
    problem = make_problem(replace(chain, ops=ops), seconds, cluster, memory_headroom=0.0)
    plan = solve(problem, "contiguous").best
    assert check_plan(problem, plan) == []
    assert plan.value == 9.0


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_one_device_is_an_algorithm_with_a_time_limit_too(objective):
    """Loops are compiled on a problem with other devices."""
    problem = make_problem(make_chain(3), np.ones((3, 2)), objective=objective)
    assert solve(problem, "single_device:b", 1.0).best.devices == ["b"]


def test_a_plan_that_falls_short_of_its_loads_gives_way_to_one_that_does_not():
    parents = {f"o{i}": [f"o{i - 1}"] if i else [] for i in range(8)}
    seconds = [[s, s] for s in (1, 2, 3, 2, 8, 8, 6, 1)]
    cluster = make_cluster("ab", bytes_per_s=80.0)
    problem = make_problem(
        make_graph(parents), seconds, cluster, objective="throughput", colocated=(("o0", "o7"),)
    )
    best, *others = solve(problem).plans
    lighter = next(plan for plan in others if plan.value < best.value)
    assert 1 / replay(problem, best).throughput_per_s == pytest.approx(best.value)
    assert 1 / replay(problem, lighter).throughput_per_s > best.value * 1.05


def test_replicas_shorten_no_batch():
    problem = make_problem(make_chain(3), np.ones((3, 2)), objective="latency")
    with pytest.raises(ValueError, match="'replicated' shortens no batch"):
        solve(problem, "replicated", 1.0)


def test_ctrl_c_ends_a_search_with_the_best_plan_so_far(monkeypatch):
    """In the search's third step, where that is asked for; before any plan nothing can be kept."""
    rng = np.random.default_rng(1)
    problem = make_problem(make_chain(30), rng.uniform(1, 9, (30, 3)), make_cluster("abc"))
    calls = []

    def interrupted(step, search):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        run(step, search)

    run = throughput._run
    monkeypatch.setattr(throughput, "_run", interrupted)
    found = solve(problem, time_limit_s=300.0, stoppable=True)
    assert (found.stopped, len(calls)) == (True, 3)
    assert check_plan(problem, found.best) == []
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        solve(problem, time_limit_s=300.0)
    monkeypatch.setattr("scheduler.portfolio.single_device", interrupt)
    with pytest.raises(KeyboardInterrupt):
        solve(problem, stoppable=True)


def interrupt(problem, device):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "module", "loop"),
    [
        ("latency_search", latency, "improve_schedule"),
        ("latency_windows", latency_windows, "improve_windows"),
    ],
)
def test_ctrl_c_ends_a_search_for_latency_with_the_best_schedule_so_far(
    monkeypatch, name, module, loop
):
    """The signal comes while compiled loops run, long before the limit."""
    rng = np.random.default_rng(3)
    parents = {f"o{i}": [f"o{j}" for j in range(max(0, i - 9), i - 2)] for i in range(300)}
    problem = make_problem(
        make_graph(parents), rng.uniform(1, 9, (300, 3)), make_cluster("abc"), objective="latency"
    )
    solve(problem, name, time_limit_s=0.2)  # loops are compiled
    run = getattr(module, loop)

    def signalled(tasks, device, order, deadline_s, *more):
        if deadline_s - time.perf_counter() > 100:
            Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        return run(tasks, device, order, deadline_s, *more)

    monkeypatch.setattr(module, loop, signalled)
    found = solve(problem, name, time_limit_s=300.0, stoppable=True)
    assert found.stopped
    assert found.best.algorithm == name
    assert check_plan(problem, found.best) == []
    assert found.best.value < min(solve(problem, n).best.value for n in ("heft", "cpop", "peft"))
