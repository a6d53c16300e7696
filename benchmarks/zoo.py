"""Every zoo model: its graph's totals beside torch's own count, and what capturing it takes.

    python -m benchmarks.zoo [NAME...]

Each model is captured in a process of its own, on meta tensors: batch 1, 128 tokens or 224 x 224
pixels, float32. "torch" is torch.utils.flop_counter over a run of the module on meta; it counts
products only and none of our operators, so that a mixture of experts is below ours there.
"""

import json
import subprocess
import sys

from executor.zoo import ZOO

ONE = """
import json, resource, sys, time
started = time.perf_counter()
from executor.capture import capture
graph = capture("zoo:" + sys.argv[1], 1)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
from torch.utils.flop_counter import FlopCounterMode
from executor.sources import build_model
model = build_model("zoo:" + sys.argv[1], 1, "float32", "meta")
with FlopCounterMode(display=False) as counter:
    model.module(*model.inputs)
by_kind = graph.flops_by_kind()
print(json.dumps({
    **graph.totals(), "seconds": seconds, "peak": peak, "torch": counter.get_total_flops(),
    "products": sum(by_kind.get(kind, 0) for kind in ("matmul", "conv", "attention")),
    "uncosted": len(graph.uncosted_ops),
}))
"""


def main() -> None:
    print(
        f"{'model':<14}{'operators':>10}{'parameters':>16}{'GFLOP':>12}{'products':>12}"
        f"{'torch':>12}{'MB moved':>12}{'uncosted':>9}{'s':>7}{'peak MiB':>9}"
    )
    for name in sys.argv[1:] or ZOO:
        command = [sys.executable, "-W", "ignore", "-c", ONE, name]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        print(
            f"{name:<14}{found['ops']:>10,}{found['params']:>16,}{found['flops'] / 1e9:>12,.3f}"
            f"{found['products'] / 1e9:>12,.3f}{found['torch'] / 1e9:>12,.3f}"
            f"{found['bytes'] / 1e6:>12,.1f}{found['uncosted']:>9}{found['seconds']:>7.1f}"
            f"{found['peak']:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
