import json
from dataclasses import replace
from itertools import pairwise

import pytest
from conftest import make_cluster
from test_replay import one_layer_each, training_problem

from hardware.documents import parse, to_plain
from scheduler.report import MemoryUse
from simulator.replay import replay
from ui import cli
from ui.charts import memory_chart
from ui.terminal_plans import overflow_words
from ui.trace import Side, sides_of, write_trace

NUMBER = (int, float)
FIELDS = {"M": {"args"}, "X": {"ts", "dur", "tid", "args", "cat"}, "C": {"ts", "args"}}


@pytest.fixture
def replayed():
    problem = training_problem(2, 3)
    plan = one_layer_each(problem)
    return plan, replay(problem, plan)


def events_of(tmp_path, plan, sides):
    path = tmp_path / "timeline.json"
    write_trace(path, plan, sides)
    return json.loads(path.read_text())["traceEvents"]


def test_the_trace_keeps_the_trace_event_format(tmp_path, replayed):
    """Every event has the fields of its phase; slices of a thread do not overlap."""
    plan, report = replayed
    events = events_of(tmp_path, plan, sides_of("predicted", report))
    threads = {}
    for event in events:
        assert {"ph", "name", "pid"} <= set(event)
        assert FIELDS[event["ph"]] <= set(event)
        if event["ph"] == "C":
            assert all(isinstance(value, NUMBER) for value in event["args"].values())
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for slices in threads.values():
        slices.sort(key=lambda event: event["ts"])
        for one, other in pairwise(slices):
            assert one["ts"] + one["dur"] <= other["ts"] + 1e-6
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {e["pid"] for e in events} == set(named)
    assert len(set(named.values())) == len(named)


def test_the_trace_has_a_process_for_each_device_and_link_with_its_counters(tmp_path, replayed):
    plan, report = replayed
    events = events_of(tmp_path, plan, [Side("predicted", report.spans, report.memory)])
    named = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    assert set(named) == {f"predicted: {name}" for name in ("a", "b", "a->b", "b->a")}

    def counter(process, name, series):
        mine = [e for e in events if e["pid"] == named[process] and e["name"] == name]
        return [(e["ts"], e["args"][series]) for e in mine if series in e["args"]]

    held = counter("predicted: a", "memory (bytes)", "activations")
    use = report.memory["a"]
    assert held == [(t * 1e6, b) for t, b in zip(use.times_s, use.activation_bytes, strict=True)]
    moving = counter("predicted: a->b", "bytes in flight", "bytes")
    assert max(b for _, b in moving) == 400
    assert moving[-1][1] == 0
    ops = [e["name"] for e in events if e["ph"] == "X" and e["pid"] == named["predicted: a"]]
    assert ops.count("f0") == 3
    assert ops.count("u0") == 1


def test_memory_survives_the_report_file_and_is_drawn(replayed):
    _, report = replayed
    plain = json.loads(json.dumps(to_plain(report.memory["a"])))
    assert parse(plain, MemoryUse, "report") == report.memory["a"]
    drawn = memory_chart(report.memory).to_dict()
    assert {layer["mark"]["type"] for layer in drawn["layer"]} == {"line", "rule"}
    use = report.memory["a"]
    far, near = (replace(use, limit_bytes=n * use.peak.num_bytes) for n in (1000, 2))
    drawn = memory_chart({"a": far, "b": near}).to_dict()
    limits = drawn["datasets"][drawn["layer"][1]["data"]["name"]]
    assert [limit["device"] for limit in limits] == ["b"]


def test_out_of_memory_is_worded_with_moment_tensors_and_limit():
    problem = training_problem(2, 4, "gpipe")
    plan = one_layer_each(problem)
    cluster = make_cluster("ab", 1e15, memory_bytes=1500)
    tight = replace(problem, cluster=cluster, memory_headroom=0.0)
    words = overflow_words("a", replay(tight, plan).memory["a"])
    assert words.startswith("device 'a' runs out of memory at 1 s: it holds 1.6")
    assert "t_f0 x 2 800 B" in words
    assert "the limit is 1.46 KiB" in words


def chain_files(tmp_path, memory_bytes):
    """A scenario of a training step on two devices, from files."""
    from scheduler.ir.graph_file import graph_document

    graph = replace(training_problem(2, 4).graph, name="net")
    (tmp_path / "graph.json").write_text(json.dumps(graph_document(graph)))
    device = {
        "kind": "gpu", "peak_flops_per_s": {"float32": 1e9}, "memory_bytes": memory_bytes,
        "memory_bytes_per_s": 1e9, "provenance": {"level": "literal", "source": "test"},
    }  # fmt: skip
    cluster = {
        "name": "two",
        "devices": {name: {"name": f"p_{name}", **device} for name in "ab"},
        "links": [
            {
                "src": p, "dst": q, "bytes_per_s": 1e9, "latency_s": 1e-6,
                "provenance": device["provenance"],
            }
            for p, q in ("ab", "ba")
        ],
    }  # fmt: skip
    (tmp_path / "cluster.json").write_text(json.dumps(cluster))
    path = tmp_path / "scenario.yaml"
    path.write_text(f"""
model: {{source: "graph:{tmp_path}/graph.json", batch: 4, mode: training}}
hardware: {tmp_path}/cluster.json
num_micro_batches: 4
constraints: {{memory_headroom: 0.0, pin: {{f0: a, b0: a, f1: b, b1: b}}}}
""")
    return path


def test_simulate_writes_a_timeline_and_says_the_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = chain_files(tmp_path, 10**6)
    trace = tmp_path / "timeline.json"
    assert cli.main(["simulate", str(path), "--json", "--timeline", str(trace)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["out_of_memory"] == {}
    assert report["plan"]["pipeline"] == "1f1b"
    assert set(report["predicted"]["memory"]) == {"a", "b"}
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_plan_that_runs_out_of_memory_is_infeasible(tmp_path, capsys, monkeypatch):
    """Planned for 1F1B, which fits; replayed with all forward passes first, which does not."""
    monkeypatch.chdir(tmp_path)
    path = chain_files(tmp_path, 1900)
    plan = tmp_path / "plan.json"
    assert cli.main(["plan", str(path), "--time-limit", "0.5", "-o", str(plan)]) == 0
    assert cli.main(["simulate", str(plan)]) == 0
    capsys.readouterr()
    assert cli.main(["simulate", str(plan), "--pipeline", "gpipe", "--json"]) == 1
    shown = capsys.readouterr()
    moment = json.loads(shown.out)["out_of_memory"]["a"]
    assert moment["num_bytes"] > 1900
    assert moment["held"][0]["tensor"] in ("t_f0", "x")
    assert "device 'a' runs out of memory at" in " ".join(shown.err.split())
