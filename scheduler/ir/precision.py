"""What-ifs on a graph: other number formats for weights and activations, and pruning.

Nothing is run: bytes, FLOPs and the format of the arithmetic change as below, and with them times
and memory. What it does to the model's answers is not said. Apply to a graph as captured, before
operators are fused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from hardware.cluster import Cluster
from hardware.documents import STRICT, nearest
from scheduler.cost_model.features import COMPUTE_KINDS
from scheduler.ir.graph import DTYPE_BYTES, Graph, Op, Tensor

DTYPES = {
    "float32": "float32",
    "tf32": "tfloat32",
    "tfloat32": "tfloat32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "int8": "int8",
    "fp8": "float8",
    "float8": "float8",
}
"""Number formats by the names that a person may write, to the names of device profiles."""

NARROW = frozenset({"int8", "float8"})
FLOATS = frozenset({"float64", "float32", "tfloat32", "bfloat16", "float16", "float8"})
INNER_DIMS = frozenset({"n", "out_channels"})
"""The sizes of a matmul and of a convolution that count its output channels."""

QUANTISED_KINDS = COMPUTE_KINDS | {"embedding"}
BITMASK_BYTES = 1 / 8
"""Bytes per weight that say where the weights left over stand."""


@dataclass(frozen=True)
class Precision:
    """Number formats of a what-if; None leaves that of the graph.

    Attributes:
        weights: of the parameters of matmuls, convolutions, attentions and embeddings. Other
            parameters (norms) take it only if it has more than 8 bits. Scales of quantised weights
            are not counted: below 1 % for one a channel.
        activations: of every tensor of real numbers; tensors of integers and booleans stay.
    """

    __pydantic_config__ = STRICT

    weights: str | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown formats and pairs without common arithmetic."""
        for key in ("weights", "activations"):
            name = getattr(self, key)
            if name is not None and name not in DTYPES:
                raise ValueError(f"{key}: unknown dtype '{name}'{nearest(name, list(DTYPES))}")
        chosen = {DTYPES[name] for name in (self.weights, self.activations) if name}
        if chosen == NARROW:
            raise ValueError(
                f"weights in {self.weights} and activations in {self.activations} have no common "
                "arithmetic; use one of them for both, or 16 bits for one"
            )

    @property
    def is_what_if(self) -> bool:
        """Whether it changes anything."""
        return bool(self.weights or self.activations)

    def __str__(self) -> str:
        """Word it for a person: 'weights int8, activations bfloat16'."""
        parts = {"weights": self.weights, "activations": self.activations}
        return ", ".join(f"{key} {name}" for key, name in parts.items() if name)


@dataclass(frozen=True)
class Pruning:
    """A share of the weights of matmuls and convolutions that is removed.

    Attributes:
        ratio: the share, from 0 to below 1.
        kind: `structured`: whole hidden channels or heads, while the width between blocks stays:
            each operator does and holds (1 - ratio) of its FLOPs and parameters; activations
            are counted as before, which is the upper end. `unstructured`: single weights, anywhere.
            A dense device computes with the zeros too, so that FLOPs stay; the weights are held
            and read as those left over and one bit each for where they stand, or dense where that
            is smaller. The device needs kernels that expand them.

    Source for the latter: Xia et al., "Flash-LLM", VLDB 17(2), 2023, arXiv:2309.10285.
    """

    __pydantic_config__ = STRICT

    ratio: float = 0.0
    kind: Literal["structured", "unstructured"] = "structured"

    def __post_init__(self) -> None:
        """Refuse ratios that leave nothing."""
        if not (isfinite(self.ratio) and 0 <= self.ratio < 1):
            raise ValueError(f"ratio must be at least 0 and below 1, got {self.ratio}")

    def __str__(self) -> str:
        """Word it for a person: 'structured pruning of 50 %'; empty where nothing is removed."""
        return f"{self.kind} pruning of {self.ratio:.0%}" if self.ratio else ""


def with_precision(graph: Graph, precision: Precision) -> Graph:
    """The graph with other number formats.

    Arithmetic is in the activations' format, weights being converted as they are read; where only
    the activations have 8 bits, it is in the weights'. tf32 is stored as float32.
    """
    weights, activations = (
        DTYPES[name] if name else None for name in (precision.weights, precision.activations)
    )
    old = graph.tensors
    new = {name: _stored(tensor, activations) for name, tensor in old.items()}
    ops = tuple(_converted(op, weights, activations, old, new) for op in graph.ops)
    return replace(graph, ops=ops, inputs=tuple(new[tensor.name] for tensor in graph.inputs))


def pruned(graph: Graph, pruning: Pruning, weights: str | None = None) -> Graph:
    """The graph with weights removed; `weights` is their number format, if not the arithmetic's."""
    if pruning.ratio == 0:
        return graph
    ops = tuple(_pruned(op, pruning, weights) for op in graph.ops)
    counts = {
        name: num_bytes / DTYPE_BYTES[_weight_format(op, weights)]
        for op in graph.ops
        if _prunable(op)
        for name, num_bytes in op.weights.items()
    }
    removed = round(pruning.ratio * sum(counts.values()))
    return replace(graph, ops=ops, num_params=max(0, graph.num_params - removed))


def unsupported(graph: Graph, cluster: Cluster) -> list[str]:
    """One sentence for each device and format that operators need and the device has not."""
    users: dict[str, list[str]] = {}
    for op in graph.ops:
        if op.kind in COMPUTE_KINDS:
            users.setdefault(op.dtype, []).append(op.name)
    return [
        f"device '{device}' ({profile.name}) has no figure for {dtype}, it has "
        f"{', '.join(profile.peak_flops_per_s)}: {len(names)} operators cannot run there, "
        f"'{names[0]}' is the first"
        for device, profile in cluster.devices.items()
        for dtype, names in users.items()
        if profile.peak_flops_per_s and dtype not in profile.peak_flops_per_s
    ]


def _stored(tensor: Tensor, activations: str | None) -> Tensor:
    if activations is None or tensor.dtype not in FLOATS:
        return tensor
    return replace(tensor, dtype=_storage(activations))


def _storage(dtype: str) -> str:
    return "float32" if dtype == "tfloat32" else dtype


def _arithmetic(op: Op, weights: str | None, activations: str | None) -> str:
    """The format that an operator computes in."""
    wanted = activations or op.dtype
    if op.kind not in COMPUTE_KINDS:
        return _storage(wanted)
    held = (weights or op.dtype) if op.weights else wanted
    if wanted in NARROW and held != wanted:
        return held
    return "tfloat32" if held == "tfloat32" and wanted == "float32" else wanted


def _converted(
    op: Op,
    weights: str | None,
    activations: str | None,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
) -> Op:
    """An operator whose weights and tensors are in other formats."""
    if op.dtype not in FLOATS:
        real = [tensor.name for tensor in op.outputs if tensor.dtype in FLOATS]
        weight_ratio, dtype = 1.0, activations or op.dtype if real else op.dtype
    else:
        held = weights if op.kind in QUANTISED_KINDS or weights not in NARROW else None
        weight_ratio = DTYPE_BYTES[held or op.dtype] / DTYPE_BYTES[op.dtype]
        dtype = _arithmetic(op, weights, activations)
    ins, outs = list(op.inputs), [tensor.name for tensor in op.outputs]
    return replace(
        op,
        bytes_read=op.bytes_read * _ratio(ins, old, new),
        bytes_written=op.bytes_written * _ratio(outs, old, new),
        dtype=dtype,
        outputs=tuple(new[name] for name in outs),
        weights={name: round(size * weight_ratio) for name, size in op.weights.items()},
    )


def _ratio(names: list[str], old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """New over old bytes of some tensors; 1 where they have none."""
    before = sum(old[name].num_bytes for name in names)
    return sum(new[name].num_bytes for name in names) / before if before else 1.0


def _prunable(op: Op) -> bool:
    return op.kind in ("matmul", "conv") and bool(op.weights)


def _weight_format(op: Op, weights: str | None) -> str:
    return DTYPES[weights] if weights else op.dtype


def _pruned(op: Op, pruning: Pruning, weights: str | None) -> Op:
    if not _prunable(op):
        return op
    left = 1 - pruning.ratio
    if pruning.kind == "structured":
        inner = {key: max(1, round(op.dims[key] * left)) for key in op.dims if key in INNER_DIMS}
        return replace(
            op,
            flops=op.flops * left,
            weights={name: round(size * left) for name, size in op.weights.items()},
            dims={**op.dims, **inner},
        )
    item = DTYPE_BYTES[_weight_format(op, weights)]
    held = min(1.0, left + BITMASK_BYTES / item)
    return replace(op, weights={name: round(size * held) for name, size in op.weights.items()})
