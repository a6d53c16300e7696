import json

import pytest

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
        ({"nodes": [node(1, fpgaLatency=-1.0), node(2)]}, 2, "must be a number from 0, got -1.0"),
        ({"nodes": [node(1, fpgaLatency="NaN"), node(2)]}, 2, "must be a number from 0"),
        ({"nodes": [node(1, supportedOnFpga=0), node(2)]}, 1, "'1'"),
        ({"nodes": [node(1, size=500.0), node(2)]}, 1, "more there would do"),
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
