import json
import re
import sys
from importlib.machinery import PathFinder

import pytest
from conftest import make_chain

from hardware.documents import write_json
from scheduler.ir.graph_file import graph_document, read_graph
from ui.cli import main


def document(**changes):
    node = {"fpgaLatency": 1.0, "cpuLatency": 9.0, "size": 4.0}
    fields = {
        "maxSizePerFPGA": 100.0, "maxFPGAs": 2, "maxCPUs": 0,
        "nodes": [{"id": i, **node} for i in (1, 2)],
        "edges": [{"sourceId": 1, "destId": 2, "cost": 0.5}],
    }  # fmt: skip
    return {**fields, **changes}


def node(number, **changes):
    return {"id": number, "fpgaLatency": 1.0, "cpuLatency": 9.0, "size": 4.0, **changes}


BACK = {"sourceId": 2, "destId": 1, "cost": 0.5}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"edges": [*document()["edges"], BACK]}, 2, "a cycle: "),
        (
            {"nodes": [node(1, fpgaLatency=-1.0), node(2)]},
            2,
            "from 0 to 1e30, got -1.0",
        ),
        ({"nodes": [node(1, fpgaLatency="NaN"), node(2)]}, 2, "must be a number from 0"),
        ({"nodes": [node(1, supportedOnFpga=0), node(2)]}, 1, "'1'"),
        ({"nodes": [node(1, size=500.0), node(2)]}, 1, "more there would do"),
        ({"nodes": [], "edges": []}, 2, "graph 'instance' has no operators"),
        ({"maxFPGAs": 2.5}, 2, "maxFPGAs must be a whole number, got 2.5"),
        ({"maxFPGAs": 0}, 2, "has no devices"),
        ({"maxFPGAs": 1e12}, 2, "maxFPGAs and maxCPUs must be at most 256 together, got 1e+12"),
        ({"edges": [{"sourceId": 1, "destId": 2, "cost": 1e308}]}, 2, "edge 1 -> 2: cost must be"),
        ({"maxSizePerFPGA": 0}, 2, "instance.json: maxSizePerFPGA must be at least 1, got 0"),
        ({"nodes": [node(1, colorClass=[1]), node(2)]}, 2, "node 1: colorClass must be a number"),
        ({"nodes": [node(1, supportedOnFpga="no"), node(2)]}, 2, "must be true or false, got 'no'"),
    ],
)
def test_one_clear_error(tmp_path, capsys, changes, code, message):
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(document(**changes)))
    assert main(["plan", "--graph", str(path), "--time-limit", "0", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert message in answer["error"]
    assert answer["exit_code"] == code


def test_unknown_algorithm_lists_the_valid_ones(tmp_path, capsys):
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(document()))
    assert main(["plan", "--graph", str(path), "--algorithm", "magic", "--json"]) == 2
    assert "round_robin" in json.loads(capsys.readouterr().out)["error"]


def test_a_captured_graph_of_no_node_is_refused(tmp_path, capsys):
    contents = graph_document(make_chain(1))
    contents["graph"]["ops"] = []
    write_json(tmp_path / "g.json", contents)
    (tmp_path / "c.json").write_text("{}")
    files = ["--graph", str(tmp_path / "g.json"), "--cluster", str(tmp_path / "c.json")]
    assert main(["plan", *files, "--json"]) == 2
    assert "has no operators" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"w": -5}}, "weights.w must be bytes from 0, of less than 8 EiB, got -5"),
        ({"state_bytes": -1}, "state_bytes must be a number from 0 to 1e30, got -1"),
        ({"weight_share": 5}, "weight_share must be from 0 to 1, got 5"),
        ({"outputs": [{"name": "t", "shape": [-5], "dtype": "float32"}]}, "got [-5]"),
        ({"outputs": [{"name": "t", "shape": [10**12] * 3, "dtype": "int8"}]}, "than 8 EiB"),
        ({"outputs": [{"name": "t", "shape": [1], "dtype": "floaty"}]}, "did you mean 'float8'?"),
        ({"outputs": [{"name": "x", "shape": [1], "dtype": "bool"}]}, "'x' is produced before"),
    ],
)
def test_figures_of_a_graph_file_that_nothing_has(tmp_path, change, message):
    contents = graph_document(make_chain(1))
    contents["graph"]["outputs"] = []
    contents["graph"]["ops"][0].update(change)
    write_json(tmp_path / "g.json", contents)
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        read_graph(tmp_path / "g.json")
    assert "g.json: " in str(refusal.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000])
def test_json_that_python_cannot_read_names_the_file(tmp_path, text):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(ValueError, match=r"g\.json: n"):
        read_graph(tmp_path / "g.json")


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_isolated_operators_are_spread_and_explained(tmp_path, capsys, objective):
    path = tmp_path / "instance.json"
    alone = document(nodes=[node(i) for i in range(7)], edges=[])
    path.write_text(json.dumps(alone))
    asked = ["--objective", objective, "--time-limit", "0", "--explain", "--json"]
    assert main(["plan", "--graph", str(path), *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["value"] == 4.0
    assert answer["explanation"]["binds"] in ("acc0", "acc1")
    assert answer["explanation"]["reliefs"][0]["value"] >= 3.0


def test_pins_against_colocation_name_both_operators(tmp_path, capsys):
    """Nodes of one colour go together."""
    (tmp_path / "instance.json").write_text(
        json.dumps(document(nodes=[node(i, colorClass=5) for i in (1, 2)]))
    )
    scenario = tmp_path / "scenario.yaml"
    source = f"graph:{tmp_path / 'instance.json'}"
    pins = "constraints: {pin: {'1': acc0, '2': acc1}}"
    scenario.write_text(f"model: {{source: '{source}'}}\n{pins}\n")
    assert main(["plan", str(scenario), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "'1' is pinned to 'acc0', '2' to 'acc1', and both must share a device" in error


def planned(tmp_path, capsys, *asked, **changes):
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(document(**changes)))
    code = main(["plan", "--graph", str(path), "--time-limit", "0", "--json", *asked])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["stages"].reverse(), "operator '2' runs before '1'"),
        (lambda plan: plan["stages"][0]["sends"].clear(), "tensor '1' is not sent exactly once"),
        (lambda plan: plan["placement"].update({"1": "acc1"}), "the plan cannot run"),
        (lambda plan: plan["placement"].pop("1"), "the plan places other operators"),
    ],
)
def test_a_changed_plan_file_is_read_again_and_checked(tmp_path, capsys, change, message):
    file = tmp_path / "plan.json"
    code, plan = planned(tmp_path, capsys, "--algorithm", "round_robin", "-o", str(file))
    assert (code, plan["value_unit"]) == (0, "the file's unit of time per batch")
    assert main(["simulate", str(file), "--json"]) == 0
    capsys.readouterr()
    change(plan)
    file.write_text(json.dumps(plan))
    assert main(["simulate", str(file), "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_cost_of_an_instance_needs_a_rent_and_keeps_a_latency(tmp_path, capsys):
    cost = ("--objective", "cost")
    code, answer = planned(tmp_path, capsys, *cost)
    assert (code, "needs a price" in answer["error"]) == (2, True)
    priced = (*cost, "--usd-per-hour", "3.6")
    code, answer = planned(tmp_path, capsys, *priced, "--latency-bound", "2")
    # Both operators on one device: 2 s at 0.001 USD a second.
    assert (code, answer["value"]) == (0, pytest.approx(2.0))
    assert answer["value_unit"].startswith("USD per 1,000 inferences, the file's unit of time")
    code, answer = planned(tmp_path, capsys, *priced, "--latency-bound", "1.9")
    assert (code, "set latency_bound_s to 2 at least" in answer["error"]) == (1, True)


@pytest.mark.parametrize(
    ("rules", "code", "expected"),
    [
        ("forbid: {'1': [acc0]}, colocate: [['1', '2']]", 0, {"1": "acc1", "2": "acc1"}),
        ("forbid: {'1': [acc0, acc1]}", 1, "lift one of them"),
        ("forbid: {'1': [acc7]}", 2, "unknown device 'acc7'"),
        ("colocate: [['1', 'x']]", 2, "colocated 'x': no operator has this name"),
        ("forbid: {'1': acc0}", 2, "constraints.forbid.1: Input should be a list, got 'acc0'"),
        ("pin: [acc0]", 2, "constraints.pin: Input should be a mapping of keys to values, got"),
        ("pin: {'1': acc0, '1': acc1}", 2, "scenario.yaml: not YAML: key '1' is given twice"),
        ("colocated: [['1', '2']]", 2, "did you mean 'colocate'?"),
    ],
)
def test_scenarios_forbid_and_colocate(tmp_path, capsys, rules, code, expected):
    (tmp_path / "instance.json").write_text(json.dumps(document()))
    scenario = tmp_path / "scenario.yaml"
    source = f"model: {{source: 'graph:{tmp_path / 'instance.json'}'}}"
    scenario.write_text(f"{source}\nconstraints: {{{rules}}}\n")
    assert main(["plan", str(scenario), "--time-limit", "0", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert expected == answer["placement"] if code == 0 else expected in answer["error"]


@pytest.mark.parametrize("algorithm", ["auto", "latency_exact"])
def test_without_a_solver_the_latency_is_searched_and_that_is_said(
    tmp_path, capsys, monkeypatch, algorithm
):
    monkeypatch.setattr("scheduler.latency.portfolio.find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.startswith("ortools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(PathFinder, "find_spec", without("ortools"))
    path = tmp_path / "instance.json"
    # Two branches pay on two devices, so that the bound leaves something to be searched.
    nodes = [node(i) for i in range(1, 5)]
    ends = [(1, 2), (1, 3), (2, 4), (3, 4)]
    edges = [{"sourceId": src, "destId": dst, "cost": 0.2} for src, dst in ends]
    path.write_text(json.dumps(document(nodes=nodes, edges=edges)))
    asked = ["--objective", "latency", "--algorithm", algorithm, "--time-limit", "0.1", "--json"]
    assert main(["plan", "--graph", str(path), *asked]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["value"] <= 4.0
    assert "apportion: warning: latency: ortools is not installed" in shown.err


def without(hidden):
    found = PathFinder.find_spec

    def find_spec(name, path=None, target=None):
        return None if name.startswith(hidden) else found(name, path, target)

    return find_spec
