"""Simulated against measured requests of a real vLLM server, request by request.

Percentage errors (mean absolute) of end-to-end latency, time per output token and time to first
token of 300 requests of a run: from measured layers of the same GPU, and, for GPUs of the catalog,
from the cost model alone.

The set: https://github.com/casys-kaist/LLMServingSim (MIT): runs of vLLM 0.19 (requests.jsonl,
meta.json) and layer profiles of both GPUs.

Usage: python -m benchmarks.serving_vllm --data DIR [--json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from executor.generation import capture_generation
from hardware.catalog import find_profile
from hardware.cluster import Cluster
from simulator.continuous import generate
from simulator.generations import ContinuousBatching, Fleet, Generations, Server
from simulator.layer_profile import read_step_times
from simulator.modelled_steps import ServerModel, model_step_times
from simulator.step_times import StepTimes

NUM_LAYERS = 32
CAPTURED = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Batch sizes that vLLM captures as CUDA graphs; smaller batches are padded to them."""
CATALOG_NAME = {"RTXPRO6000": "RTX-PRO-6000"}
"""Folders of runs whose GPU has a profile in the catalog."""
AMPLE_BLOCKS = 30_000
"""Where a run does not say: more than 128 sequences of its workload can fill."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of runs and profile/")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    runs = sorted(arguments.data.glob("*/*/requests.jsonl"))
    if not runs:
        parser.error(f"{arguments.data}: no DEVICE/MODEL/requests.jsonl")
    rows = [row(arguments.data, run.parent, source) for run in runs for source in sources(run)]
    if arguments.json:
        print(json.dumps(rows))
        return
    head = f"{'run':24} {'step times':16} {'e2e %':>6} {'TPOT %':>7} {'TTFT %':>7} preempted"
    print(f"{head}   (asked: 3, 3, 12)")
    for r in rows:
        figures = f"{r['e2e']:6.2f} {r['tpot']:7.2f} {r['ttft']:7.2f} {r['preempted']:9}"
        print(f"{r['run']:24} {r['source']:16} {figures}")


def sources(run: Path) -> list[str]:
    """Where step times can come from."""
    in_catalog = run.parent.parent.name in CATALOG_NAME
    return ["measured layers", "cost model"] if in_catalog else ["measured layers"]


def modelled(device: str, limits: ContinuousBatching) -> StepTimes:
    """Steps of Llama-3-8B, which has the shapes of 3.1, by the cost model."""
    found = capture_generation("zoo:llama-3-8b", 1, "bfloat16", 1024, 256)
    cluster = Cluster(device, {"gpu0": find_profile(CATALOG_NAME[device])})
    model = ServerModel(found, cluster, {op.name: "gpu0" for op in found.decode.ops})
    return model_step_times(model, limits.token_budget, limits.max_sequences)


def row(data: Path, run: Path, source: str) -> dict[str, Any]:
    """Errors of one run."""
    lines = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["arrival_time"])

    def column(key: str) -> Any:
        return np.array([line[key] for line in lines])

    arrival_s = column("arrival_time") - column("arrival_time").min()
    start_s = column("queued_ts").min()
    queued_s, first_s, last_s = (
        column(key) - start_s for key in ("queued_ts", "first_token_ts", "last_token_ts")
    )
    meta = json.loads((run / "meta.json").read_text())
    engine, output = meta["engine_kwargs"], column("output_toks")
    profile = next((data / "profile" / run.parent.name).glob(f"*/{run.name}/bf16"))
    times = read_step_times(
        profile / f"tp{engine['tensor_parallel_size']}", NUM_LAYERS, np.array(CAPTURED, float)
    )
    # One block is kept by the server itself.
    num_blocks = meta.get("kv_cache", {}).get("num_gpu_blocks", AMPLE_BLOCKS + 1) - 1
    limits = ContinuousBatching(
        num_blocks, engine["max_num_batched_tokens"], engine["max_num_seqs"]
    )
    if source == "cost model":
        times = modelled(run.parent.name, limits)
    requests = Generations(arrival_s, column("input_toks"), output)
    got = generate(requests, Fleet((Server(limits, times),)))

    def error(predicted: Any, measured: Any) -> float:
        return float(np.mean(np.abs(predicted - measured) / measured) * 100)

    gaps = output - 1
    return {
        "run": f"{run.parent.name}/{run.name}",
        "source": source,
        "e2e": error(got.last_token_s - arrival_s, last_s - queued_s),
        "tpot": error((got.last_token_s - got.first_token_s) / gaps, (last_s - first_s) / gaps),
        "ttft": error(got.first_token_s - arrival_s, first_s - queued_s),
        "preempted": int(got.preemptions.sum()),
    }


if __name__ == "__main__":
    main()
