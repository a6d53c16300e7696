"""Latency of several micro-batches: what is searched is what the plan is worth."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_cluster, make_graph, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_list_scheduling import orders_of, problems

from scheduler.bounds.relaxation_bound import relaxation_bound
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import in_flight_of
from scheduler.evaluation.timeline import stage_makespan
from scheduler.latency.anneal import Cooling
from scheduler.latency.batch import batch_makespan
from scheduler.latency.batch_search import anneal_batch
from scheduler.list_scheduling.tasks import fits, tasks_of
from scheduler.plan import cut_runs
from scheduler.portfolio import solve

ABOVE = 1.05
"""How far above the least value the heuristics may be on five operators; the search is at it."""


@settings(max_examples=20, deadline=None)
@given(problems(), st.randoms(use_true_random=False), st.integers(2, 5), st.booleans())
def test_the_search_s_batch_is_the_plan_s_timeline(problem, random, m, shares):
    links = problem.cluster.links
    if shares:
        links = tuple(replace(link, medium="bus") for link in links)
    cluster = replace(problem.cluster, links=links)
    problem = replace(problem, cluster=cluster, num_micro_batches=m, pins={}, colocated=())
    names = problem.costs.devices
    device = np.array([random.randrange(len(names)) for _ in problem.graph.ops])
    placed = {op.name: names[p] for op, p in zip(problem.graph.ops, device, strict=True)}
    stages = cut_runs(problem.graph, placed)
    in_plan = stage_makespan(problem, stages, in_flight_of(problem, stages), m)
    found = batch_makespan(tasks_of(problem), device, np.arange(len(device)), m)
    assert found == pytest.approx(in_plan, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(problems(most=5), st.integers(2, 4))
def test_several_micro_batches_against_every_plan(problem, m):
    problem = replace(problem, num_micro_batches=m)
    tasks, orders = tasks_of(problem), orders_of(problem)
    placements = np.ndindex(*(len(problem.costs.devices),) * len(problem.graph.ops))
    able = [np.array(place) for place in placements if fits(tasks, np.array(place))]
    least = min(batch_makespan(tasks, device, order, m) for device in able for order in orders)
    best = solve(problem).best
    assert check_plan(problem, best) == []
    assert best.lower_bound <= least * (1 + 1e-9)
    assert least * (1 - 1e-9) <= best.value <= least * ABOVE
    assert relaxation_bound(problem, best.value, best.lower_bound, np.inf) <= least * (1 + 1e-9)
    start = np.array(able[0]), np.arange(len(able[0]))
    cooling = Cooling(least / 4, least / 400, 4000, np.inf, 0.0, np.zeros(1, dtype=np.int64))
    assert anneal_batch(tasks, start, m, cooling, 0)[2] == pytest.approx(least)


def test_a_batch_is_balanced_where_one_run_stays_on_the_fast_device():
    """Two branches of 2 s: one run is as fast on one device, four runs take 9 s on two, not 16."""
    graph = make_graph({"a": [], "b": [], "c": ["a", "b"]})
    seconds = [[2.0, 2.0], [2.0, 2.0], [0.25, 0.25]]
    cluster = make_cluster(latency_s=0.1)
    problem = make_problem(graph, seconds, cluster, objective="latency", num_micro_batches=4)
    best = solve(problem).best
    assert set(best.placement.values()) == {"a", "b"}
    assert best.value == pytest.approx(9.0, rel=0.1)
