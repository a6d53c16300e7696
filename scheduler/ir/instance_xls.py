"""Placement instances in .xls: measured times of unrelated devices, and of each pair's transfers.

Source: Zhang et al., "Moirai: Towards Optimal Placement for Distributed Inference on Heterogeneous
Devices", 2023, arXiv:2312.04025 (files of github.com/moirai-placement/moirai).
"""

from pathlib import Path
from typing import Any

import numpy as np

from hardware.profile import DeviceKind
from scheduler.ir.instance_contents import Contents, Node, figure, get

XLS_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")


def xls_contents(path: Path) -> Contents:
    """One row a task: times p0, p1, ..., bytes mi, successors, and pcXY from device X to Y."""
    rows = _xls_rows(path)
    num = sum(key[1:].isdigit() and key[0] == "p" for key in rows[0])
    keys = [f"pc{i}{j}" for i in range(num) for j in range(num)]
    limits = [figure(rows[0], f"m{i}", f"{path}: first row") for i in range(num)]
    nodes, edges = [], []
    for row in rows:
        name = _names(get(row, "task", path))[0]
        where = f"{path}: task {name}"
        seconds = tuple(figure(row, f"p{i}", where) for i in range(num))
        nodes.append(Node(name, seconds, figure(row, "mi", where)))
        successors = _names(get(row, "dir_succ", where))
        if not _names(row.get("c_task", "")):  # an entry to the graph: nothing to be moved
            edges += [(name, dst, (0.0,) * num**2) for dst in successors]
            continue
        columns = {key: str(get(row, key, where)).split(",") for key in keys}
        for key, cells in columns.items():
            if len(cells) != len(successors):
                raise ValueError(
                    f"{where}: {key} must have one figure per successor "
                    f"({len(successors)}), got {len(cells)}"
                )
        for k, dst in enumerate(successors):
            figures = tuple(figure({key: columns[key][k]}, key, where) for key in keys)
            edges.append((name, dst, figures))
    devices: dict[str, tuple[DeviceKind, float]] = {
        f"acc{i}": ("gpu", limit) for i, limit in enumerate(limits)
    }
    return Contents(devices, nodes, edges, lambda figures: np.reshape(figures, (num, num)))


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


def is_xls(path: Path) -> bool:
    """Whether a file is one of the old binary Excel format, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(XLS_MAGIC)) == XLS_MAGIC
