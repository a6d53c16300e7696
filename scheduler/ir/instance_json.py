"""Placement instances in JSON: accelerators and CPUs that move data through the CPUs' memory.

Source: Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators",
NeurIPS 2020, arXiv:2006.16423 (files of github.com/msr-fiddle/dnn-partitioning).
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hardware.documents import read_raw
from hardware.profile import DeviceKind
from scheduler.ir.instance_contents import (
    NO_LIMIT_BYTES,
    Array,
    Contents,
    Figures,
    Node,
    count,
    figure,
    flag,
    get,
)

MOST_DEVICES = 256
"""Every tensor has a transfer time between each two."""


def json_contents(path: Path) -> Contents:
    """Accelerators pay for what they send and receive, CPUs nothing; all moves by CPU memory."""
    raw = read_raw(path)
    lists = [get(raw, key, path) for key in ("nodes", "edges")]
    for key, entries in zip(("nodes", "edges"), lists, strict=True):
        if not isinstance(entries, list):
            raise ValueError(f"{path}: {key} must be a list, got {entries!r}")
    num_acc, num_cpu = (count(raw, key, path) for key in ("maxFPGAs", "maxCPUs"))
    if num_acc + num_cpu > MOST_DEVICES:
        raise ValueError(
            f"{path}: maxFPGAs and maxCPUs must be at most {MOST_DEVICES} together, "
            f"got {num_acc + num_cpu:.4g}"
        )
    limit = figure(raw, "maxSizePerFPGA", path)
    if num_acc and limit < 1:
        raise ValueError(f"{path}: maxSizePerFPGA must be at least 1, got {limit:g}")
    on_acc = np.array([1.0] * num_acc + [0.0] * num_cpu)
    nodes, colours = [], defaultdict(list)
    for entry in lists[0]:
        name = str(get(entry, "id", f"{path}: node"))
        where = f"{path}: node {name}"
        acc_s, cpu_s, num_bytes = (
            figure(entry, key, where) for key in ("fpgaLatency", "cpuLatency", "size")
        )
        seconds = (acc_s if flag(entry, "supportedOnFpga", True, where) else math.inf,) * num_acc
        label, backward = str(entry.get("name", "")), flag(entry, "isBackwardNode", False, where)
        nodes.append(Node(name, seconds + (cpu_s,) * num_cpu, num_bytes, label, backward))
        if (colour := entry.get("colorClass")) is not None:
            colours[_colour(colour, where)].append(name)
    edges: list[tuple[str, str, Figures]] = []
    for entry in lists[1]:
        src, dst = (str(get(entry, key, f"{path}: edge")) for key in ("sourceId", "destId"))
        edges.append((src, dst, (figure(entry, "cost", f"{path}: edge {src} -> {dst}"),)))
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
    return Contents(devices, nodes, edges, pairs, ends, groups)


def _colour(value: Any, where: object) -> str | int:
    """The number or name of a colocation group."""
    if not isinstance(value, str | int):
        raise ValueError(f"{where}: colorClass must be a number or a name, got {value!r}")
    return value
