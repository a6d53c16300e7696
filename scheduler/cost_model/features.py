"""Operators as columns of numbers, and the named features that efficiency models speak of.

Every feature is the logarithm of a plain ratio or size, so that a model reads the same on small
and large operators; those over a peak, bandwidth, cache or number of units are relative to the
device. `log_SIZE` is the logarithm of any size in `Op.dims`, e.g. `log_m`; `is_SIZE` is one
that is 0 or 1; `on_NAME` is 1 for calls of the operator NAME, e.g. `on_cat`, else 0: operators of
one class run different kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hardware.documents import nearest
from hardware.profile import DeviceProfile
from scheduler.ir.graph import DTYPE_BYTES, Op

Array = NDArray[np.float64]

COMPUTE_KINDS = frozenset({"matmul", "conv", "attention"})
TINY = 1e-12
TILE = 128
"""Side of the output tile that one compute unit of a GPU works on, the commonest in cuBLAS."""
ENERGY_J = 16e-12
"""Joule per float32 operation in 12 nm, board included: 85 % of V100-SXM2's 300 W over 15.7 TFLOP/s
(the rest is memory and idle). ASSUMED from its data sheet."""
REACHED = {0: 0.93, 1: 0.77}
"""Share of peak that float32 products reach while power holds, by rounded issue share. ASSUMED."""
SCALAR_BYTES = 8
SERIES = {
    "cos",
    "elu",
    "erf",
    "exp",
    "gelu",
    "log",
    "mish",
    "pow",
    "sigmoid",
    "silu",
    "sin",
    "tanh",
}


@dataclass(frozen=True)
class OpColumns:
    """Operators of one class and dtype as columns."""

    kind: str
    dtype: str
    ops: tuple[Op, ...]

    def _column(self, read: Callable[[Op], float]) -> Array:
        return np.fromiter((read(op) for op in self.ops), float, len(self.ops))

    @cached_property
    def flops(self) -> Array:
        """Floating-point operations."""
        return self._column(lambda op: op.flops)

    @cached_property
    def param_bytes(self) -> Array:
        """Parameter bytes read."""
        return self._column(lambda op: op.params_read)

    @cached_property
    def num_bytes(self) -> Array:
        """Bytes read and written, parameters included."""
        return self._column(lambda op: op.bytes_moved)

    def size(self, name: str) -> Array:
        """A size of `Op.dims`; NaN where an operator does not carry it."""
        return self._column(lambda op: op.dims.get(name, np.nan))


Feature = Callable[[OpColumns, DeviceProfile], Array]


def compute_seconds(ops: OpColumns, profile: DeviceProfile) -> Array:
    """Seconds at the device's peak."""
    return ops.flops / profile.flops_per_s(ops.dtype)


def memory_seconds(ops: OpColumns, profile: DeviceProfile) -> Array:
    """Seconds at the device's bandwidth."""
    return ops.num_bytes / profile.memory_bytes_per_s


def _tiles(ops: OpColumns, profile: DeviceProfile) -> Array:
    """Output tiles per compute unit."""
    rows, columns = np.ceil(ops.size("m") / TILE), np.ceil(ops.size("n") / TILE)
    return ops.size("batch") * rows * columns / (profile.num_compute_units or 1)


def _idle_units(ops: OpColumns, profile: DeviceProfile) -> Array:
    """log(whole waves / waves): what the last, partly filled wave of tiles wastes."""
    waves = _tiles(ops, profile)
    return np.asarray(np.log(np.ceil(waves) / waves))


def _batched(ops: OpColumns, profile: DeviceProfile) -> Array:
    """1 where there are several products, 0 where there is one."""
    return np.asarray((ops.size("batch") > 1) * 1.0)


def _compute_share(ops: OpColumns, profile: DeviceProfile) -> Array:
    """Compute time over compute plus memory time: how much a slower clock is felt."""
    compute = compute_seconds(ops, profile)
    return np.asarray(compute / (compute + memory_seconds(ops, profile) + TINY))


def _issue_bound(ops: OpColumns, profile: DeviceProfile) -> Array:
    """1 where float32 arithmetic takes every issue slot, 0 where every second one; of compute."""
    share = 0.5 if profile.issue_share is None else profile.issue_share
    return (2 * share - 1) * _compute_share(ops, profile)


def _power_bound(ops: OpColumns, profile: DeviceProfile) -> Array:
    """Logarithm of the share of its float32 rate that the board's power feeds; 0 where all of it.

    Energy per operation is ENERGY_J at 12 nm and goes with the process node; of compute.
    """
    if not (profile.power_w and profile.process_nm):
        return np.zeros(len(ops.ops))
    fed = profile.power_w / (ENERGY_J * profile.process_nm / 12)
    reached = profile.flops_per_s("float32") * REACHED[round(profile.issue_share or 0.5)]
    return min(0.0, float(np.log(fed / reached))) * _compute_share(ops, profile)


def _balance(ops: OpColumns, profile: DeviceProfile) -> Array:
    """log(1 + the lesser over the larger of compute and memory time): they overlap in part."""
    compute, memory = compute_seconds(ops, profile), memory_seconds(ops, profile)
    return np.log1p(np.minimum(compute, memory) / (np.maximum(compute, memory) + TINY))


def _narrow(ops: OpColumns, profile: DeviceProfile) -> Array:
    """log(1 + half a tile / the shorter side of the output)."""
    side = np.maximum(np.minimum(ops.size("m"), ops.size("n")), TILE / 4)
    return np.log1p(TILE / 2 / side)


def _broadcast(ops: OpColumns, profile: DeviceProfile) -> Array:
    """1 where a pointwise operator reads a tensor that is smaller than its output."""
    full = ops.size("operands") * ops.size("size") * DTYPE_BYTES.get(ops.dtype, 4)
    read = ops.num_bytes - ops.size("size") * DTYPE_BYTES.get(ops.dtype, 4)
    return np.asarray((read - full > SCALAR_BYTES) * 1.0)


def _function(ops: OpColumns, profile: DeviceProfile) -> Array:
    """1 where a pointwise operator evaluates a series rather than plain arithmetic."""
    return np.array([_name(op) in SERIES for op in ops.ops], dtype=float)


def _name(op: Op) -> str:
    """The operator's name without namespace and overload, e.g. 'cat' of 'aten.cat.default'."""
    return op.target.split(".")[1] if "." in op.target else op.target


FEATURES: dict[str, Feature] = {
    "function": _function,
    "batched": _batched,
    "issue_bound": _issue_bound,
    "power_bound": _power_bound,
    "balance": _balance,
    "narrow": _narrow,
    "short_depth": lambda ops, p: np.log1p(TILE / 2 / ops.size("k")),
    "broadcast": _broadcast,
    "long_rows": lambda ops, p: np.maximum(0.0, np.log2(ops.size("columns") / 1024)),
    "ramp": lambda ops, p: (
        p.launch_overhead_s / (p.launch_overhead_s + memory_seconds(ops, p) + TINY)
    ),
    "log_compute_s": lambda ops, p: np.log(compute_seconds(ops, p) + TINY),
    "log_memory_s": lambda ops, p: np.log(memory_seconds(ops, p) + TINY),
    "log_intensity": lambda ops, p: np.log(
        (compute_seconds(ops, p) + TINY) / (memory_seconds(ops, p) + TINY)
    ),
    "log_flops_per_byte": lambda ops, p: np.log((ops.flops + 1) / (ops.num_bytes + 1)),
    "log_over_overhead": lambda ops, p: np.log(
        (memory_seconds(ops, p) + TINY) / (p.launch_overhead_s + TINY)
    ),
    "log_over_cache": lambda ops, p: np.log((ops.num_bytes + 1) / (p.cache_bytes or 1)),
    "param_share": lambda ops, p: ops.param_bytes / (ops.num_bytes + 1),
    "log_waves": lambda ops, p: np.log(_tiles(ops, p)),
    "idle_units": _idle_units,
    "log_item_bytes": lambda ops, p: np.full(len(ops.ops), np.log(DTYPE_BYTES.get(ops.dtype, 4))),
}


def feature_matrix(names: Sequence[str], ops: OpColumns, profile: DeviceProfile) -> Array:
    """Features (num_ops, num_features); NaN where an operator lacks a size that one needs.

    Raises:
        ValueError: there is no feature of this name.
    """
    return np.column_stack([_feature(name)(ops, profile) for name in names])


def _feature(name: str) -> Feature:
    if name in FEATURES:
        return FEATURES[name]
    if name.startswith("is_"):
        return lambda ops, profile: ops.size(name.removeprefix("is_"))
    if name.startswith("on_"):
        wanted = name.removeprefix("on_")
        return lambda ops, profile: np.array([_name(op) == wanted for op in ops.ops], dtype=float)
    size = name.removeprefix("log_")
    if size == name:
        raise ValueError(f"unknown feature '{name}'{nearest(name, list(FEATURES))}")
    return lambda ops, profile: np.log(ops.size(size))


def by_class(ops: Sequence[Op]) -> dict[tuple[str, str], list[int]]:
    """Positions of operators by (class, dtype)."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, op in enumerate(ops):
        found.setdefault((op.kind, op.dtype), []).append(i)
    return found
