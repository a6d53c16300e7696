"""Speed and memory of both engines of continuous batching: Llama-3-8B on H100 under a trace.

Requests per second of one core, without compilation; equal times to the last bit; and the peak
memory of a process that serves a million requests (the trace one after another).

The trace: https://github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv (2023).

Usage: python -m benchmarks.simulator_generation --trace FILE [--json]
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from executor.generation import capture_generation
from hardware.catalog import find_profile
from hardware.cluster import Cluster
from simulator.continuous import generate
from simulator.fast_continuous import generate_fast
from simulator.generations import ContinuousBatching, Fleet, Generations, GenerationTimes, Server
from simulator.modelled_steps import ServerModel, kv_blocks, model_step_times
from simulator.trace import Requests, read_trace

DEVICE = "H100-SXM5-80GB"
MILLION = 10**6
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True, help="CSV of requests with tokens")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    recorded, server = read_trace(arguments.trace), llama_server()
    rows = [row(recorded, server, replicas) for replicas in (1, 2, 4)]
    million, seconds = a_million(recorded, server)
    total = {"requests_per_s": MILLION / seconds, "seconds": seconds, "peak_mib": peak_mib()}
    if arguments.json:
        print(json.dumps({"rows": rows, "million": total}))
        return
    print(f"{len(recorded.arrival_s):,} requests on {DEVICE}; asked: SimPy 9,000/s, fast 500,000/s")
    print(f"{'replicas':>8} {'SimPy /s':>10} {'fast /s':>12} {'steps/request':>14} equal")
    for r in rows:
        print(
            f"{r['replicas']:8} {r['simpy_per_s']:10,.0f} {r['fast_per_s']:12,.0f} "
            f"{r['steps']:14.1f} {'to the last bit' if r['equal'] else 'NO'}"
        )
    print(
        f"a million requests: {seconds:.2f} s, {total['requests_per_s']:,.0f}/s, "
        f"peak memory {total['peak_mib']:,.0f} MiB (asked: 2 s, 1,024 MiB)"
    )
    assert np.isfinite(million.last_token_s).all()


def llama_server() -> Server:
    """Llama-3-8B in bfloat16 by the cost model."""
    found = capture_generation("zoo:llama-3-8b", 1, "bfloat16", 1024, 256)
    cluster = Cluster(DEVICE, {"gpu0": find_profile(DEVICE)})
    model = ServerModel(found, cluster, {op.name: "gpu0" for op in found.decode.ops})
    limits = ContinuousBatching(kv_blocks(model, 2048, 16))
    return Server(limits, model_step_times(model, limits.token_budget, limits.max_sequences))


def row(recorded: Requests, server: Server, replicas: int) -> dict[str, Any]:
    """Both engines on the trace."""
    requests = as_generations(recorded, 1)
    fleet = Fleet((server,) * replicas, "shortest_queue")
    generate_fast(requests, fleet)
    fast, fast_s = fastest(generate_fast, requests, fleet)
    slow, slow_s = fastest(generate, requests, fleet)
    num = len(requests.arrival_s)
    return {
        "replicas": replicas,
        "simpy_per_s": num / slow_s,
        "fast_per_s": num / fast_s,
        "steps": float(fast.steps.sum()) / num,
        "equal": bool(np.array_equal(fast.last_token_s, slow.last_token_s, equal_nan=True)),
    }


def fastest(engine: Any, requests: Generations, fleet: Fleet) -> tuple[GenerationTimes, float]:
    best = np.inf
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        times = engine(requests, fleet)
        best = min(best, time.perf_counter() - start_s)
    return times, best


def a_million(recorded: Requests, server: Server) -> tuple[GenerationTimes, float]:
    """A million requests on one replica by the compiled engine."""
    copies = -(-MILLION // len(recorded.arrival_s))
    requests = as_generations(recorded, copies)
    return fastest(generate_fast, requests, Fleet((server,)))


def as_generations(recorded: Requests, copies: int) -> Generations:
    """The trace some times over, a million requests at most."""
    assert recorded.prompt_tokens is not None
    assert recorded.output_tokens is not None
    start_s = np.arange(copies)[:, None] * recorded.duration_s
    return Generations(
        (recorded.arrival_s + start_s).ravel()[:MILLION],
        np.tile(recorded.prompt_tokens, copies)[:MILLION],
        np.tile(recorded.output_tokens, copies)[:MILLION],
    )


def peak_mib() -> float:
    """Peak memory of this process, torch and the capture of the model included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
