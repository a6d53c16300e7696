"""Published placement instances: graphs whose operator and transfer times are given.

Two formats, told apart by their content.

Source: Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators",
NeurIPS 2020, arXiv:2006.16423 (JSON files of github.com/msr-fiddle/dnn-partitioning); Zhang et
al., "Moirai: Towards Optimal Placement for Distributed Inference on Heterogeneous Devices", 2023,
arXiv:2312.04025 (.xls files of github.com/moirai-placement/moirai).
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from hardware.cluster import Cluster
from hardware.documents import read_raw
from hardware.profile import DeviceKind, DeviceProfile, Provenance
from scheduler.costs import CostTable
from scheduler.graph import MOST_FIGURE, Graph, Op, Tensor

Array = NDArray[np.float64]
Figures = tuple[float, ...]
XLS_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
MOST_DEVICES = 256
"""Every tensor has a transfer time between each two."""
NO_LIMIT_BYTES = 2**63 - 1
"""Memory of a device for which the file gives no limit."""


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


@dataclass(frozen=True)
class _Node:
    name: str
    seconds: Figures
    num_bytes: float
    label: str = ""
    backward: bool = False


@dataclass(frozen=True)
class _Contents:
    """What a file says: devices (kind, bytes), nodes, and edges with figures of transfer time.

    `pairs` turns an edge's figures into seconds (num_devices, num_devices), src by dst; `ends`
    into the seconds (num_devices,) that each device spends itself on sending or receiving.
    """

    devices: Mapping[str, tuple[DeviceKind, float]]
    nodes: list[_Node]
    edges: list[tuple[str, str, Figures]]
    pairs: Callable[[Figures], Array]
    ends: Callable[[Figures], Array] | None = None
    colocated: tuple[tuple[str, ...], ...] = ()


def is_instance(path: Path) -> bool:
    """Whether a file is a published placement instance, by its content.

    Raises:
        ValueError: it cannot be read.
    """
    if _is_xls(path):
        return True
    raw = read_raw(path)
    return isinstance(raw, dict) and "nodes" in raw and "schema" not in raw


def read_instance(path: Path) -> Instance:
    """Read a published placement instance.

    Raises:
        ValueError: a missing key, an edge to an unknown node, an id given twice, a negative or
            NaN figure, or a cycle; xlrd is missing.
    """
    contents = _xls_contents(path) if _is_xls(path) else _json_contents(path)
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


def _json_contents(path: Path) -> _Contents:
    """Accelerators pay for what they send and receive, CPUs nothing; all moves by CPU memory."""
    raw = read_raw(path)
    lists = [_get(raw, key, path) for key in ("nodes", "edges")]
    for key, entries in zip(("nodes", "edges"), lists, strict=True):
        if not isinstance(entries, list):
            raise ValueError(f"{path}: {key} must be a list, got {entries!r}")
    num_acc, num_cpu = (_count(raw, key, path) for key in ("maxFPGAs", "maxCPUs"))
    if num_acc + num_cpu > MOST_DEVICES:
        raise ValueError(
            f"{path}: maxFPGAs and maxCPUs must be at most {MOST_DEVICES} together, "
            f"got {num_acc + num_cpu:.4g}"
        )
    limit = _figure(raw, "maxSizePerFPGA", path)
    if num_acc and limit < 1:
        raise ValueError(f"{path}: maxSizePerFPGA must be at least 1, got {limit:g}")
    on_acc = np.array([1.0] * num_acc + [0.0] * num_cpu)
    nodes, colours = [], defaultdict(list)
    for entry in lists[0]:
        name = str(_get(entry, "id", f"{path}: node"))
        where = f"{path}: node {name}"
        acc_s, cpu_s, num_bytes = (
            _figure(entry, key, where) for key in ("fpgaLatency", "cpuLatency", "size")
        )
        seconds = (acc_s if _flag(entry, "supportedOnFpga", True, where) else math.inf,) * num_acc
        label, backward = str(entry.get("name", "")), _flag(entry, "isBackwardNode", False, where)
        nodes.append(_Node(name, seconds + (cpu_s,) * num_cpu, num_bytes, label, backward))
        if (colour := entry.get("colorClass")) is not None:
            colours[_colour(colour, where)].append(name)
    edges: list[tuple[str, str, Figures]] = []
    for entry in lists[1]:
        src, dst = (str(_get(entry, key, f"{path}: edge")) for key in ("sourceId", "destId"))
        edges.append((src, dst, (_figure(entry, "cost", f"{path}: edge {src} -> {dst}"),)))
    devices: dict[str, tuple[DeviceKind, float]] = {
        f"acc{i}": ("fpga", limit) for i in range(num_acc)
    }
    devices |= {f"cpu{i}": ("cpu", NO_LIMIT_BYTES) for i in range(num_cpu)}

    def ends(figures: Figures) -> Array:
        return figures[0] * on_acc

    def pairs(figures: Figures) -> Array:
        seconds = np.add.outer(ends(figures), ends(figures))
        np.fill_diagonal(seconds, 0.0)
        return seconds

    groups = tuple(tuple(group) for group in colours.values() if len(group) > 1)
    return _Contents(devices, nodes, edges, pairs, ends, groups)


def _xls_contents(path: Path) -> _Contents:
    """One row a task: times p0, p1, ..., bytes mi, successors, and pcXY from device X to Y."""
    rows = _xls_rows(path)
    num = sum(key[1:].isdigit() and key[0] == "p" for key in rows[0])
    keys = [f"pc{i}{j}" for i in range(num) for j in range(num)]
    limits = [_figure(rows[0], f"m{i}", f"{path}: first row") for i in range(num)]
    nodes, edges = [], []
    for row in rows:
        name = _names(_get(row, "task", path))[0]
        where = f"{path}: task {name}"
        seconds = tuple(_figure(row, f"p{i}", where) for i in range(num))
        nodes.append(_Node(name, seconds, _figure(row, "mi", where)))
        successors = _names(_get(row, "dir_succ", where))
        if not _names(row.get("c_task", "")):  # an entry to the graph: nothing to be moved
            edges += [(name, dst, (0.0,) * num**2) for dst in successors]
            continue
        columns = {key: str(_get(row, key, where)).split(",") for key in keys}
        for key, cells in columns.items():
            if len(cells) != len(successors):
                raise ValueError(
                    f"{where}: {key} must have one figure per successor "
                    f"({len(successors)}), got {len(cells)}"
                )
        for k, dst in enumerate(successors):
            figures = tuple(_figure({key: columns[key][k]}, key, where) for key in keys)
            edges.append((name, dst, figures))
    devices: dict[str, tuple[DeviceKind, float]] = {
        f"acc{i}": ("gpu", limit) for i, limit in enumerate(limits)
    }
    return _Contents(devices, nodes, edges, lambda figures: np.reshape(figures, (num, num)))


def _xls_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the first sheet that give a task its times, by column name."""
    try:
        import xlrd
    except ImportError:
        raise ValueError(
            f"{path}: reading .xls needs xlrd; pip install 'apportion[bench]'"
        ) from None
    try:
        sheet = xlrd.open_workbook(path).sheet_by_index(0)
    except (xlrd.XLRDError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a readable .xls file: {error}") from None
    header = [str(cell) for cell in sheet.row_values(0)] if sheet.nrows else []
    rows = [dict(zip(header, sheet.row_values(i), strict=True)) for i in range(1, sheet.nrows)]
    rows = [row for row in rows if row.get("p0") not in ("", None)]
    if not rows:
        raise ValueError(f"{path}: no row has a time in column 'p0'; columns: {', '.join(header)}")
    return rows


def _names(cell: Any) -> list[str]:
    """Ids in a cell: 5.0 or '5,7'."""
    parts = [part for part in str(cell).split(",") if part.strip()]
    return [part.strip().removesuffix(".0") for part in parts]


def _is_xls(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(XLS_MAGIC)) == XLS_MAGIC


def _get(entry: Any, key: str, where: object) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must map keys to values, got {entry!r}")
    if key not in entry:
        raise ValueError(f"{where}: missing key '{key}'")
    return entry[key]


def _figure(entry: Any, key: str, where: object) -> float:
    value = _get(entry, key, where)
    try:
        figure = float(value)
    except (TypeError, ValueError):
        figure = math.nan
    if not 0 <= figure < MOST_FIGURE:
        raise ValueError(f"{where}: {key} must be a number from 0 to 1e30, got {value!r}")
    return figure


def _count(entry: Any, key: str, where: object) -> int:
    figure = _figure(entry, key, where)
    if figure % 1:
        raise ValueError(f"{where}: {key} must be a whole number, got {entry[key]!r}")
    return int(figure)


def _flag(entry: Any, key: str, default: bool, where: object) -> bool:
    value = entry.get(key, default)
    if value not in (True, False):
        raise ValueError(f"{where}: {key} must be true or false, got {value!r}")
    return bool(value)


def _colour(value: Any, where: object) -> str | int:
    if not isinstance(value, str | int):
        raise ValueError(f"{where}: colorClass must be a number or a name, got {value!r}")
    return value


def _graph(path: Path, contents: _Contents) -> tuple[Graph, dict[str, Figures]]:
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
