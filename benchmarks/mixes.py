"""The hardware mixes and models of the scheduler's benchmarks.

Ten zoo models (batch 1, 128 tokens or 224 x 224 pixels) and five mixes of the catalog's devices;
float32, bfloat16 where TPUs take nothing else.
"""

from dataclasses import replace
from itertools import permutations

from executor.capture import capture
from hardware.catalog import find_link, find_profile, instance_cluster, joined, load_prices
from hardware.cluster import Cluster, Link
from hardware.instances import Instance
from hardware.profile import Provenance
from scheduler.ir.coarsen import at_grain
from scheduler.ir.graph import Graph
from scheduler.ir.grouping import Grain
from scheduler.ir.precision import Precision, with_precision

MODELS = (
    *("resnet50", "mobilenet-v3", "unet", "vit-b-16", "bert-base"),
    *("gpt2", "llama-3-8b", "mixtral-8x7b", "whisper-small", "dlrm"),
)
MOST_OPS = 1000
"""Operators above which chains of them are placed as one."""
GIB = 2**30
SHARED_MEMORY = Provenance("measured", "ring in shared memory between two pinned processes")


def through_host(name: str, accelerators: list[str], host: Instance, link: str) -> Cluster:
    """Accelerators behind PCIe, whose exchange passes the host and shares its bandwidth."""
    cpu = instance_cluster(replace(host, accelerator=None, num_accelerators=0))
    devices = {f"gpu{i}": find_profile(known) for i, known in enumerate(accelerators)}
    laid = find_link(link)
    links = [joined(a, b, laid, "host PCIe") for a, b in permutations(devices, 2)]
    links += [joined(*ends, laid) for a in devices for ends in ((a, "cpu0"), ("cpu0", a))]
    return Cluster(name, {**devices, **cpu.devices}, tuple(links))


def slices() -> Cluster:
    """One core and three cores of one CPU, which exchange tensors through its memory."""
    devices = {}
    for device, cores in (("cpu0", 1), ("cpu1", 3)):
        part = Instance(device, "EPYC-7R13-core", cores, cores * 8 * GIB)
        devices[device] = instance_cluster(part).devices["cpu0"]
    links = (Link(a, b, 8e9, 2e-5, SHARED_MEMORY) for a, b in permutations(devices, 2))
    return Cluster("1-core and 3-core slices", devices, tuple(links))


def price(*instances: str) -> float:
    """USD per hour on demand of instances with these devices."""
    return sum(load_prices().find(name, "on_demand").usd_per_hour for name in instances)


def mixes() -> list[tuple[Cluster, float, str]]:
    """Cluster, USD per hour of what such devices rent for, and the dtype that all of it has."""
    t4_host = Instance("", "Cascade-Lake-core", 24, 192 * GIB)
    l4_host = Instance("", "EPYC-7R13-core", 24, 192 * GIB)
    h100 = Instance(
        "8 H100 (NVLink) + 32 cores", "Xeon-8481C-core", 32, 512 * GIB, "H100-SXM5-80GB", 8,
        "pcie-a3", peer_link="nvlink4",
    )  # fmt: skip
    v5e = Instance(
        "4 TPU v5e + host", "EPYC-7R13-core", 56, 192 * GIB, "TPU-v5e", 4, "pcie-tpu",
        peer_link="ici-v5e",
    )  # fmt: skip
    a100_t4 = through_host("A100 + 4 T4 + CPU", ["A100-PCIe-80GB", *["T4"] * 4], t4_host, "pcie-g5")
    l4_l40s = through_host("2 L4 + 2 L40S (PCIe)", ["L4"] * 2 + ["L40S"] * 2, l4_host, "pcie-g5")
    return [
        (a100_t4, price("azure/Standard_NC24ads_A100_v4", "aws/g4dn.12xlarge"), "float32"),
        (l4_l40s, price("gcp/g2-standard-24", "aws/g6e.xlarge", "aws/g6e.xlarge"), "float32"),
        (instance_cluster(h100), price("aws/p5.48xlarge"), "float32"),
        (instance_cluster(v5e), price("gcp/ct5lp-hightpu-4t"), "bfloat16"),
        (slices(), price("aws/c6a.xlarge") * 2, "float32"),
    ]


def graphs_of(model: str) -> dict[str, Graph]:
    """A model by dtype, captured once in float32: bfloat16 halves weights and activations."""
    graph = capture(f"zoo:{model}", 1, "float32")
    half = with_precision(graph, Precision("bfloat16", "bfloat16"))
    grain: Grain = "chains" if len(graph.ops) > MOST_OPS else "operators"
    return {"float32": at_grain(graph, grain), "bfloat16": at_grain(half, grain)}
