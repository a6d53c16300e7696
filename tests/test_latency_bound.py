import pytest
from conftest import make_chain, make_cluster, make_problem

from hardware.errors import InfeasibleError
from scheduler.portfolio import solve
from ui.scenario import parse_scenario


def priced(**changes):
    """Two operators of 1 s on equal devices, 1 s apart: split 1 s a batch, whole 2 s a batch."""
    cluster = make_cluster(latency_s=1.0)
    return make_problem(
        make_chain(2), [[1.0, 1.0]] * 2, cluster, objective="cost", usd_per_hour=3.6, **changes
    )


@pytest.mark.parametrize(("bound_s", "period_s"), [(None, 1.0), (3.0, 1.0), (2.5, 2.0), (2.0, 2.0)])
def test_the_cheapest_plan_within_a_latency(bound_s, period_s):
    best = solve(priced(latency_bound_s=bound_s)).best
    assert best.value == pytest.approx(3.6 / 3600 * period_s * 1000)


def test_a_latency_that_nothing_keeps_names_the_nearest():
    rule = r"a batch takes 2 s, latency_bound_s is 1.5 s; the least found is 2 s.* to 2 at least"
    with pytest.raises(InfeasibleError, match=rule):
        solve(priced(latency_bound_s=1.5))


def test_a_latency_bound_is_refused_where_it_bounds_nothing():
    with pytest.raises(ValueError, match="objective is latency; set objective: cost"):
        make_problem(make_chain(1), [[1.0, 1.0]], objective="latency", latency_bound_s=1.0)
    with pytest.raises(ValueError, match="seconds above 0, got -1"):
        priced(latency_bound_s=-1.0)
    raw = {"model": {"source": "zoo:resnet50"}, "constraints": {"latency_bound_s": 0.2}}
    assert parse_scenario(raw, "here", "test").constraints.latency_bound_s == 0.2
