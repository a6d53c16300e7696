"""Simulated against measured requests of a real vLLM server, request by request.

From measured layers of the same GPU: percentage errors (mean absolute) of end-to-end latency, time
per output token and time to first token of 300 requests of a run.

The set: https://github.com/casys-kaist/LLMServingSim (MIT): runs of vLLM 0.19 (requests.jsonl,
meta.json) and layer profiles of both GPUs.

Usage: python -m benchmarks.serving_vllm --data DIR [--json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from simulator.continuous import generate
from simulator.generations import ContinuousBatching, Fleet, Generations, Server
from simulator.layer_profile import read_step_times

NUM_LAYERS = 32
CAPTURED = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Batch sizes that vLLM captures as CUDA graphs; smaller batches are padded to them."""
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
    rows = [row(arguments.data, run.parent) for run in runs]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'run':28} {'e2e %':>6} {'TPOT %':>7} {'TTFT %':>7} preempted   (asked: 3, 3, 12)")
    for r in rows:
        print(f"{r['run']:28} {r['e2e']:6.2f} {r['tpot']:7.2f} {r['ttft']:7.2f} {r['preempted']:9}")


def row(data: Path, run: Path) -> dict[str, Any]:
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
    requests = Generations(arrival_s, column("input_toks"), output)
    got = generate(requests, Fleet((Server(limits, times),)))

    def error(predicted: Any, measured: Any) -> float:
        return float(np.mean(np.abs(predicted - measured) / measured) * 100)

    gaps = output - 1
    return {
        "run": f"{run.parent.name}/{run.name}",
        "e2e": error(got.last_token_s - arrival_s, last_s - queued_s),
        "tpot": error((got.last_token_s - got.first_token_s) / gaps, (last_s - first_s) / gaps),
        "ttft": error(got.first_token_s - arrival_s, first_s - queued_s),
        "preempted": int(got.preemptions.sum()),
    }


if __name__ == "__main__":
    main()
