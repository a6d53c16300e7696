import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardware.errors import InfeasibleError
from scheduler.ir.graph_file import read_graph
from ui import cli, exits, files, pipeline, prepare, rented, terminal
from ui.scenario import parse_scenario, read_scenario, vary
from ui.steps import COMPILING

ROOT = Path(__file__).parent.parent
SMALL = "model: {source: zoo:cifar10-cnn, batch: 8}\n"


@pytest.fixture
def scenario_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_is_a_scenario(path):
    assert read_scenario(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "objectiv: latency\n", "unknown key 'objectiv'; did you mean 'objective'"),
        (
            "model: {source: zoo:resnet50, bath: 1}\n",
            "unknown key 'model.bath'; did you mean 'batch'",
        ),
        ("model: {source: zoo:cifar10-cnn, batch: 0}\n", "batch must be at least 1, got 0"),
        ("model: {source: zoo:cifar10-cnn, batch: many}\n", "model.batch"),
        ("objective: latency\n", "missing key 'model'"),
        ("[]\n", "a scenario maps keys to values, got list"),
        (
            SMALL + "hardware: {instances: [aws/g6.xlarg]}\n",
            "unknown instance 'aws/g6.xlarg'; did you mean",
        ),
        (
            SMALL + "hardware: {instances: [aws/g6.xlarge, gcp/g2-standard-4]}\n",
            "the catalog knows no network of 'gcp/g2-standard-4'",
        ),
        (SMALL + "hardware: lokal\n", "neither 'local' nor a file; did you mean 'local'"),
        (SMALL + "traffic: {rate: .nan}\n", "traffic.rate"),
        (
            SMALL + "hardware: {instances: [aws/g6.xlarge]}\nnum_micro_batches: 3\n",
            "must divide model.batch",
        ),
        (
            SMALL + "hardware: {instances: [aws/g6.xlarge]}\nprices: {market: reserved}\n",
            "no price for 'aws/g6.xlarge'",
        ),
        (
            "model: {source: zoo:nothing}\nhardware: {instances: [aws/g6.xlarge]}\n",
            "unknown model 'zoo:nothing'",
        ),
        (
            SMALL + "hardware: {instances: [aws/g6.xlarge]}\nconstraints: {pin: {conv2d: gpu7}}\n",
            "unknown device 'gpu7'",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(scenario_file, capsys, text, message):
    assert cli.main(["simulate", scenario_file(text)]) == exits.BAD_INPUT
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ""


def test_missing_file(capsys):
    assert cli.main(["run", "nowhere.yaml"]) == exits.BAD_INPUT
    assert capsys.readouterr().err == "apportion: error: nowhere.yaml: no such file\n"


def test_errors_are_json_where_json_is_asked_for(capsys):
    assert cli.main(["run", "nowhere.yaml", "--json"]) == exits.BAD_INPUT
    assert json.loads(capsys.readouterr().out)["exit_code"] == exits.BAD_INPUT


def test_a_plan_that_fits_nowhere_is_infeasible_and_says_why(scenario_file, capsys):
    text = "model: {source: zoo:gpt2, batch: 1}\nhardware: {instances: [aws/g6.xlarge]}\n"
    text += "constraints: {memory_headroom: 0.999}\n"
    assert cli.main(["plan", scenario_file(text)]) == exits.INFEASIBLE
    error = capsys.readouterr().err
    assert (
        "needs 147.24 MiB, and 'gpu0', the largest device that may run it, takes 24.58 MiB" in error
    )
    assert "122.66 MiB more there would do" in error


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_reader_that_leaves_ends_a_command_without_a_word(monkeypatch, capsys, how):
    """As `apportion prices | head` does; rich, which then falls silent, is to speak again."""
    monkeypatch.setattr(terminal.out, "quiet", False)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["prices", *how]) == exits.READER_GONE
    assert capsys.readouterr().err == ""


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom ui.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, 'pydantic' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("False False\n")


RENTED = SMALL + "hardware: {instances: [aws/g4dn.12xlarge]}\nobjective: cost\n"


def test_simulate_a_rented_machine(scenario_file, capsys):
    traffic = "traffic: {rate: 100, duration_s: 5, slo: {p95_s: 0.1}}\n"
    assert cli.main(["simulate", scenario_file(RENTED + traffic), "--json"]) == exits.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "apportion.report/1"
    assert set(report["predicted"]["latency_s"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert report["cost"]["usd_per_hour"] == pytest.approx(3.912)
    assert report["measured"] is None
    assert report["serving"]["requests"]["arrived"] > 300
    assert all("datasheet" in text for text in report["provenance"].values())


def test_the_report_page_says_what_binds_what_would_help_and_what_is_left_out(
    scenario_file, tmp_path, monkeypatch
):
    path = scenario_file(RENTED.replace("cost", "latency"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["simulate", path]) == exits.DONE
    (page,) = tmp_path.glob("runs/*/report.html")
    body = page.read_text().rpartition("<body>")[2]
    why = body.partition("<h2>Why this plan</h2>")[2].partition("<p class=note>")[0]
    assert "Binds: " in why
    assert "10 % faster" in why
    assert "Devices left out" in why
    assert "The critical path" in why
    assert "The heaviest operators" in why
    assert "Algorithms side by side" in body
    assert "above the optimum" not in body


def test_plan_file_can_be_simulated_again(scenario_file, capsys, tmp_path):
    path = scenario_file(RENTED)
    asked = ["--time-limit", "0.5", "--json", "-o", str(tmp_path / "plan.json")]
    assert cli.main(["plan", path, *asked]) == exits.DONE
    plan = json.loads(capsys.readouterr().out)
    for key in (
        "schema",
        "algorithm",
        "objective",
        "value",
        "lower_bound",
        "gap",
        "solve_s",
        "placement",
        "stages",
        "num_micro_batches",
    ):
        assert key in plan
    assert plan["schema"] == "apportion.plan/1"
    assert cli.main(["simulate", str(tmp_path / "plan.json"), "--json"]) == exits.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["plan"]["value"] == plan["value"]
    assert report["provenance"] == plan["provenance"]
    assert report["explanation"]["value"] == plan["value"]


def test_capture_and_plan_from_files(tmp_path, capsys):
    graph, cluster = tmp_path / "graph.json", tmp_path / "cluster.yaml"
    assert cli.main(["capture", "zoo:cifar10-cnn", "-o", str(graph), "--json"]) == exits.DONE
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert set(totals) == {"ops", "flops", "params", "param_bytes", "bytes"}
    from hardware.catalog import find_instance, instance_cluster
    from hardware.documents import to_plain, write_json

    write_json(cluster, to_plain(instance_cluster(find_instance("aws/g5.xlarge"))))
    arguments = ["plan", "--graph", str(graph), "--cluster", str(cluster), "--objective", "latency"]
    assert cli.main([*arguments, "--algorithm", "heft", "--json"]) == exits.DONE
    assert json.loads(capsys.readouterr().out)["algorithm"] == "heft"
    assert cli.main([*arguments, "--algorithm", "magic"]) == exits.BAD_INPUT
    assert cli.main(["plan", "--graph", str(cluster), "--cluster", str(cluster)]) == exits.BAD_INPUT


def test_compare_varies_keys(scenario_file, capsys):
    path = scenario_file(RENTED)
    vary_by = ["--vary", "model.dtype=float32,float16", "--vary", "model.batch=4,8"]
    assert cli.main(["compare", path, *vary_by, "--json"]) == exits.DONE
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 4
    assert [row["usd_per_1k"] for row in rows] == sorted(row["usd_per_1k"] for row in rows)
    assert {row["levels"] for row in rows} <= {"datasheet", "datasheet and fitted"}
    assert cli.main(["compare", path, "--vary", "model.dtyp=float16"]) == exits.BAD_INPUT


def test_vary_checks_the_value():
    scenario = parse_scenario({"model": {"source": "zoo:gpt2"}}, "here", "s")
    assert vary(scenario, {"traffic.rate": 3}).traffic.rate == 3
    with pytest.raises(ValueError, match="batch must be at least 1"):
        vary(scenario, {"model.batch": 0})


def test_size_finds_the_cheapest_fleet_and_its_bound(scenario_file, capsys):
    traffic = "traffic: {rate: 200, duration_s: 20, slo: {p95_s: 0.2}}\n"
    assert cli.main(["size", scenario_file(RENTED + traffic), "--json"]) == exits.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["fleet"]["usd_per_hour"] >= document["lower_bound_usd_per_hour"] > 0
    assert 0 <= document["gap"] < 1
    costs = [row["usd_per_hour"] for row in document["candidates"] if row["replicas"]]
    assert costs == sorted(costs)
    assert document["fleet"]["usd_per_hour"] == costs[0]


def test_size_without_a_promise_or_with_an_impossible_one(scenario_file, capsys):
    assert cli.main(["size", scenario_file(RENTED)]) == exits.BAD_INPUT
    assert "size needs traffic with a promise" in capsys.readouterr().err
    impossible = RENTED + "traffic: {rate: 1, duration_s: 5, slo: {p95_s: 1.0e-9}}\n"
    assert cli.main(["size", scenario_file(impossible)]) == exits.INFEASIBLE
    assert "above the promise" in " ".join(capsys.readouterr().out.split())


def test_instances_joined_by_a_network_are_one_cluster():
    raw = {
        "model": {"source": "zoo:gpt2"},
        "hardware": {
            "instances": ["aws/g5.xlarge", "aws/g6.xlarge"],
            "network": {"bytes_per_s": 1e9, "latency_s": 1e-4},
        },
    }
    scenario = parse_scenario(raw, "here", "s")
    cluster = rented.rented_cluster(scenario)
    assert list(cluster.devices) == ["0.gpu0", "0.cpu0", "1.gpu0", "1.cpu0"]
    assert cluster.link("0.gpu0", "1.gpu0").bytes_per_s == 1e9
    assert rented.rent(scenario)[0] == pytest.approx(1.006 + 0.8048)


def test_prices_lists_every_instance(capsys):
    assert cli.main(["prices", "--json"]) == exits.DONE
    document = json.loads(capsys.readouterr().out)
    priced = {row["instance"] for row in document["prices"]}
    assert priced | set(document["unpriced"]) == set(document["instances"])
    assert not priced & set(document["unpriced"])


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """One real run of the main job, shared by the tests that look at its files."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.yaml").write_text(SMALL)
    result = _apportion("run", "small.yaml", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), next((folder / "runs").iterdir())


def _apportion(*arguments, cwd, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "ui.cli", *arguments], cwd=cwd, env=environment,
        capture_output=True, text=True, **options,
    )  # fmt: skip


def test_run_compares_prediction_with_measurement(finished_run):
    report, _ = finished_run
    assert report["status"] == "complete"
    assert report["output"]["agrees"]
    assert {"latency", "throughput", "busy"} == set(report["error"])
    assert "all cores" in report["baselines"]
    assert len([row for row in report["what_if"] if "usd_per_1k" in row]) >= 5
    assert all("measured" in text for text in report["provenance"].values())


def test_run_writes_its_files(finished_run):
    report, folder = finished_run
    names = {"graph.json", "plan.json", "report.json", "report.html", "trace.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "report.json").read_text()) == report
    plan, scenario = files.read_plan(folder / "plan.json")
    assert scenario.model.source == "zoo:cifar10-cnn"
    assert set(plan.placement) == set(read_graph(folder / "graph.json").by_name)
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")
    page = (folder / "report.html").read_text()
    assert report["explanation"]["binds"] in page
    assert "http-equiv" not in page
    assert 'src="http' not in page
    assert page.rindex("<h1>small</h1>") > page.rindex("<body>")
    assert page.rindex("<h1>small</h1>") < page.rindex('id="vis"')
    assert page.startswith("<!DOCTYPE html>")


def test_a_plan_file_can_be_executed(finished_run):
    _, folder = finished_run
    result = _apportion("execute", "plan.json", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["measured"]["throughput_per_s"] > 0


def _start_run(folder):
    (folder / "long.yaml").write_text("model: {source: zoo:resnet50, batch: 8}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "ui.cli", "run", "long.yaml"], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while not list(folder.glob("runs/*/report.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def _workers_of(process):
    import psutil

    children = psutil.Process(process.pid).children()
    return [child for child in children if "executor.worker" in child.cmdline()]


def test_a_worker_killed_in_the_middle_ends_the_run_with_code_3(tmp_path):
    process = _start_run(tmp_path)
    workers = _workers_of(process)
    workers[0].send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    assert process.returncode == exits.RUN_FAILED
    assert "apportion: run failed: device '" in error.splitlines()[-1]
    assert "was killed by signal 9" in error
    assert "Traceback" not in error
    assert not any(worker.is_running() for worker in workers)
    report = json.loads(next(tmp_path.glob("runs/*/report.json")).read_text())
    assert report["status"] == "partial: not executed"


def test_ctrl_c_stops_the_run_with_code_130(tmp_path):
    process = _start_run(tmp_path)
    workers = _workers_of(process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == exits.INTERRUPTED
    assert "Traceback" not in error
    assert not any(worker.is_running() for worker in workers)
    assert list(tmp_path.glob("runs/*/plan.json"))


def test_no_plan_is_an_answer_of_the_pipeline():
    scenario = parse_scenario(
        {"model": {"source": "zoo:gpt2"}, "hardware": {"instances": ["aws/g5.xlarge"]},
         "constraints": {"memory_headroom": 0.9999}}, "here", "s",
    )  # fmt: skip
    from ui.terminal import steps

    with pytest.raises(InfeasibleError):
        pipeline.plan(prepare.prepare_anywhere(scenario, steps), steps)


def test_a_step_says_when_it_compiles_and_only_then(capsys):
    import numba

    double = numba.njit(lambda value: 2 * value)
    for expected in (True, False):
        with terminal.steps("Planning"):
            assert double(2) == 4
        assert (COMPILING in " ".join(capsys.readouterr().err.split())) is expected
