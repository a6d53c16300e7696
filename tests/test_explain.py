import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_graph, make_op, make_problem

from hardware.documents import write_json
from scheduler.evaluation.evaluate import finish_plan
from scheduler.explanation.explain import explain
from scheduler.ir.graph import Graph, Tensor
from scheduler.ir.graph_file import graph_document
from scheduler.portfolio import solve
from scheduler.tensor_parallel.split_rules import Split
from scheduler.tensor_parallel.split_search import with_splits
from ui.cli import main
from ui.explained import explanation_lines


def test_a_device_that_only_hurts_is_left_out_with_what_it_would_cost():
    seconds = np.column_stack([np.ones(4), np.ones(4), 9 * np.ones(4)])
    problem = make_problem(make_chain(4), seconds, make_cluster("abc"))
    plan = solve(problem).best
    found = explain(problem, plan)
    assert plan.value == pytest.approx(2.0)
    assert [(e.device, e.value) for e in found.left_out] == [("c", pytest.approx(9.0))]


def test_the_largest_load_binds_and_relief_is_what_replanning_the_same_placement_gives():
    problem = make_problem(make_chain(3), np.column_stack([np.ones(3), np.ones(3)]))
    plan = finish_plan(problem, "any", {"o0": "a", "o1": "a", "o2": "b"}, 0.0, 0.0)
    found = explain(problem, plan)
    assert found.binds == "a"
    assert found.busy_s["a"] == 2.0
    assert found.reliefs[0].change == "'a' 10 % faster"
    assert found.reliefs[0].value == pytest.approx(2.0 / 1.1)
    seat = next(seat for seat in found.seats if seat.op == "o1")
    assert [(e.device, e.value) for e in seat.alternatives] == [("b", 2.0)]


def test_a_link_can_bind():
    cluster = make_cluster(bytes_per_s=10.0)
    problem = make_problem(make_chain(2), np.ones((2, 2)), cluster)
    plan = finish_plan(problem, "any", {"o0": "a", "o1": "b"}, 0.0, 0.0)
    found = explain(problem, plan)
    assert found.binds == "a->b"
    assert found.reliefs[0].change == "'a->b' 10 % more bandwidth"
    assert found.reliefs[0].value == pytest.approx(4.0 / 1.1)
    slow = explain(replace(problem, objective="latency"), plan)
    assert slow.busy_s == {"a": 1.0, "a->b": 4.0, "b": 1.0}


def test_why_an_alternative_is_none():
    problem = make_problem(make_chain(2), np.ones((2, 2)), pins={"o0": "a"})
    found = explain(problem, solve(problem, "single_device:a").best)
    seat = next(seat for seat in found.seats if seat.op == "o0")
    assert seat.alternatives[0].value is None
    assert "pinned" in seat.alternatives[0].reason


def test_memory_that_binds_is_replanned_with_more():
    chain = make_chain(4)
    ops = tuple(replace(op, weights={f"w{i}": 2**28}) for i, op in enumerate(chain.ops))
    graph = replace(chain, ops=ops)
    cluster = make_cluster(memory_bytes=2**29 + 2**16)
    problem = make_problem(
        graph, np.column_stack([np.ones(4), 9 * np.ones(4)]), cluster, memory_headroom=0.0
    )
    plan = solve(problem).best
    found = explain(problem, plan)
    assert "a" in found.full
    relief = next(r for r in found.reliefs if r.change == "'a' 1 GiB more memory")
    assert relief.value == 4.0 < plan.value == 18.0


def test_plan_explain_through_the_command_line(tmp_path, capsys):
    graph = make_chain(4, flops=1e9)
    write_json(tmp_path / "g.json", graph_document(graph))
    profile = {"kind": "gpu", "memory_bytes": 10**9, "memory_bytes_per_s": 1e12}
    profile["provenance"] = {"level": "literal", "source": "test"}
    devices = {
        "fast": {**profile, "peak_flops_per_s": {"float32": 1e12}},
        "slow": {**profile, "peak_flops_per_s": {"float32": 1e9}},
    }
    link = {"between": ["fast", "slow"], "bytes_per_s": 1e9, "latency_s": 1e-6}
    write_json(tmp_path / "c.json", {"devices": devices, "links": [link]})
    arguments = ["plan", "--graph", str(tmp_path / "g.json"), "--cluster", str(tmp_path / "c.json")]
    assert main([*arguments, "--time-limit", "0", "--explain", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["left_out"] == ["slow"]
    assert document["explanation"]["binds"] == "fast"
    assert document["explanation"]["left_out"][0]["device"] == "slow"
    assert main([*arguments, "--time-limit", "0", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "Left out: slow" in text
    assert "'fast' 10 % faster" in text


def test_replicas_move_and_speed_up_as_a_team():
    graph = make_graph({"long": [], "short": ["long"]})
    problem = make_problem(graph, [[4.0] * 3, [1.0] * 3], make_cluster("abc"), replicate=True)
    placed = {"long": "a", "short": "c"}
    plan = finish_plan(problem, "replicated", placed, 0.0, 0.0, {"a": ("b",)})
    found = explain(problem, plan)
    assert found.value == plan.value == 2.0
    assert found.reliefs[0].change == "'a', 'b' 10 % faster"
    assert found.reliefs[0].value == pytest.approx(2.0 / 1.1)
    seat = next(seat for seat in found.seats if seat.op == "short")
    assert [(e.device, e.value) for e in seat.alternatives] == [("a", 2.5)]


def test_a_plan_with_splits_is_explained_on_the_graph_so_split():
    x = Tensor("x", (8, 64), "float32")
    linear = replace(
        make_op("linear", ["x"], weights={"w": 16384}, flops=65536.0, target="linear"),
        outputs=(Tensor("linear", (8, 64), "float32"),),
        dims={"m": 8, "k": 64, "n": 64},
    )
    whole = make_problem(Graph("test", (linear,), (x,), ("linear",)), [[1.0, 1.0]])
    splits = {"linear": Split(1, 2)}
    split = with_splits(whole, splits)
    plan = replace(solve(split).best, splits=splits)
    assert explain(split, plan).value == plan.value
    with pytest.raises(ValueError, match="other operators than the graph 'test' has"):
        explain(whole, plan)


def test_few_alternatives_of_a_large_graph_are_valued_and_it_says_so(monkeypatch):
    problem = make_problem(make_chain(30), np.ones((30, 4)) * [1, 1, 9, 9], make_cluster("abcd"))
    plan = solve(problem).best
    valued = []
    monkeypatch.setattr("scheduler.explanation.explain.MOST_VALUED", 10)
    monkeypatch.setattr(
        "scheduler.explanation.relief.finish_plan", lambda *a: valued.append(1) or finish_plan(*a)
    )
    found = explain(problem, plan)
    assert len(valued) == found.valued + 1
    assert found.valued <= 6 < found.possible
    assert "alternatives, the likeliest first" in explanation_lines(problem, found)[-1]


def test_the_critical_path_of_many_stages_goes_back_to_the_start():
    problem = make_problem(make_chain(40), np.ones((40, 2)), objective="latency")
    placement = {f"o{i}": "ab"[i % 2] for i in range(40)}
    plan = finish_plan(problem, "any", placement, 0.0, 0.0)
    busy_s = explain(problem, plan).busy_s
    assert (busy_s["a"], busy_s["b"]) == pytest.approx((20.0, 20.0))
