from dataclasses import replace

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_graph, make_problem

from hardware.cluster import Cluster
from hardware.errors import InfeasibleError
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.timeline import loads, stage_timeline
from scheduler.plan import cut_stages
from scheduler.portfolio import solve


def ends(problem, seconds):
    """The problem with literal, serialised transfers: seconds by tensor on every device."""
    num = len(problem.costs.devices)
    pairs = {t: 2 * s * (1 - np.eye(num)) for t, s in seconds.items()}
    at_ends = {t: np.full(num, s) for t, s in seconds.items()}
    return replace(problem, costs=replace(problem.costs, transfers=pairs, ends=at_ends))


def test_serialised_devices_pay_once_to_send_and_once_each_to_receive():
    graph = make_graph({"a": [], "b": ["a"], "c": ["a"], "d": ["a"]})
    cluster = Cluster("no links", make_cluster("xyz").devices)
    problem = ends(make_problem(graph, np.ones((4, 3)), cluster), {"t_a": 10.0})
    place = {"a": "x", "b": "y", "c": "y", "d": "z"}
    stages = cut_stages(graph, place)
    assert loads(problem, stages) == {"x": 11.0, "y": 12.0, "z": 11.0}
    spans = [s for s in stage_timeline(problem, stages) if s.kind == "stage"]
    assert {s.resource: s.duration_s for s in spans} == {"x": 11.0, "y": 12.0, "z": 11.0}


def test_serialised_over_links_takes_each_device_s_fastest_and_spares_cpus():
    cluster = make_cluster("ab", bytes_per_s=10.0)
    gpu = replace(cluster.devices["a"], kind="gpu")
    cluster = Cluster("mixed", {**cluster.devices, "a": gpu}, cluster.links)
    problem = make_problem(make_chain(2), np.ones((2, 2)), cluster, communication="serialised")
    stages = cut_stages(problem.graph, {"o0": "a", "o1": "b"})
    assert loads(problem, stages) == {"a": 5.0, "b": 1.0}


def test_what_forbids_one_forbids_its_colocation_group():
    problem = make_problem(
        make_chain(3), np.ones((3, 2)), pins={"o0": "a"}, colocated=(("o0", "o2"),)
    )
    assert np.isfinite(problem.seconds).tolist() == [[True, False], [True, True], [True, False]]
    assert problem.arrays.unit.tolist() == [0, 1, 0]


def test_modules_and_forbidden_devices():
    graph = make_chain(3, module="net.layer")
    problem = make_problem(graph, np.ones((3, 2)), forbidden={"net": ("b",)})
    assert np.isfinite(problem.seconds).tolist() == [[True, False]] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pins": {"o0": "a", "o1": "b"}, "colocated": (("o0", "o1"),)},
            "pins contradict colocation: 'o0' is pinned to 'a', 'o1' to 'b'",
        ),
        ({"forbidden": {"o0": ("z",)}}, "forbidden 'o0': unknown device 'z'"),
        ({"colocated": (("o0", "o7"),)}, "colocated 'o7': no operator has this name"),
    ],
)
def test_problem_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_problem(make_chain(2), np.ones((2, 2)), **changes)


def test_infeasible_names_the_smallest_change():
    graph = make_chain(2, weights={"w": 2000})
    problem = make_problem(graph, np.ones((2, 2)), make_cluster(memory_bytes=1000))
    with pytest.raises(
        InfeasibleError, match=r"'o0' needs 1.95 KiB.*'a'.*takes 900 B: 1.* more there"
    ):
        solve(problem)


def with_weights(num_bytes, count):
    graph = make_chain(count, out_bytes=0)
    ops = tuple(replace(op, weights={op.name: num_bytes}, inputs=()) for op in graph.ops)
    return replace(graph, ops=ops, inputs=())


def test_operators_that_fit_together_but_cannot_be_packed():
    # 60 + 60 + 60 on 100 + 100: two must share a device.
    problem = make_problem(
        with_weights(60, 3), np.ones((3, 2)), make_cluster(memory_bytes=100), memory_headroom=0.0
    )
    with pytest.raises(InfeasibleError, match="memory binds: with 20 B more on 'a'"):
        solve(problem)


@pytest.mark.parametrize(
    ("seconds", "rules", "message"),
    [
        ([[1, 1], [np.inf, np.inf]], {}, "none can run 'o1'; add one that can"),
        ([[1, np.inf], [np.inf, 1]], {"colocated": (("o0", "o1"),)}, "do not colocate them"),
        ([[1, np.inf], [1, 1]], {"pins": {"o0": "b"}}, "'a' could, but for the rules pin 'o0'"),
        (
            [[1, 1], [1, 1]],
            {"pins": {"o0": "a"}, "forbidden": {"o1": ("a",)}, "colocated": (("o0", "o1"),)},
            "pin 'o0' to 'a'; forbid 'o1' on 'a'; lift one",
        ),
    ],
)
def test_an_operator_that_nothing_may_run_is_named_with_what_forbids_it(seconds, rules, message):
    with pytest.raises(InfeasibleError, match=message):
        solve(make_problem(make_chain(2), seconds, **rules))


def good_plan():
    problem = make_problem(make_graph({"a": [], "b": ["a"], "c": ["b"]}), np.ones((3, 2)))
    return problem, finish_plan(problem, "any", {"a": "a", "b": "b", "c": "a"}, 0.0, 0.0)


def test_check_plan_accepts_a_valid_plan_with_its_timeline():
    problem, plan = good_plan()
    assert check_plan(problem, plan, stage_timeline(problem, plan.stages)) == []


def test_check_plan_names_what_is_broken():
    problem, plan = good_plan()
    first, *rest = plan.stages

    def broken(problem=problem, **changes):
        return " | ".join(check_plan(problem, replace(plan, **changes)))

    assert "operator 'c' is not placed" in broken(placement={"a": "a", "b": "b"})
    assert "there is no device 'z'" in broken(placement={**plan.placement, "a": "z"})
    assert "runs before 'a'" in broken(stages=(*rest, first))
    assert "'t_a' is not sent exactly once" in broken(stages=(replace(first, sends=()), *rest))
    assert "operator 'c' is in no stage" in broken(stages=plan.stages[:2])
    pinned = replace(problem, pins={"b": "a"})
    assert "'b' on 'b': a pin" in broken(pinned)
    together = replace(problem, colocated=(("a", "b"),))
    assert "must share a device" in broken(together)
    small = replace(problem, memory_headroom=1 - 1e-9)
    assert "device 'a' needs" in broken(small)
    assert "its value is 1, it is 2" in broken(value=1.0)
    assert "its value is nan" in broken(value=float("nan"))
    assert "bound 2.5 is above the value 2" in broken(lower_bound=2.5)
    assert "objective latency" in broken(objective="latency")
    assert "num_micro_batches 4" in broken(num_micro_batches=4)
    priced = replace(problem, objective="cost", usd_per_hour=3600.0, latency_bound_s=2.9)
    assert "a batch takes 3 s" in broken(priced, objective="cost", value=2000.0)
    spans = stage_timeline(problem, plan.stages)
    late = [replace(s, end_s=s.end_s + 5) if s.kind == "transfer" else s for s in spans]
    assert any("before tensor" in text for text in check_plan(problem, plan, late))
    twice = [replace(s, start_s=0.0) for s in spans]
    assert any("at once" in text for text in check_plan(problem, plan, twice))


def test_a_tensor_of_no_bytes_needs_a_link_too():
    cluster = Cluster("no links", make_cluster().devices)
    arrays = make_problem(make_chain(2, out_bytes=0), np.ones((2, 2)), cluster).arrays
    with np.errstate(invalid="raise"):
        assert arrays.transfer_s(0, 0, 1) == np.inf
