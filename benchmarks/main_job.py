"""The figures of the main job on this machine: prediction error, speed-up, and time to report.

Runs `apportion run` on three examples, each with a fresh calibration and an empty cache, and
prints what the README quotes. Ratios are within one run.

Usage: python -m benchmarks.main_job [--repeat N]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("quickstart", "cifar10-cnn", "gpt2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=1, help="runs of each example")
    repeat = parser.parse_args().repeat
    print(
        f"{'example':12} {'throughput':>10} {'error':>7} {'latency':>9} {'error':>7} "
        f"{'/ best slice':>12} {'/ sum':>6} {'/ all cores':>11} {'seconds':>8}"
    )
    for name in NAMES:
        for _ in range(repeat):
            print(row(name, *run(name)), flush=True)


def run(name: str) -> tuple[dict[str, Any], float]:
    """One run in an empty folder with an empty cache; returns the report and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "ui.cli", "run", str(EXAMPLES / f"{name}.yaml"), "--json"],
            env={**os.environ, "XDG_CACHE_HOME": folder},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - started_s
    return json.loads(result.stdout), seconds


def row(name: str, report: dict[str, Any], seconds: float) -> str:
    """The figures of one run."""
    measured, error, baselines = report["measured"], report["error"], report["baselines"]
    throughput = measured["throughput_per_s"]
    own = {d: r["throughput_per_s"] for d, r in baselines.items() if d != "all cores"}
    return (
        f"{name:12} {throughput:8.4g}/s {error['throughput']:+7.1%} "
        f"{measured['latency_s']['p50'] * 1e3:7.4g}ms {error['latency']:+7.1%} "
        f"{throughput / max(own.values()):12.2f} {throughput / sum(own.values()):6.2f} "
        f"{throughput / baselines['all cores']['throughput_per_s']:11.2f} {seconds:8.1f}"
    )


if __name__ == "__main__":
    main()
