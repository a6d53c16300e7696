"""The compute-graph intermediate representation."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal, get_args

import networkx as nx

from hardware.documents import STRICT, nearest

DTYPE_BYTES = {
    "float64": 8,
    "int64": 8,
    "complex64": 8,
    "float32": 4,
    "int32": 4,
    "tfloat32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "float8": 1,
}
MOST_BYTES = 2**63 - 1
"""Of one tensor or parameter: what counters of bytes hold."""
MOST_FIGURE = 1e30
"""Below which counts and times are, so that their sums and products are finite."""

Phase = Literal["forward", "backward", "optimizer"]
Mode = Literal["inference", "training", "prefill", "decode"]


@dataclass(frozen=True)
class Tensor:
    """A value that an operator produces: its name, shape and dtype."""

    __pydantic_config__ = STRICT

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        """Refuse a dtype without a size, and a shape that no memory has."""
        if self.dtype not in DTYPE_BYTES:
            close = nearest(self.dtype, list(DTYPE_BYTES))
            raise ValueError(f"tensor '{self.name}': unknown dtype '{self.dtype}'{close}")
        if min(self.shape, default=0) < 0 or self.num_bytes > MOST_BYTES:
            raise ValueError(
                f"tensor '{self.name}': shape must be sizes from 0, of less than 8 EiB together, "
                f"got {list(self.shape)}"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor holds."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        kind: operator class (matmul, conv, attention, elementwise, norm, softmax, pool,
            embedding, reduce, copy, view, other). A view moves and computes nothing.
        flops: floating-point operations (a multiply-add counts 2).
        bytes_read: activation bytes read from main memory, without parameters.
        bytes_written: bytes written.
        weights: parameter bytes by parameter name; two operators may share one.
        weight_share: share of its parameter bytes that one run reads, where it chooses among them:
            the rows that an embedding looks up, the experts that tokens are sent to.
        inputs: names of the tensors consumed, produced by other operators or graph inputs.
        outputs: the tensors produced.
        module: path of the module that the operator belongs to.
        dims: sizes that its time depends on, by kind; see `executor/op_rules.py`.
        members: of an operator made of several, their names.
        phase: of a training step: forward, backward (computes gradients), optimizer.
        state_bytes: memory that stays with it between runs: optimizer states, a cache of keys and
            values.
        costed: False where no rule gave its FLOPs, so that only its bytes count.
    """

    __pydantic_config__ = STRICT

    name: str
    kind: str
    flops: float
    bytes_read: float
    bytes_written: float
    dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    target: str = ""
    module: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    phase: Phase = "forward"
    costed: bool = True
    state_bytes: float = 0.0
    weight_share: float = 1.0

    @property
    def param_bytes(self) -> int:
        """Bytes of the parameters that the operator holds."""
        return sum(self.weights.values())

    @property
    def params_read(self) -> float:
        """Bytes of parameters that one run reads."""
        return self.param_bytes * self.weight_share

    @property
    def bytes_moved(self) -> float:
        """Bytes read and written in one run, parameters included."""
        return self.bytes_read + self.bytes_written + self.params_read


@dataclass(frozen=True)
class Graph:
    """Operators in topological order, the graph's inputs and the names of its outputs.

    Attributes:
        samples: inferences that one run of the graph makes (the batch size).
        mode: what one run is: an inference, a training step, or a step of generation.
        captured_by: the way by which a module was captured.
        notes: what a reader should know of the capture, e.g. ways that failed before that one.
    """

    __pydantic_config__ = STRICT

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    samples: int = 1
    num_params: int = 0
    captured_by: str = ""
    notes: tuple[str, ...] = ()
    mode: Mode = "inference"

    def __post_init__(self) -> None:
        """Refuse duplicate names, unknown tensors, and an order that is not topological."""
        if not self.ops:
            raise ValueError(f"graph '{self.name}' has no operators")
        if self.samples < 1:
            raise ValueError(f"graph '{self.name}': samples must be at least 1, got {self.samples}")
        produced = {tensor.name for op in self.ops for tensor in op.outputs}
        known = {tensor.name for tensor in self.inputs}
        seen: set[str] = set()
        for op in self.ops:
            if op.name in seen:
                raise ValueError(f"graph '{self.name}': two operators are named '{op.name}'")
            seen.add(op.name)
            for name in op.inputs:
                if name not in known:
                    raise ValueError(self._order_error(op, name, name in produced))
            for tensor in op.outputs:
                if tensor.name in known:
                    raise ValueError(
                        f"operator '{op.name}': its output '{tensor.name}' is produced before; "
                        "give every tensor a name of its own"
                    )
                known.add(tensor.name)
            _check_figures(op)
        for name in self.outputs:
            if name not in known:
                raise ValueError(f"graph '{self.name}': no operator produces output '{name}'")

    def _order_error(self, op: Op, tensor: str, produced: bool) -> str:
        if not produced:
            return f"operator '{op.name}': nothing produces its input '{tensor}'"
        owner = {out.name: o.name for o in self.ops for out in o.outputs}
        edges = [(owner[i], o.name) for o in self.ops for i in o.inputs if i in owner]
        try:
            cycle = nx.find_cycle(nx.DiGraph(edges))
        except nx.NetworkXNoCycle:
            return f"operator '{op.name}' stands before '{owner[tensor]}', whose output it reads"
        path = " -> ".join([cycle[0][0], *(dst for _, dst in cycle)])
        return f"graph '{self.name}' has a cycle: {path}"

    @cached_property
    def by_name(self) -> dict[str, Op]:
        """Operators by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, graph inputs included."""
        made = (tensor for op in self.ops for tensor in op.outputs)
        return {tensor.name: tensor for tensor in (*self.inputs, *made)}

    @cached_property
    def producer(self) -> dict[str, str]:
        """The operator that produces each tensor; graph inputs have none."""
        return {tensor.name: op.name for op in self.ops for tensor in op.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[str]]:
        """The operators that read each tensor, in order."""
        readers: dict[str, list[str]] = defaultdict(list)
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                readers[name].append(op.name)
        return readers

    @cached_property
    def views(self) -> dict[str, str]:
        """By tensor that is a view, what it is a view of."""
        ops = (op for op in self.ops if op.kind == "view" and op.inputs)
        return {tensor.name: op.inputs[0] for op in ops for tensor in op.outputs}

    @cached_property
    def storage(self) -> dict[str, str]:
        """The tensor whose memory each tensor lives in: a view lives in that of its first input."""
        root = {tensor.name: tensor.name for tensor in self.inputs}
        for op in self.ops:
            for tensor in op.outputs:
                root[tensor.name] = root.get(self.views.get(tensor.name, ""), tensor.name)
        return root

    def weights(self, ops: Iterable[str] | None = None) -> dict[str, int]:
        """Parameter bytes by name over the given operators (all by default), each counted once."""
        names = self.by_name if ops is None else ops
        return {k: v for name in names for k, v in self.by_name[name].weights.items()}

    @property
    def is_sequential(self) -> bool:
        """Whether each run needs the one before: a step needs the last one's weights or token."""
        return self.mode in ("training", "decode")

    @property
    def uncosted_ops(self) -> list[str]:
        """Operators without a FLOP rule; they are costed by the bytes that they move."""
        return [op.name for op in self.ops if not op.costed]

    def totals(self) -> dict[str, float]:
        """Sums over the graph: ops, flops, params, param_bytes, bytes."""
        return {
            "ops": len(self.ops),
            "flops": sum(op.flops for op in self.ops),
            "params": self.num_params,
            "param_bytes": sum(self.weights().values()),
            "bytes": sum(op.bytes_moved for op in self.ops),
        }

    def flops_by_kind(self) -> dict[str, float]:
        """FLOPs by operator class, the most first."""
        sums: dict[str, float] = defaultdict(float)
        for op in self.ops:
            sums[op.kind] += op.flops
        return dict(sorted(((k, v) for k, v in sums.items() if v), key=lambda item: -item[1]))

    def phase_totals(self) -> dict[str, dict[str, float]]:
        """Sums over forward, backward and optimizer: ops, flops, bytes, state_bytes."""
        return {phase: _phase(self, phase) for phase in get_args(Phase)}


def _check_figures(op: Op) -> None:
    """Refuse counts and sizes that nothing has."""
    for figure in ("flops", "bytes_read", "bytes_written", "state_bytes"):
        if not 0 <= getattr(op, figure) < MOST_FIGURE:
            raise ValueError(
                f"operator '{op.name}': {figure} must be a number from 0 to 1e30, "
                f"got {getattr(op, figure)}"
            )
    if not 0 <= op.weight_share <= 1:
        raise ValueError(
            f"operator '{op.name}': weight_share must be from 0 to 1, got {op.weight_share}"
        )
    for name, num_bytes in op.weights.items():
        if not 0 <= num_bytes <= MOST_BYTES:
            raise ValueError(
                f"operator '{op.name}': weights.{name} must be bytes from 0, of less than 8 EiB, "
                f"got {num_bytes}"
            )


def _phase(graph: Graph, phase: Phase) -> dict[str, float]:
    mine = [op for op in graph.ops if op.phase == phase]
    return {
        "ops": len(mine),
        "flops": sum(op.flops for op in mine),
        "bytes": sum(op.bytes_moved for op in mine),
        "state_bytes": sum(op.state_bytes for op in mine),
    }


def sharing_weights(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Groups of operators that read one weight: in training they and its update share a device."""
    readers: dict[str, list[str]] = defaultdict(list)
    for op in graph.ops:
        for name in op.weights:
            readers[name].append(op.name)
    return tuple(tuple(group) for group in readers.values() if len(group) > 1)
