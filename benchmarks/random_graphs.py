"""Random task graphs on unequal devices: layered, fork-join, series-parallel."""

from collections.abc import Callable

import numpy as np

from hardware.cluster import Cluster
from hardware.profile import DeviceProfile, Provenance
from scheduler.cost_model.costs import CostTable
from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.problem import Problem

SAID = Provenance("literal", "random")
Parents = list[list[int]]
"""Of each operator, those that it reads."""


def layered(rng: np.random.Generator, num_ops: int) -> Parents:
    """Layers of 2 to 5 operators; each reads any of the layer above with probability 1/2."""
    width = int(rng.integers(2, 6))
    return [
        [
            j
            for j in range(max(0, (i // width - 1) * width), i // width * width)
            if rng.random() < 0.5
        ]
        for i in range(num_ops)
    ]


def fork_join(rng: np.random.Generator, num_ops: int) -> Parents:
    """One operator, 2 to 5 branches of 1 to 4, one that joins them, and again."""
    parents: Parents = [[]]
    while len(parents) < num_ops - 1:
        fork, ends = len(parents) - 1, []
        for _ in range(int(rng.integers(2, 6))):
            last = fork
            for _ in range(int(rng.integers(1, 5))):
                if len(parents) < num_ops - 1:
                    parents.append([last])
                    last = len(parents) - 1
            ends.append(last)
        parents.append(sorted(set(ends) - {fork}) or [fork])
    return parents


def series_parallel(rng: np.random.Generator, num_ops: int) -> Parents:
    """An edge, again and again put in series or in parallel with a new operator."""
    edges = [(0, 1)]
    for k in range(2, num_ops):
        src, dst = edges[int(rng.integers(len(edges)))]
        if rng.random() < 0.5:
            edges.remove((src, dst))
        edges += [(src, k), (k, dst)]
    rank = {0: 0}
    after: dict[int, list[int]] = {k: [] for k in range(num_ops)}
    missing = dict.fromkeys(range(num_ops), 0)
    for src, dst in edges:
        after[src].append(dst)
        missing[dst] += 1
    ready = [0]
    while ready:
        i = ready.pop()
        rank[i] = len(rank) if i else 0
        for j in after[i]:
            missing[j] -= 1
            if not missing[j]:
                ready.append(j)
    parents: Parents = [[] for _ in range(num_ops)]
    for src, dst in edges:
        parents[rank[dst]].append(rank[src])
    return parents


FAMILIES: dict[str, Callable[[np.random.Generator, int], Parents]] = {
    "layered": layered,
    "fork-join": fork_join,
    "series-parallel": series_parallel,
}


def random_problem(rng: np.random.Generator, family: str) -> Problem:
    """10 to 60 operators of 1 to 10 s, 2 to 4 devices half to twice as fast, moves of 0 to 8 s."""
    parents = FAMILIES[family](rng, int(rng.integers(10, 61)))
    num_ops, num_devices = len(parents), int(rng.integers(2, 5))
    read = {j for row in parents for j in row}
    ops = tuple(
        Op(
            f"o{i}", "other", 1.0, 0.0, 0.0, "float32", tuple(f"t{j}" for j in row) or ("x",),
            (Tensor(f"t{i}", (1,), "float32"),),
        )
        for i, row in enumerate(parents)
    )  # fmt: skip
    outputs = tuple(f"t{i}" for i in range(num_ops) if i not in read)
    graph = Graph(family, ops, (Tensor("x", (1,), "float32"),), outputs)
    names = [f"d{p}" for p in range(num_devices)]
    devices = {n: DeviceProfile(n, "gpu", {}, 10**9, 0.0, SAID) for n in names}
    seconds = rng.uniform(1, 10, (num_ops, 1)) * rng.uniform(0.5, 2, num_devices)
    seconds *= rng.uniform(0.7, 1.3, seconds.shape)
    moves = {f"t{j}": rng.uniform(0, 8) * (1 - np.eye(num_devices)) for j in sorted(read)}
    costs = CostTable(tuple(names), seconds, dict.fromkeys(names, SAID), transfers=moves)
    return Problem(graph, Cluster("random", devices), costs, objective="latency")
