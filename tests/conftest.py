import itertools

import numpy as np
import pytest

from hardware.cluster import Cluster, Link
from hardware.profile import DeviceProfile, Provenance
from scheduler.cost_model.costs import CostTable
from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.problem import Problem
from simulator.layer_profile import ONCE, PER_LAYER, PER_SEQUENCE

LITERAL = Provenance("literal", "test")


def make_profile(name="device", flops_per_s=1e9, memory_bytes=10**9, **changes):
    fields = {
        "kind": "cpu", "peak_flops_per_s": {"float32": flops_per_s}, "memory_bytes": memory_bytes,
        "memory_bytes_per_s": 1e9, "provenance": LITERAL,
    }  # fmt: skip
    return DeviceProfile(name=name, **{**fields, **changes})


def make_op(name, inputs, out_bytes=40, weights=None, kind="matmul", **changes):
    fields = {"flops": 1.0, "bytes_read": 0.0, "bytes_written": 0.0, "dtype": "float32"}
    tensor = Tensor(f"t_{name}", (1, out_bytes // 4), "float32")
    return Op(
        name, kind, inputs=tuple(inputs), outputs=(tensor,), weights=weights or {},
        **{**fields, **changes},
    )  # fmt: skip


def make_graph(parents, **changes):
    """A graph from {op: [parent ops]}; an op without parents reads the graph's input 'x'."""
    ops = tuple(
        make_op(name, [f"t_{p}" for p in above] or ["x"], **changes)
        for name, above in parents.items()
    )
    used = {p for above in parents.values() for p in above}
    outputs = tuple(f"t_{name}" for name in parents if name not in used)
    return Graph("test", ops, (Tensor("x", (1, 10), "float32"),), outputs)


def make_chain(length, **changes):
    return make_graph({f"o{i}": [f"o{i - 1}"] if i else [] for i in range(length)}, **changes)


def make_cluster(names="ab", bytes_per_s=1e12, latency_s=0.0, memory_bytes=10**9, medium=""):
    devices = {name: make_profile(f"p_{name}", memory_bytes=memory_bytes) for name in names}
    links = tuple(
        Link(src, dst, bytes_per_s, latency_s, LITERAL, medium)
        for src in names
        for dst in names
        if src != dst
    )
    return Cluster("test", devices, links)


def make_problem(graph, seconds, cluster=None, **changes):
    """`seconds`: one row per op, one column per device."""
    cluster = cluster or make_cluster()
    table = CostTable(
        tuple(cluster.devices),
        np.array(seconds, dtype=float),
        dict.fromkeys(cluster.devices, LITERAL),
    )
    return Problem(graph, cluster, table, **changes)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests measure into a cache of their own, never into the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def write_layers(folder):
    """Layers as a profiler writes them: 1 us a token, 5 us a sequence, attention by context."""
    tables = {
        "dense": [("layer", "tokens", "time_us")]
        + [(name, n, n) for name in sorted({*PER_LAYER, *ONCE}) for n in (1, 2)],
        "per_sequence": [("layer", "sequences", "time_us")]
        + [(name, n, 5) for name in PER_SEQUENCE for n in (1, 2)],
        "attention": [("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")]
        + [
            (c, p, n, k, c + n * k)
            for c, p, n, k in itertools.product((0, 16), (0, 16), (0, 1, 2), (0, 16))
        ],
    }
    for name, rows in tables.items():
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (folder / f"{name}.csv").write_text(text)
