"""Look-alikes of published placement instances: training from inference, deeper, other devices.

They are made of the published files alone (github.com/msr-fiddle/dnn-partitioning, folder
`throughput`), so that the benchmark also runs on graphs nobody has looked at: layers get a backward
node each, as in bert24_training; the middle layer of BERT-3 is repeated; devices are varied.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Raw = dict[str, Any]

BACKWARD = (1.0, 1.8)
"""Times of a backward layer over its forward one, at random between these."""
BASE, HEAD = -1, 3
MIDDLE = 1


def trained(raw: Raw, seed: int = 0) -> Raw:
    """Give every layer a backward one of the same colour class, joined by the reversed edges."""
    rng = np.random.default_rng(seed)
    shift = 1 + max(node["id"] for node in raw["nodes"])
    nodes, edges = list(raw["nodes"]), list(raw["edges"])
    for node in raw["nodes"]:
        ratio = rng.uniform(*BACKWARD)
        times = {key: node[key] * ratio for key in ("cpuLatency", "fpgaLatency")}
        new = {"id": node["id"] + shift, "name": f"{node['name']}grad", "isBackwardNode": 1}
        nodes.append(node | times | new)
    for edge in raw["edges"]:
        ends = {"sourceId": edge["destId"] + shift, "destId": edge["sourceId"] + shift}
        edges.append(edge | ends)
    return raw | {"nodes": nodes, "edges": edges}


def deeper(raw: Raw, num_layers: int) -> Raw:
    """Repeat the middle one of BERT's three layers, backward operators and optimizers with it."""
    layer = _layers(raw)
    kind = {node["id"]: re.sub(r"\d+", "", node["name"]) for node in raw["nodes"]}
    ordered = sorted(layer, key=lambda u: (kind[u], u))
    first, middle = ([u for u in ordered if layer[u] == k] for k in (0, MIDDLE))
    twin = dict(zip(first, middle, strict=True))
    stride, copies = 1 + max(layer), range(num_layers - 2)

    def at(u: int, k: int) -> int:
        """An operator of the k-th copy of the middle layer; the others are there once."""
        return u + k * stride if layer[u] == MIDDLE else u

    nodes = []
    for node in raw["nodes"]:
        for k in copies if layer[node["id"]] == MIDDLE else [0]:
            colour = {"colorClass": node["colorClass"] + k * stride} if "colorClass" in node else {}
            nodes.append(node | colour | {"id": at(node["id"], k)})
    pairs: list[tuple[int, int, Raw]] = []
    for edge in raw["edges"]:
        u, v = edge["sourceId"], edge["destId"]
        layers = {layer[u], layer[v]}
        if layers in ({MIDDLE}, {BASE, MIDDLE}):
            pairs += [(at(u, k), at(v, k), edge) for k in copies]
        elif MIDDLE + 1 in layers:
            pairs.append((at(u, copies[-1]), at(v, copies[-1]), edge))
        else:
            pairs.append((u, v, edge))
        if layers == {0, MIDDLE}:
            for k in copies[1:]:
                a, b = (at(twin[x], k - 1) if x in twin else at(x, k) for x in (u, v))
                pairs.append((a, b, edge))
    edges = [edge | {"sourceId": u, "destId": v} for u, v, edge in pairs]
    return raw | {"nodes": nodes, "edges": edges}


def _layers(raw: Raw) -> dict[int, int]:
    """Layer of every operator, by the weights that it depends on: `BASE`, 0, 1, 2 or `HEAD`.

    Backward operators belong to their colour class, sums of gradients to what they add.
    """
    inputs: dict[int, list[int]] = {node["id"]: [] for node in raw["nodes"]}
    for edge in raw["edges"]:
        inputs[edge["destId"]].append(edge["sourceId"])
    nodes = {node["id"]: node for node in raw["nodes"]}
    layer: dict[int, int] = {}
    colour: dict[int, int] = {}

    def find(u: int) -> int:
        if u in layer:
            return layer[u]
        node = nodes[u]
        mine, name = node.get("colorClass"), node["name"]
        before = [find(v) for v in inputs[u]]
        if node["isBackwardNode"]:
            layer[u] = colour[mine] if mine in colour else min(before, default=HEAD)
        elif name.startswith("bert.encoder.layer."):
            layer[u] = int(name.split(".")[3])
        elif name.startswith(("cls.", "bert.pooler")):
            layer[u] = HEAD
        else:
            layer[u] = max(before, default=BASE)
        return layer[u]

    for node in sorted(raw["nodes"], key=lambda node: bool(node["isBackwardNode"])):
        found = find(node["id"])
        if "colorClass" in node and not node["isBackwardNode"]:
            colour[node["colorClass"]] = max(found, colour.get(node["colorClass"], BASE))
    return layer


def lookalikes(folder: Path) -> Iterable[tuple[str, Raw]]:
    """Names and contents of all look-alikes of the files in a folder `throughput`."""

    def read(name: str) -> Raw:
        return dict(json.loads((folder / f"{name}.json").read_text()))

    layers, operators = "LayerGraphs", "OperatorGraphs"
    for name in ("gnmt", "resnet50", "inceptionv3"):
        yield f"{layers}/{name}_training", trained(read(f"{layers}/{name}_inference"))
    for mode, depths in (("inference", (12,)), ("training", (6, 12))):
        three = read(f"{operators}/bert_l-3_{mode}")
        for depth in depths:
            for devices in (3, 6):
                deep = deeper(three, depth) | {"maxFPGAs": devices}
                yield f"{operators}/bert_l-{depth}_{mode}_k{devices}", deep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder dnn-partitioning")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    for name, raw in lookalikes(arguments.data / "throughput"):
        path = arguments.out / "throughput" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(raw))
        print(f"{path}: {len(raw['nodes'])} operators, {len(raw['edges'])} edges")


if __name__ == "__main__":
    main()
