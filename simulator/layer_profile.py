"""Step times from a folder of measured layers, as LLMServingSim's profiler writes them.

The folder holds `dense.csv` (layer, tokens, time_us), `per_sequence.csv` (layer, sequences,
time_us), `attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us) and optionally
`skew.csv` (regime, t_mean_us, t_max_us, t_skew_us). Times are of one layer.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware.documents import STRICT
from simulator.step_times import Array, StepTimes, least_squares_skew

PER_LAYER = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "layernorm", "gate_up_proj",
             "act_fn", "down_proj")  # fmt: skip
ONCE = ("embedding", "final_layernorm")
PER_SEQUENCE = ("lm_head", "sampler")
MICROSECOND = 1e-6
COVERED = 0.85
"""Share of the grid that must have been measured at a value of an axis for the value to count."""


@dataclass(frozen=True)
class LayerTimes:
    """Layers of a decoder as they were measured, in place of those that the cost model predicts.

    Attributes:
        folder: with `dense.csv`, `per_sequence.csv`, `attention.csv` and perhaps `skew.csv`.
        num_layers: equal layers of the model, of which one was measured.
        padded_tokens: sizes that the server pads a step's tokens to (its captured graphs).
        step_s: what the server itself adds to every step.
    """

    __pydantic_config__ = STRICT
    folder: str
    num_layers: int
    padded_tokens: tuple[int, ...] = ()
    step_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a model of no layers, sizes out of order, and negative times."""
        if self.num_layers < 1:
            raise ValueError(f"layer_times: num_layers must be at least 1, got {self.num_layers}")
        sizes = list(self.padded_tokens)
        if sizes and (sizes[0] < 1 or sizes != sorted(set(sizes))):
            raise ValueError(f"layer_times: padded_tokens must rise from 1 or more, got {sizes}")
        if self.step_s < 0:
            raise ValueError(f"layer_times: step_s must not be negative, got {self.step_s}")

    def step_times(self) -> StepTimes:
        """Times of whole steps.

        Raises:
            ValueError: a file or a column is missing, or holds no numbers.
        """
        padded = np.array(self.padded_tokens, dtype=np.float64)
        return read_step_times(Path(self.folder), self.num_layers, padded, self.step_s)


def read_step_times(
    folder: Path, num_layers: int, padded_tokens: Array | None = None, step_s: float = 0.0
) -> StepTimes:
    """Read measured layers of a decoder of `num_layers` equal layers.

    Raises:
        ValueError: a file or a column is missing, or holds no numbers.
    """
    dense = _tables(folder / "dense.csv", "tokens")
    tokens = dense[PER_LAYER[0]][0]
    layer_s = np.sum([np.interp(tokens, *dense[name]) for name in PER_LAYER], axis=0)
    once_s = np.sum([np.interp(tokens, *dense[name]) for name in ONCE], axis=0)
    heads = _tables(folder / "per_sequence.csv", "sequences")
    sequences = heads[PER_SEQUENCE[0]][0]
    head_s = np.sum([np.interp(sequences, *heads[name]) for name in PER_SEQUENCE], axis=0)
    (chunk, past, decodes, context), grid = _attention_grid(folder / "attention.csv")
    return StepTimes(
        tokens,
        num_layers * layer_s + once_s,
        sequences,
        head_s,
        chunk,
        past,
        decodes,
        context,
        num_layers * grid,
        skew=_skew(folder / "skew.csv"),
        padded_tokens=np.zeros(0) if padded_tokens is None else padded_tokens,
        step_s=step_s,
        provenance=f"measured layers in {folder}",
    )


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.str_]]:
    try:
        header, *rows = path.read_text().split()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a layer profile needs it") from None
    known = header.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"{path}: no column '{name}'; it has: {', '.join(known)}")
    cells = np.array([row.split(",") for row in rows])
    return {name: cells[:, known.index(name)] for name in names}


def _numbers(path: Path, column: NDArray[np.str_]) -> Array:
    try:
        return column.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _tables(path: Path, axis: str) -> dict[str, tuple[Array, Array]]:
    """(axis, seconds) of every layer."""
    columns = _columns(path, ("layer", axis, "time_us"))
    at, seconds = _numbers(path, columns[axis]), _numbers(path, columns["time_us"]) * MICROSECOND
    tables = {}
    for layer in np.unique(columns["layer"]):
        mine = columns["layer"] == layer
        order = np.argsort(at[mine])
        tables[str(layer)] = (at[mine][order], seconds[mine][order])
    missing = {*PER_LAYER, *ONCE} if axis == "tokens" else {*PER_SEQUENCE}
    if missing - set(tables):
        raise ValueError(f"{path}: no rows of layer {', '.join(sorted(missing - set(tables)))}")
    return tables


def _attention_grid(path: Path) -> tuple[list[Array], Array]:
    """The axes and the grid (chunk, past, decodes, context), its gaps filled.

    A value of an axis at which less than `COVERED` of the grid was measured is left out. Without
    a chunk its past does not matter, without decodes their context does not.
    """
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    columns = _columns(path, names)
    rows = np.stack([_numbers(path, columns[name]) for name in names])
    axes = [np.unique(axis) for axis in rows[:4]]
    grid = np.full([len(axis) for axis in axes], np.nan)
    index = tuple(np.searchsorted(axis, at) for axis, at in zip(axes, rows[:4], strict=True))
    grid[index] = rows[4] * MICROSECOND
    grid[0] = grid[0, :1]
    grid[:, :, 0] = grid[:, :, 0, :1]
    grid[:, :, :, 0] = np.where(np.isnan(grid[:, :, :, 0]), grid[:, :, :, 1], grid[:, :, :, 0])
    grid[0, :, 0] = 0.0
    axes, grid = _covered(axes, grid)
    decodes = axes[2]
    for j in range(3, len(decodes)):
        slope = (grid[:, :, j - 1] - grid[:, :, j - 2]) / (decodes[j - 1] - decodes[j - 2])
        further = grid[:, :, j - 1] + slope * (decodes[j] - decodes[j - 1])
        grid[:, :, j] = np.where(np.isnan(grid[:, :, j]), further, grid[:, :, j])
    if np.isnan(grid).any():
        raise ValueError(f"{path}: {int(np.isnan(grid).sum())} points of the grid are missing")
    return axes, grid


def _covered(axes: list[Array], grid: Array) -> tuple[list[Array], Array]:
    while True:
        measured = ~np.isnan(grid)
        worst, axis, at = 1.0, 0, 0
        for d in (0, 1, 3):
            share = measured.mean(axis=tuple(k for k in range(4) if k != d))[1:]
            if share.min() < worst:
                worst, axis, at = float(share.min()), d, int(share.argmin()) + 1
        if worst > COVERED:
            return axes, grid
        grid = np.delete(grid, at, axis=axis)
        axes = [np.delete(a, at) if d == axis else a for d, a in enumerate(axes)]


def _skew(path: Path) -> float:
    if not path.exists():
        return 0.0
    columns = _columns(path, ("regime", "t_mean_us", "t_max_us", "t_skew_us"))
    pure = columns["regime"] == "pure"
    return least_squares_skew(
        *(_numbers(path, columns[name][pure]) for name in ("t_mean_us", "t_max_us", "t_skew_us"))
    )
