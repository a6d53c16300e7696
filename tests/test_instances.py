import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from scheduler.evaluation.timeline import makespan, stage_timeline
from scheduler.ir.instances import is_instance, read_instance
from scheduler.plan import Plan, cut_stages
from scheduler.problem import Problem
from simulator.replay import simulate
from ui.graph_source import instance_of
from ui.prepare import prepare_instance
from ui.scenario import parse_scenario


def node(number, acc=1.0, cpu=10.0, size=4.0, **other):
    return {"id": number, "fpgaLatency": acc, "cpuLatency": cpu, "size": size, **other}


def edge(src, dst, cost=0.5):
    return {"sourceId": src, "destId": dst, "cost": cost}


def document(**changes):
    return {
        "maxSizePerFPGA": 100.0,
        "maxFPGAs": 2,
        "maxCPUs": 1,
        "nodes": [node(7), node(2, supportedOnFpga=0), node(3, isBackwardNode=True, name="grad")],
        "edges": [edge(2, 7), edge(2, 3), edge(7, 3, 0.25)],
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def to_file(**changes):
        path = tmp_path / "instance.json"
        path.write_text(json.dumps(document(**changes)))
        return path

    return to_file


def test_names_times_and_memory_are_those_of_the_file(write):
    instance = read_instance(write())
    assert [op.name for op in instance.graph.ops] == ["2", "7", "3"]
    assert instance.costs.devices == ("acc0", "acc1", "cpu0")
    assert instance.costs.seconds.tolist() == [[math.inf, math.inf, 10], [1, 1, 10], [1, 1, 10]]
    assert instance.cluster.devices["acc1"].memory_bytes == 100
    assert instance.graph.weights() == {"2": 4, "7": 4, "3": 4}
    assert instance.graph.consumers["2"] == ["7", "3"]
    assert instance.graph.outputs == ("3",)
    assert [op.phase for op in instance.graph.ops] == ["forward", "forward", "backward"]
    assert instance.graph.by_name["3"].target == "grad"
    rows = range(len(instance.graph.ops))
    assert instance.costs.band(dict.fromkeys(instance.costs.devices, rows)) == (1.0, 1.0)


@pytest.mark.parametrize(("constraints", "limit"), [({}, 100), ({"memory_headroom": 0.25}, 75)])
def test_limits_are_the_files_unless_a_scenario_keeps_room(write, constraints, limit):
    raw = {"model": {"source": f"graph:{write()}"}, "constraints": constraints}
    scenario = parse_scenario(raw, "here", "test")
    problem = prepare_instance(scenario, instance_of(scenario)).problem
    assert problem.memory_limit_bytes("acc0") == limit


def test_accelerators_pay_at_both_ends_and_cpus_pay_nothing(write):
    costs = read_instance(write()).costs
    assert costs.ends["2"].tolist() == [0.5, 0.5, 0.0]
    assert costs.transfers["2"].tolist() == [[0, 1, 0.5], [1, 0, 0.5], [0.5, 0.5, 0]]


def test_edges_of_different_cost_carry_different_tensors(write):
    graph = read_instance(write(edges=[edge(2, 7, 1.0), edge(2, 3, 2.0), edge(2, 3, 2.0)])).graph
    assert [t.name for t in graph.by_name["2"].outputs] == ["2", "2:1"]
    assert graph.consumers == {"2": ["7"], "2:1": ["3"]}


def test_colour_classes_of_several_nodes_are_colocated(write):
    nodes = [node(1, colorClass=5), node(2, colorClass=5), node(3, colorClass=6), node(4)]
    assert read_instance(write(nodes=nodes, edges=[])).colocated == (("1", "2"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": [edge(7, 9)]}, "edge 7 -> 9: no node has the id 9"),
        ({"nodes": [node(1), node(1)], "edges": []}, "two nodes have the id 1"),
        (
            {"nodes": [node(1, acc=-1)]},
            "node 1: fpgaLatency must be a number from 0 to 1e30, got -1",
        ),
        (
            {"nodes": [node(1, size=math.nan)]},
            "node 1: size must be a number from 0 to 1e30, got nan",
        ),
        ({"nodes": [{"id": 1}]}, "node 1: missing key 'fpgaLatency'"),
        ({"nodes": [5]}, "must map keys to values, got 5"),
        ({"edges": [edge(2, 7), edge(7, 2)]}, "a cycle: "),
        ({"edges": [edge(7, 7)]}, "a cycle: 7 -> 7"),
        (
            {"edges": [edge(2, 7, "x")]},
            "edge 2 -> 7: cost must be a number from 0 to 1e30, got 'x'",
        ),
        ({"nodes": [], "edges": []}, "has no operators"),
        ({"nodes": 3}, "nodes must be a list, got 3"),
        ({"maxFPGAs": -1}, "maxFPGAs must be a number from 0 to 1e30, got -1"),
        ({"maxFPGAs": 0, "maxCPUs": 0}, "no devices"),
    ],
)
def test_a_bad_file_gives_one_clear_error(write, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_instance(write(**changes))


def test_only_instances_are_recognised(write, tmp_path):
    assert is_instance(write())
    other = tmp_path / "graph.json"
    other.write_text('{"schema": "apportion.graph/1", "nodes": []}')
    assert not is_instance(other)


XLS_ROWS = [
    ["task", "c_task", "dir_succ", "p0", "p1", "pc00", "pc01", "pc10", "pc11", "mi", "m0", "m1"],
    [0.0, "", 1.0, 0.0, 0.0, "", "", "", "", 0.0, 64.0, 32.0],
    [1.0, "2,3", "4,5", 1.0, 2.0, "0.0,0.0", "0.5,0.7", "0.6,0.8", "0.0,0.0", 8.0, "", ""],
    [4.0, "", "", 3.0, 4.0, "", "", "", "", 0.0, "", ""],
    [5.0, "", "", 1.5, 1.0, "", "", "", "", 16.0, "", ""],
    ["a note", "", "", "", "", "", "", "", "", "", "", ""],
]


@pytest.fixture
def write_xls(tmp_path, monkeypatch):
    """A file that starts as .xls does; xlrd, which only reads, is given its cells."""
    xlrd = pytest.importorskip("xlrd")

    def to_file(rows):
        sheet = SimpleNamespace(nrows=len(rows), row_values=lambda i: rows[i])
        book = SimpleNamespace(sheet_by_index=lambda _: sheet)
        monkeypatch.setattr(xlrd, "open_workbook", lambda _: book)
        path = tmp_path / "instance.xls"
        path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1"))
        return path

    return to_file


def test_an_xls_file_gives_times_by_device_and_transfers_by_pair(write_xls):
    path = write_xls(XLS_ROWS)
    instance = read_instance(path)
    assert is_instance(path)
    assert instance.costs.devices == ("acc0", "acc1")
    assert [op.name for op in instance.graph.ops] == ["0", "1", "4", "5"]
    assert np.array_equal(instance.costs.seconds, [[0, 0], [1, 2], [3, 4], [1.5, 1]])
    assert instance.costs.transfers["1"].tolist() == [[0, 0.5], [0.6, 0]]
    assert instance.costs.transfers["1:1"].tolist() == [[0, 0.7], [0.8, 0]]
    assert instance.costs.transfers["0"].sum() == 0
    assert [d.memory_bytes for d in instance.cluster.devices.values()] == [64, 32]
    assert instance.graph.outputs == ("4", "5")


@pytest.mark.parametrize(
    ("here", "there", "wire_s"), [("acc0", "acc1", 0.5), ("acc1", "acc0", 0.6)]
)
def test_a_split_xls_instance_is_replayed_with_its_own_transfer_times(
    write_xls, here, there, wire_s
):
    instance = read_instance(write_xls(XLS_ROWS))
    problem = Problem(instance.graph, instance.cluster, instance.costs, "latency")
    placement = {"0": here, "1": here, "4": there, "5": here}
    stages = cut_stages(instance.graph, placement)
    plan = Plan("x", "by hand", "latency", 0.0, 0.0, 0.0, 0.0, placement, stages, 1, 1)
    spans = simulate(problem, plan, 1)
    moved = [span for span in spans if span.kind == "transfer"]
    assert [span.duration_s for span in moved if span.name == "1"] == pytest.approx([wire_s])
    assert makespan(spans) == pytest.approx(makespan(stage_timeline(problem, stages)))


def test_an_xls_row_needs_a_figure_for_each_successor(write_xls):
    broken = [*XLS_ROWS[2][:6], "0.5", *XLS_ROWS[2][7:]]
    with pytest.raises(ValueError, match=r"task 1: pc01 must have one figure per successor \(2\)"):
        read_instance(write_xls([*XLS_ROWS[:2], broken, *XLS_ROWS[3:]]))
