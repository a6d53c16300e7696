import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from executor import run, whole

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "ui" / "app_pages"


def page(name):
    return AppTest.from_file(str(PAGES / f"{name}.py"), default_timeout=600).run()


def test_plan_page_shows_values_charts_and_algorithms():
    app = page("plan")
    app.selectbox(key="model").select("zoo:cifar10-cnn")
    app.multiselect(key="hardware").set_value(["aws/g4dn.12xlarge"])
    app.number_input(key="search_s").set_value(0.0)
    app.selectbox(key="objective").select("latency")
    app.button[0].click().run()
    assert not app.exception
    assert not app.error
    tiles = {metric.label: metric.value for metric in app.metric}
    assert tiles["Latency of a batch"].endswith(("ms", "µs"))
    assert tiles["Cost per 1,000 inferences"].startswith("$")
    algorithms = app.dataframe[0].value
    assert "heft" in set(algorithms["algorithm"])
    assert list(app.dataframe[1].value["device"])
    assert "Why this plan" in [heading.value for heading in app.subheader]
    titles = [text.value.strip("*") for text in app.markdown if text.value.startswith("**")]
    tables = {t: d.value for t, d in zip(titles, app.dataframe[2:], strict=True)}
    assert tables["What would help"]["change"].str.contains("10 %").all()
    unused = tables["Devices left out"]["device"]
    assert len(unused) + len(set(app.dataframe[1].value["device"])) == 5
    assert set(tables["The critical path"]["device or link"])
    assert len(tables["The heaviest operators"]) > 1


INSTANCE = {
    "maxSizePerFPGA": 100, "maxFPGAs": 2, "maxCPUs": 1,
    "nodes": [
        {"id": i, "name": f"n{i}", "size": 1, "cpuLatency": 40.0, "fpgaLatency": 4.0,
         "supportedOnFpga": 1, "isBackwardNode": 0}
        for i in (1, 2)
    ],
    "edges": [{"sourceId": 1, "destId": 2, "cost": 1.5}],
}  # fmt: skip


def test_plan_page_takes_a_placement_instance_and_keeps_its_unit():
    app = page("plan")
    app.file_uploader[0].set_value(("two.json", json.dumps(INSTANCE).encode(), "application/json"))
    app.number_input(key="search_s").set_value(0.0)
    app.button[0].click().run()
    assert not app.exception
    assert not app.error
    tiles = {metric.label: metric.value for metric in app.metric}
    assert tiles["Latency of a batch"] == "11"
    assert any("11 (file's unit) to 11 (file's unit)" in caption.value for caption in app.caption)
    assert "Binds: acc0, 5.5 (file's unit) of work." in app.markdown[0].value


def test_plan_page_takes_a_scenario_file():
    app = page("plan")
    text = "model: {source: zoo:cifar10-cnn}\nhardwear: local\n"
    app.file_uploader[0].set_value(("wrong.yaml", text.encode(), "application/yaml"))
    app.button[0].click().run()
    assert not app.exception
    assert "hardwear" in app.error[0].value


def test_plan_page_words_errors():
    app = page("plan")
    app.multiselect(key="hardware").set_value(["gcp/ct5lp-hightpu-1t"])
    app.selectbox(key="model").select("zoo:cifar10-cnn")
    app.selectbox(key="dtype").select("float16")
    app.button[0].click().run()
    assert not app.exception
    assert "no device supports dtype float16" in app.error[0].value


def test_what_if_page_sorts_by_cost_and_sizes_fleets():
    app = page("what_if")
    app.selectbox(key="model").select("zoo:cifar10-cnn")
    app.multiselect(key="instances").set_value(
        ["aws/p3.2xlarge", "aws/g4dn.xlarge", "aws/c7a.xlarge"]
    )
    app.number_input(key="rate").set_value(500.0)
    app.button[0].click().run()
    assert not app.exception
    costs = list(app.dataframe[0].value["USD per 1,000"])
    assert costs == sorted(costs)
    fleets = app.dataframe[1].value
    assert (fleets["replicas"] >= 1).all()
    assert (fleets["p95 (ms)"] <= 200).all()


def test_what_if_page_with_an_impossible_promise():
    app = page("what_if")
    app.selectbox(key="model").select("zoo:resnet50")
    app.multiselect(key="instances").set_value(["aws/c6a.xlarge"])
    app.number_input(key="promise").set_value(1.0)
    app.button[0].click().run()
    assert not app.exception
    assert "above the promise" in app.dataframe[1].value["note"][0]
    assert app.warning


def test_run_page_executes_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "SECONDS_PER_WINDOW", 0.1)
    monkeypatch.setattr(whole, "SECONDS_PER_BASELINE", 0.1)
    monkeypatch.setattr(whole, "OP_TIMES_BUDGET_S", 0.1)
    app = page("run")
    app.selectbox(key="model").select("zoo:cifar10-cnn")
    app.button[0].click().run()
    assert not app.exception
    assert not app.error
    tiles = {metric.label: metric.value for metric in app.metric}
    assert tiles["Outputs against the unsplit model"] == "equal"
    assert len(app.dataframe[0].value) >= 3
    assert list(tmp_path.glob("runs/*/report.html"))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


LONG_MS = 180_000


@pytest.fixture
def server(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "ui.cli", "ui", "--no-browser", "--port", str(port)], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    yield f"http://localhost:{port}"
    os.killpg(process.pid, 15)
    process.wait(timeout=120)


@pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)"
)
def test_the_app_in_a_real_browser(server):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.set_default_timeout(LONG_MS)
        expect.set_options(timeout=LONG_MS)
        tab.goto(server)
        hardware = tab.get_by_label("Hardware", exact=True).first
        hardware.fill("aws/g4dn.12xlarge")
        tab.get_by_role("option", name="aws/g4dn.12xlarge").first.click()
        hardware.press("Escape")
        tab.get_by_label("Search (s)", exact=True).fill("0")
        tab.get_by_role("button", name="Plan", exact=True).click()
        expect(tab.get_by_text("Throughput", exact=True)).to_be_visible()
        expect(tab.locator("canvas.marks, svg.marks").first).to_be_visible()
        tab.get_by_role("link", name="What-if").click()
        expect(tab.get_by_role("heading", name="What-if")).to_be_visible()
        tab.get_by_role("link", name="Run").click()
        expect(tab.get_by_role("heading", name="Run")).to_be_visible()
        tab.get_by_role("link", name="Plan", exact=True).click()
        expect(tab.get_by_text("Throughput", exact=True)).to_be_visible()
        expect(tab.get_by_text("aws/g4dn.12xlarge").first).to_be_visible()
        browser.close()
