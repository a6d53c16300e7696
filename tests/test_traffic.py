import json
from pathlib import Path

import pytest

from ui import cli, exits

SMALL = "model: {source: zoo:cifar10-cnn, batch: 8}\n"
RENTED = SMALL + "hardware: {instances: [aws/g4dn.12xlarge]}\nobjective: cost\n"
SERVICE = 'model: {source: "service:exponential", mean_s: 0.1}\n'


@pytest.fixture
def scenario_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_queueing_study_needs_no_model(scenario_file, capsys):
    traffic = "traffic: {rate: 5, duration_s: 1000, slo: {p95_s: 1.0}}\n"
    traffic += "prices: {usd_per_hour: 3.6}\n"
    assert cli.main(["simulate", scenario_file(SERVICE + traffic), "--json"]) == exits.DONE
    report = json.loads(capsys.readouterr().out)
    low, high = report["serving"]["latency_interval_s"]["mean"]
    assert low < 0.2 < high
    assert report["predicted"]["utilization"]["service:exponential"] == pytest.approx(0.5, rel=0.05)
    assert report["wait_s"]["mean"] == pytest.approx(0.1, rel=0.1)
    assert report["cost"]["usd_per_1k"] == pytest.approx(0.2, rel=0.05)
    counts = report["requests"]
    assert counts["arrived"] == sum(counts.values()) - counts["arrived"]
    assert cli.main(["simulate", scenario_file(SERVICE + traffic)]) == exits.DONE
    shown = capsys.readouterr().out
    assert "one more service:exponential changes the p95 from" in " ".join(shown.split())
    (page,) = Path("runs").glob("*/report.html")
    assert "Under traffic" in page.read_text()
    assert cli.main(["size", scenario_file(SERVICE + traffic), "--json"]) == exits.DONE
    assert json.loads(capsys.readouterr().out)["fleet"]["replicas"] == 1


@pytest.mark.parametrize("command", ["plan", "run", "execute"])
def test_what_needs_a_model_refuses_a_service(scenario_file, capsys, command):
    assert cli.main([command, scenario_file(SERVICE)]) == exits.BAD_INPUT
    assert "a queueing study without a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model: {source: "service:exponential"}\n', "needs mean_s"),
        (SMALL.replace("8}", "8, cv: 2.0}"), "mean_s and cv need a source service:"),
        (SERVICE.replace("0.1}", "0.1, mode: training}"), "mode inference, got training"),
        ('model: {source: "service:gamma", mean_s: 1}\n', "unknown service:gamma"),
        (
            SERVICE + "fleet: [{hardware: local, replicas: 0}]\n",
            "fleet.0: replicas must be pos",
        ),
        (SERVICE + "fleet: [{hardware: local}]\n", "a service runs on no hardware"),
        (SERVICE.replace("0.1}", "0.1}\nserving: {replicas: 0}"), "replicas must be positive"),
        (SERVICE.replace("0.1}", "0.1}\nserving: {routing: best}"), "serving.routing"),
    ],
)
def test_a_broken_queueing_study_is_one_clear_error(scenario_file, capsys, text, message):
    traffic = "traffic: {rate: 5, duration_s: 20}\n"
    assert cli.main(["simulate", scenario_file(text + traffic)]) == exits.BAD_INPUT
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_overload_is_said_and_no_percentiles(scenario_file, capsys):
    text = SERVICE + "traffic: {rate: 15, duration_s: 100}\n"
    assert cli.main(["simulate", scenario_file(text)]) == exits.DONE
    shown = " ".join(capsys.readouterr().out.split())
    assert "queue grows without bound, by 5 requests/s" in shown
    assert "one more service:exponential carries the load" in shown
    assert "p99" not in shown.split("One change")[0]


def test_two_kinds_of_hardware_serve_together(scenario_file, capsys):
    text = RENTED + (
        "traffic: {rate: 2000, duration_s: 20, slo: {p95_s: 0.1}}\n"
        "serving: {routing: fastest, replications: 2}\n"
        "fleet: [{hardware: {instances: [aws/g4dn.xlarge]}, replicas: 2}]\n"
    )
    assert cli.main(["simulate", scenario_file(text), "--json"]) == exits.DONE
    serving = json.loads(capsys.readouterr().out)["serving"]
    assert [kind["servers"] for kind in serving["kinds"]] == [1.0, 2.0]
    assert serving["usd_per_hour"] == pytest.approx(
        sum(k["usd_per_hour"] for k in serving["kinds"])
    )
    assert sum(kind["share"] for kind in serving["kinds"]) == pytest.approx(1.0)


def test_an_interrupted_simulation_reports_what_it_has_and_exits_130(
    scenario_file, capsys, monkeypatch
):
    from simulator import experiment

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "relieve", interrupted)
    text = SERVICE + "traffic: {rate: 5, duration_s: 100}\n"
    assert cli.main(["simulate", scenario_file(text), "--json"]) == exits.INTERRUPTED
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "partial: interrupted"
    assert report["serving"]["latency_s"]["p95"] > 0.1
