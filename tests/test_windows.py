import time
from itertools import pairwise

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_list_scheduling import problems

from benchmarks.deep_decoder import cluster_of, decoder
from scheduler.bounds.lower_bound import lower_bound
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.ir.graph import sharing_weights
from scheduler.large.portfolio import best_schedule
from scheduler.latency.in_order import media_are_private
from scheduler.latency.makespan import makespan_of
from scheduler.latency.window import room_for, run, window_at
from scheduler.latency.window_anneal import anneal_window
from scheduler.latency.windows import improve_windows, latency_windows, timed
from scheduler.list_scheduling.heft import heft_schedule
from scheduler.list_scheduling.tasks import fits, tasks_of
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.stopped import Stopped


def scheduled(tasks):
    device, start = heft_schedule(tasks)
    return device, np.lexsort((np.arange(len(device)), start))


def far(seconds=300.0):
    return time.perf_counter() + seconds


@settings(max_examples=30, deadline=None)
@given(problems(), st.integers(0, 9), st.sampled_from([0.0, 1.0]))
def test_a_window_keeps_every_rule_and_says_what_it_gains(problem, seed, heat_s):
    tasks = tasks_of(problem)
    before_s, line = timed(tasks, *scheduled(tasks))
    if len(tasks.ends_s) or not fits(tasks, line.device):
        return
    gained_s = anneal_window(tasks, line, room_for(tasks), 0, len(line.order), (heat_s, 50), seed)
    assert gained_s >= 0
    assert fits(tasks, line.device)
    assert sorted(line.order) == list(range(len(line.order)))
    assert (line.order[line.place] == np.arange(len(line.order))).all()
    for t, reader in zip(problem.arrays.edge_tensor, problem.arrays.reader, strict=True):
        assert line.place[tasks.producer[t]] < line.place[reader]
    after_s = makespan_of(tasks, line.device, line.order)
    if media_are_private(tasks):  # then the window, which holds all tasks, is the schedule
        assert after_s <= (before_s - gained_s) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.data())
def test_the_longest_path_through_any_window_of_a_schedule_is_no_longer_than_it(problem, data):
    tasks = tasks_of(problem)
    value_s, line = timed(tasks, *scheduled(tasks))
    if len(tasks.ends_s) or not value_s < np.inf:
        return
    first = data.draw(st.integers(0, len(line.order) - 1))
    past = data.draw(st.integers(first + 1, len(line.order)))
    window, room = window_at(tasks, line, first, past), room_for(tasks)
    longest = [run(tasks, line, window, room, s)[0] for s in range(len(window.first))]
    if media_are_private(tasks):
        assert max(longest) <= value_s * (1 + 1e-9)


def training(num_layers, num_devices):
    graph, cluster = decoder(num_layers, True), cluster_of(num_devices)
    costs = cost_table(graph, cluster)
    return Problem(graph, cluster, costs, "latency", colocated=sharing_weights(graph))


def test_windows_improve_the_best_list_schedule():
    problem, told = training(8, 8), []

    def until_second(value):
        told.append(value)
        if len(told) == 2:
            raise KeyboardInterrupt

    tasks = tasks_of(problem)
    device, start = best_schedule(problem)(tasks)
    order = np.lexsort((np.arange(len(device)), start))
    with pytest.raises(Stopped) as stopped:
        improve_windows(tasks, device, order, far(), until_second)
    improved = stopped.value.device, stopped.value.order
    assert fits(tasks, improved[0])
    assert all(a > b for a, b in pairwise([makespan_of(tasks, device, order), *told]))
    assert makespan_of(tasks, *improved) == pytest.approx(told[-1])


def test_auto_improves_a_large_graph_s_schedule_by_windows(monkeypatch):
    monkeypatch.setattr("scheduler.large.portfolio.LARGE", 500)
    problem = training(8, 8)

    def until_better(value, bound):
        raise KeyboardInterrupt

    plan = solve(problem, time_limit_s=300.0, tell=until_better, stoppable=True).best
    assert plan.algorithm == "latency_windows"
    assert check_plan(problem, plan) == []
    assert plan.lower_bound <= plan.value <= solve(problem).best.value * (1 + 1e-9)


def test_windows_without_time_are_the_list_schedule():
    problem = make_problem(make_chain(5), np.ones((5, 2)), make_cluster(), objective="latency")
    placement = latency_windows(problem, best_schedule(problem), far(-1.0))
    plan = finish_plan(problem, "windows", placement, 0.0, lower_bound(problem))
    assert plan.value == 5.0


def test_the_same_seed_gives_the_same_schedule():
    tasks = tasks_of(training(3, 8))
    lines = []
    for _ in range(2):
        line = timed(tasks, *scheduled(tasks))[1]
        anneal_window(tasks, line, room_for(tasks), 20, 90, (1e-6, 10), 7)
        lines.append(line)
    assert (lines[0].device == lines[1].device).all()
    assert (lines[0].order == lines[1].order).all()
