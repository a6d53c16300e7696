"""Published placement instances: graphs whose operator and transfer times are given.

Two formats, told apart by their content: `instance_json.py`, `instance_xls.py`.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np

from hardware.cluster import Cluster
from hardware.documents import read_raw
from hardware.profile import DeviceProfile, Provenance
from scheduler.cost_model.costs import CostTable
from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.ir.instance_contents import Contents, Figures
from scheduler.ir.instance_json import json_contents
from scheduler.ir.instance_xls import is_xls, xls_contents


@dataclass(frozen=True)
class Instance:
    """A placement problem with literal times.

    The files name no unit of time: one of theirs is one second here, so that every value comes
    out in the file's unit. Transfers are in `costs.transfers` and `costs.ends`; the cluster has
    no links. The bytes of an operator are its `weights`; its outputs hold none of their own.

    Attributes:
        colocated: groups of operators, each of which goes to one device.
    """

    graph: Graph
    cluster: Cluster
    costs: CostTable
    colocated: tuple[tuple[str, ...], ...] = ()


def is_instance(path: Path) -> bool:
    """Whether a file is a published placement instance, by its content.

    Raises:
        ValueError: it cannot be read.
    """
    if is_xls(path):
        return True
    raw = read_raw(path)
    return isinstance(raw, dict) and "nodes" in raw and "schema" not in raw


def read_instance(path: Path) -> Instance:
    """Read a published placement instance.

    Raises:
        ValueError: a missing key, an edge to an unknown node, an id given twice, a negative or
            NaN figure, or a cycle; xlrd is missing.
    """
    contents = xls_contents(path) if is_xls(path) else json_contents(path)
    graph, tensors = _graph(path, contents)
    provenance = Provenance("literal", path.name)
    devices = {
        name: DeviceProfile(name, kind, {}, int(num_bytes), 0.0, provenance)
        for name, (kind, num_bytes) in contents.devices.items()
    }
    cluster = Cluster(path.stem, devices)
    ends = contents.ends
    seconds = {node.name: node.seconds for node in contents.nodes}
    costs = CostTable(
        tuple(devices),
        np.array([seconds[op.name] for op in graph.ops]),
        dict.fromkeys(devices, provenance),
        transfers={tensor: contents.pairs(figures) for tensor, figures in tensors.items()},
        ends={tensor: ends(figures) for tensor, figures in tensors.items()} if ends else {},
    )
    return Instance(graph, cluster, costs, contents.colocated)


def _graph(path: Path, contents: Contents) -> tuple[Graph, dict[str, Figures]]:
    """The graph and each tensor's figures: one tensor per operator and distinct figures.

    The first tensor of an operator has its name, further ones a number after it.
    """
    nodes = {node.name: node for node in contents.nodes}
    if len(nodes) < len(contents.nodes):
        names = [node.name for node in contents.nodes]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: two nodes have the id {twice}")
    tensors: dict[str, dict[Figures, str]] = {name: {} for name in nodes}
    inputs: dict[str, list[str]] = {name: [] for name in nodes}
    for src, dst, figures in contents.edges:
        for end in (src, dst):
            if end not in nodes:
                raise ValueError(f"{path}: edge {src} -> {dst}: no node has the id {end}")
        made = tensors[src]
        tensor = made.setdefault(figures, f"{src}:{len(made)}" if made else src)
        if tensor not in inputs[dst]:
            inputs[dst].append(tensor)
    ops = tuple(
        Op(
            name=name,
            kind="other",
            flops=0.0,
            bytes_read=0.0,
            bytes_written=0.0,
            dtype="uint8",
            inputs=tuple(inputs[name]),
            outputs=tuple(Tensor(t, (0,), "uint8") for t in tensors[name].values() or [name]),
            weights={name: round(node.num_bytes)} if node.num_bytes else {},
            target=node.label,
            phase="backward" if node.backward else "forward",
        )
        for name in _topological(path, list(nodes), [edge[:2] for edge in contents.edges])
        for node in [nodes[name]]
    )
    graph = Graph(path.stem, ops, (), tuple(name for name in nodes if not tensors[name]))
    return graph, {t: f for made in tensors.values() for f, t in made.items()}


def _topological(path: Path, names: list[str], edges: Iterable[tuple[str, str]]) -> Iterable[str]:
    """Names in topological order, else as in the file (Kahn). O((n + e) log n).

    Raises:
        ValueError: there is a cycle; it is printed.
    """
    place = {name: i for i, name in enumerate(names)}
    after: dict[str, list[str]] = defaultdict(list)
    missing = dict.fromkeys(names, 0)
    for src, dst in edges:
        after[src].append(dst)
        missing[dst] += 1
    ready = [place[name] for name in names if not missing[name]]
    order = []
    while ready:
        order.append(names[heapq.heappop(ready)])
        for dst in after[order[-1]]:
            missing[dst] -= 1
            if not missing[dst]:
                heapq.heappush(ready, place[dst])
    if len(order) < len(names):
        cycle = nx.find_cycle(nx.DiGraph((s, d) for s in after for d in after[s]))
        raise ValueError(f"{path}: a cycle: {' -> '.join([cycle[0][0], *(d for _, d in cycle)])}")
    return order
