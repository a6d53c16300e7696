"""Clusters in which not every two devices are joined."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import make_cluster, make_graph, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_list_scheduling import problems

from hardware.errors import InfeasibleError
from scheduler.evaluation.check import check_plan
from scheduler.list_scheduling.tasks import tasks_of
from scheduler.portfolio import ALGORITHMS, solve

ROUTED = ("heft", "cpop", "peft", "m_etf", "m_sct", "latency_descent", "auto")
"""Those that find a plan on these graphs wherever there is one."""


def has_plan(problem):
    """Whether some placement keeps pins, groups and links."""
    a, n = problem.arrays, len(problem.graph.ops)
    for device in product(range(len(problem.costs.devices)), repeat=a.num_units):
        at = np.array(device)[a.unit]
        src, dst = (at[end] for end in a.edges)
        able = np.isfinite(problem.seconds[np.arange(n), at]).all()
        if able and ((src == dst) | (a.medium[src, dst] >= 0)).all():
            return True
    return False


@st.composite
def parted(draw):
    """Problems with some of the links, and some operators pinned."""
    problem = draw(problems(most=5))
    links = tuple(link for link in problem.cluster.links if draw(st.booleans()))
    names, first = problem.costs.devices, {}
    for op, unit in zip(problem.graph.ops, problem.unit.tolist(), strict=True):
        if draw(st.integers(0, 2)) == 0:
            first.setdefault(unit, (op.name, draw(st.sampled_from(names))))
    return replace(
        problem, cluster=replace(problem.cluster, links=links), pins=dict(first.values())
    )


def planned(problem, name):
    """An algorithm's plan, or why there is none."""
    try:
        return solve(problem, name).best, ""
    except InfeasibleError as refusal:
        return None, str(refusal)


@settings(max_examples=25, deadline=None)
@given(parted())
def test_every_algorithm_keeps_to_links_or_says_why_not(problem):
    feasible = has_plan(problem)
    for name in (*ALGORITHMS, "latency_descent", "auto"):
        plan, why = planned(problem, name)
        assert plan or "link" in why
        assert plan or not (feasible and name in ROUTED), name
        assert plan is None or (feasible and check_plan(problem, plan) == [])


def test_a_tensor_goes_by_the_device_that_reaches_both_ends():
    """Operator b must be on the hub: a and c are pinned to spokes that no link joins."""
    cluster = make_cluster("xyh")
    links = tuple(link for link in cluster.links if "h" in (link.src, link.dst))
    problem = make_problem(
        make_graph({"a": [], "b": ["a"], "c": ["b"]}), [[1.0, 1.0, 9.0]] * 3,
        replace(cluster, links=links), objective="latency", pins={"a": "x", "c": "y"},
    )  # fmt: skip
    for name in ROUTED:
        assert solve(problem, name).best.placement["b"] == "h", name
    with pytest.raises(InfeasibleError, match=r"no link leads from or to operator .*'x' and 'y'"):
        solve(replace(problem, forbidden={"b": ("h",)}))


def test_serialised_transfers_need_a_link_too():
    cluster = replace(make_cluster(), links=())
    problem = make_problem(
        make_graph({"a": [], "b": ["a"]}), [[1.0, 9.0], [9.0, 1.0]], cluster,
        objective="latency", communication="serialised",
    )  # fmt: skip
    assert len(tasks_of(problem).ends_s)
    for name in ROUTED:
        assert solve(problem, name).best.value == 10.0, name
