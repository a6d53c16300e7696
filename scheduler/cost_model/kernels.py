"""Closed forms for the time of GPU kernels: matrix products, prefill and decode attention.

A kernel starts (start_s), then computes in waves of thread blocks while it streams bytes; the
slower of the two counts, with a soft corner: seconds = start + (compute^4 + memory^4)^(1/4).

    product   blocks of tile_m x tile_n outputs, `split` blocks along k; the best of all tiles and
              splits; a split adds a reduction of its partial sums
    prefill   blocks of 128 query rows of one key-value head; longest and mean block
    decode    one block per key-value head and split of the keys; a split adds a reduction

Shares are of the device's peak and bandwidth. Sources: NVIDIA, "Matrix multiplication background
user's guide" (tile and wave quantisation); Dao, "FlashAttention-2", 2023, arXiv:2307.08691 (blocks
of queries); Dao et al., "Flash-Decoding for long-context inference", 2023 (splits of keys).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from hardware.kernel_model import Chip, KernelModel, load_shapes
from hardware.profile import DeviceProfile

Array = NDArray[np.float64]
Sizes = Mapping[str, Array]

COPIES = 6
"""Weights that take turns in the measurements, so that only small ones are found in the cache."""
SPLITS_K = (1, 2, 3, 4, 6, 8, 16)
SPLITS_KEYS = (1, 2, 4, 8, 16, 32, 64, 128)
TILE_SHARE = {
    (64, 64): 0.6,
    (64, 128): 0.6,
    (128, 64): 0.7,
    (128, 128): 0.8,
    (128, 256): 0.9,
    (256, 128): 0.8,
    (64, 256): 0.75,
    (256, 256): 0.85,
    (32, 128): 0.45,
    (16, 128): 0.25,
}


@dataclass(frozen=True)
class Form:
    """A closed form, the sizes it reads and its constants with their usual values."""

    seconds: Callable[[Mapping[str, float], Sizes, Chip], Array]
    sizes: tuple[str, ...]
    usual: Mapping[str, float]


def _memory_s(num_bytes: Array, resident: Array, c: Mapping[str, float], chip: Chip) -> Array:
    """Seconds to stream bytes, a share of which is found in the cache."""
    hit = 1 / (1 + (resident / (0.7 * chip.cache)) ** 4)
    return num_bytes / (chip.bandwidth * c["memory"]) * (1 - hit + hit / c["cache"])


def _slower(compute_s: Array, memory_s: Array) -> Array:
    return np.asarray((compute_s**4 + memory_s**4) ** 0.25)


def product_seconds(c: Mapping[str, float], x: Sizes, chip: Chip) -> Array:
    """Seconds of `batch` products m x k times k x n, two bytes an element."""
    batch, m, n, k = x["batch"], x["m"], x["n"], x["k"]
    weights, others = 2 * batch * n * k, 2 * batch * m * (k + n)
    memory_s = _memory_s(weights + others, COPIES * weights + others, c, chip)
    split = np.array(SPLITS_K)[:, None]
    steps = np.ceil(k / split / 64) * 64
    partial_s = 8 * batch * m * n * split / (chip.bandwidth * c["feed"])
    reduce_s = np.where(split > 1, c["reduce_s"] + partial_s, 0.0)
    compute_s = np.full(steps.shape, np.inf)
    for tile_m, tile_n in TILE_SHARE:
        tiles = batch * np.ceil(m / tile_m) * np.ceil(n / tile_n)
        rate = chip.peak / chip.units * c["compute"] * c[f"tile_{tile_m}x{tile_n}"]
        load = 2 * (tile_m + tile_n) * chip.units / (chip.bandwidth * c["feed"])
        step_s = max(2 * tile_m * tile_n / rate, load)
        waves = np.ceil(tiles * split / chip.units)
        compute_s = np.minimum(compute_s, waves * (steps * step_s + c["block_s"]))
    best = (_slower(compute_s, memory_s) + reduce_s).min(axis=0)
    return np.asarray(best + c["start_s"])


def prefill_seconds(c: Mapping[str, float], x: Sizes, chip: Chip) -> Array:
    """Seconds of attention of many queries over all keys, causal or not, two bytes an element."""
    queries, keys, kv_heads, depth = x["queries"], x["keys"], x["kv_heads"], x["depth"]
    group = x["heads"] / kv_heads
    blocks_of_head = np.ceil(queries * group / 128)
    blocks = x["batch"] * kv_heads * blocks_of_head
    earlier = keys - queries
    triangle = keys * (keys + 1) / 2 - earlier * (earlier + 1) / 2 + 64 * queries
    pairs = np.where(x["causal"] > 0, triangle, queries * keys)
    mean = np.maximum(pairs * group / blocks_of_head, 128 * 64)
    longest = np.ceil(keys / 64) * 64 * 128
    waves = blocks / chip.units
    work = np.maximum(waves * mean, np.where(waves < 1, longest, 0))
    pair_s = 4 * (depth + c["softmax_depth"]) * chip.units / (chip.peak * c["compute"])
    compute_s = work * pair_s + np.ceil(waves) * c["block_s"]
    rows = queries * x["heads"] + keys * kv_heads
    num_bytes = 4 * x["batch"] * rows * depth
    return c["start_s"] + _slower(compute_s, _memory_s(num_bytes, num_bytes, c, chip))


def decode_seconds(c: Mapping[str, float], x: Sizes, chip: Chip) -> Array:
    """Seconds of attention of one query over the keys and values of a cache."""
    keys, kv_heads, depth = x["keys"], x["kv_heads"], x["depth"]
    heads_blocks = x["batch"] * kv_heads
    rows = np.ceil(x["heads"] / kv_heads / 16) * 16
    num_bytes = 4 * x["batch"] * depth * (keys * kv_heads + x["heads"])
    memory_s = _memory_s(num_bytes, num_bytes, c, chip)
    stream_s = chip.units / (chip.bandwidth * 4)
    pair_s = rows * chip.units / (chip.peak * c["compute"])
    key_s = 4 * depth * np.maximum(stream_s, pair_s)
    best = np.full(len(keys), np.inf)
    for split in SPLITS_KEYS:
        steps = np.ceil(keys / split / 64) * 64
        waves = np.ceil(heads_blocks * split / chip.units)
        seconds = _slower(waves * (steps * key_s + c["block_s"]), memory_s)
        if split > 1:
            partial = 8 * x["batch"] * x["heads"] * depth * split
            seconds += c["reduce_s"] + partial / (3 * chip.bandwidth)
        best = np.minimum(best, seconds)
    return best + c["start_s"]


FORMS: dict[str, Form] = {
    "product": Form(
        product_seconds,
        ("batch", "m", "n", "k"),
        {
            "start_s": 2.5e-6,
            "compute": 0.9,
            "memory": 0.85,
            "block_s": 1e-6,
            "feed": 4.0,
            "reduce_s": 2e-6,
            "cache": 2.0,
            **{f"tile_{m}x{n}": share for (m, n), share in TILE_SHARE.items()},
        },
    ),
    "prefill": Form(
        prefill_seconds,
        ("batch", "heads", "kv_heads", "queries", "keys", "depth", "causal"),
        {
            "start_s": 8e-6,
            "compute": 0.6,
            "memory": 0.5,
            "block_s": 2e-6,
            "softmax_depth": 32.0,
            "cache": 2.0,
        },
    ),
    "decode": Form(
        decode_seconds,
        ("batch", "heads", "kv_heads", "keys", "depth"),
        {
            "start_s": 8e-6,
            "compute": 0.3,
            "memory": 0.85,
            "block_s": 2e-6,
            "cache": 3.0,
            "reduce_s": 2e-6,
        },
    ),
}


NEIGHBOURS = 8
SOFT = 1e-3
"""Squared octaves below which a measured shape stands for the asked one."""


def places(form: str, x: Sizes) -> Array:
    """Sizes as places (num_ops, num_axes), in octaves, between which residuals are interpolated.

    Depth counts double: head sizes have kernels of their own; so do rows that fill a tile and
    those that start a new one.
    """
    if form == "product":
        filled = np.log2(np.ceil(x["m"] / 128) * 128 / np.maximum(x["m"], 64))
        return np.column_stack([np.log2(x[name]) for name in "mnk"] + [2 * filled])
    axes = [np.log2(x[name]) for name in ("batch", "keys", "heads", "kv_heads", "depth")]
    return np.column_stack([*axes, axes[-1]])


def spread_out(at: Array, values: Array, to: Array) -> Array:
    """Values at other places: mean of the nearest, by the inverse of their squared distance."""
    distance, near = KDTree(at).query(to, k=min(NEIGHBOURS, len(at)))
    weight = 1 / (distance**2 + SOFT) ** 2
    weight /= weight.sum(axis=1, keepdims=True)
    mean: Array = np.einsum("ij,ij...->i...", weight, values[near])
    return mean


@lru_cache(maxsize=64)
def _residuals(form: str, device: str) -> Array:
    """Residuals of a device on all measured shapes, filled in where it was not measured."""
    shapes = load_shapes(form)
    at = places(form, dict(zip(FORMS[form].sizes, shapes.sizes.T, strict=True)))
    values = shapes.residuals[device]
    known = np.isfinite(values)
    return spread_out(at[known], values[known], at)


def residuals_of(form: str, devices: list[str], x: Sizes) -> Array:
    """log(measured / closed form) of measured devices (num_ops, num_devices)."""
    shapes = load_shapes(form)
    at = places(form, dict(zip(FORMS[form].sizes, shapes.sizes.T, strict=True)))
    values = np.column_stack([_residuals(form, device) for device in devices])
    return spread_out(at, values, places(form, x))


def residual(model: KernelModel, x: Sizes) -> Array:
    """log(measured / closed form) that a model expects."""
    weights = {device: w for device, w in model.like.items() if abs(w) > 0.01}
    if not weights:
        return np.zeros(len(next(iter(x.values()))))
    mixed = residuals_of(model.form, list(weights), x) @ np.array(list(weights.values()))
    return np.asarray(mixed)


def kernel_seconds(model: KernelModel, x: Sizes, chip: Chip) -> Array:
    """Seconds of kernels of one form on a device."""
    closed = FORMS[model.form].seconds(model.constants, x, chip)
    return np.asarray(closed * np.exp(residual(model, x)))


def chip_of(profile: DeviceProfile, dtype: str) -> Chip | None:
    """What closed forms need to know of a device; None where its profile does not say it."""
    figures = (
        profile.peak_flops_per_s.get(dtype),
        profile.memory_bytes_per_s,
        profile.num_compute_units,
        profile.cache_bytes,
    )
    known = [float(figure) for figure in figures if figure]
    return Chip(*known) if len(known) == len(figures) else None
