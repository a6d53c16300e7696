"""Reads the published traces of NeuSight: torch.fx nodes of one layer and whole-step times.

A node becomes an operator (`scheduler.ir.graph.Op`) from its target and its shapes alone; its
measured time stays beside it. Views and arithmetic on sizes cost nothing on the GPU and are left
out.

Source: https://github.com/sitar-lab/NeuSight (MIT), scripts/asplos/data/prediction (labels).
"""

import ast
import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from scheduler.ir.graph import Op

Shape = tuple[int, ...]

LAYER = (
    ("bert_encoder_layer_0_attention_self_query", "bert_encoder_layer_0_output_layer_norm"),
    ("transformer_h_0_ln_1", "add_15"),
    ("model_decoder_layers_0_self_attn_layer_norm", "view_11"),
)
"""First and last node of the layer that is repeated, per model family."""
BYTES = 4
MASK_BYTES = 1
POINTWISE = (
    *(
        "add",
        "sub",
        "mul",
        "truediv",
        "pow",
        "tanh",
        "gelu",
        "where",
        "masked_fill",
        "masked_fill_",
    ),
    *("max", "lt", "cumsum", "ones", "full", "arange"),
)
COPIES = ("contiguous", "reshape", "bool", "long")
MODULES = (
    (r"drop", "dropout"),
    (r"(LayerNorm|layer_norm|ln_\w+)$", "layer_norm"),
    (r"(wte|wpe|embed_tokens|_embeddings)$", "embedding"),
    (r"act", "activation"),
    (r".", "linear"),
)


@dataclass(frozen=True)
class Node:
    """One torch.fx node.

    Attributes:
        function: what is called; of a module, its class.
        count: how often the model runs it.
        forward_s: measured; likewise backward_s.
    """

    name: str
    function: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape
    contiguous: bool
    count: int
    forward_s: float
    backward_s: float


@dataclass(frozen=True)
class Step:
    """A measured run of a model: its name split into parts, and seconds of the whole.

    Attributes:
        option: `fusion` (compiled), `dp4`, `tp4`, `pp4_1` (four GPUs), or nothing.
        nodes: as traced on this device; empty where only the whole was measured, or where the
            trace is of a model whose layer `LAYER` does not name.
    """

    device: str
    model: str
    mode: str
    sequence: int
    batch: int
    option: str
    num_layers: int
    seconds: float
    nodes: tuple[Node, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        parts = (self.model, self.mode, self.sequence, self.batch, self.option)
        return "-".join(str(part) for part in parts if part)

    @property
    def training(self) -> bool:
        """Forward and backward; the optimizer is not in the measured time."""
        return self.mode == "train"


@dataclass(frozen=True)
class Timed:
    """An operator, how often a step runs it, and its measured seconds (0 where there are none)."""

    op: Op
    count: int
    seconds: float = 0.0


def read_steps(folder: Path) -> list[Step]:
    """All steps of a folder of device folders.

    Raises:
        ValueError: nothing there, or a file that is not of this format.
    """
    files = sorted(folder.glob("*/*.json"))
    if not files:
        raise ValueError(f"{folder}: no DEVICE/STEP.json there; --data takes the folder of devices")
    return [_read_step(path) for path in files]


def _read_step(path: Path) -> Step:
    found = re.fullmatch(r"(\w+)-(inf|train)-(\d+)-(\d+)(?:-(\w+))?", path.stem)
    if not found:
        raise ValueError(f"{path}: the name must be MODEL-(inf|train)-SEQUENCE-BATCH[-OPTION]")
    try:
        content = json.loads(path.read_text())
        seconds, layers = float(content["e2e_latency"]) / 1e3, int(content["num_layer"] or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: e2e_latency and num_layer must be numbers: {error}") from None
    model, mode, sequence, batch, option = found.groups()
    step = Step(
        path.parent.name, model, mode, int(sequence), int(batch), option or "", layers, seconds
    )
    trace = path.with_suffix(".csv")
    return replace(step, nodes=_read_nodes(trace, layers)) if trace.exists() else step


def _read_nodes(path: Path, num_layers: int) -> tuple[Node, ...]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["Name"] for row in rows]
    bounds = [(names.index(a), names.index(b)) for a, b in LAYER if {a, b} <= set(names)]
    if len(bounds) != 1:
        return ()
    first, last = bounds[0]
    counts = [num_layers if first <= i <= last else 1 for i in range(len(rows))]
    return tuple(_node(row, count) for row, count in zip(rows, counts, strict=True))


def _node(row: dict[str, str], count: int) -> Node:
    return Node(
        name=row["Name"],
        function=_function(row["op"], row["target"]),
        inputs=tuple(re.findall(r"(\w+): None", row["_input_nodes"])),
        input_shapes=tuple(tuple(s) for s in ast.literal_eval(row["input_shapes"])),
        shape=tuple(ast.literal_eval(row["output_shape"])),
        contiguous=all(ast.literal_eval(row["input_contiguous"])),
        count=count,
        forward_s=float(row["fw_latency"]) / 1e3,
        backward_s=(float(row["bw_latency"]) + float(row["acc_latency"])) / 1e3,
    )


def _function(op: str, target: str) -> str:
    if op == "call_module":
        last = target.rpartition(".")[2]
        return next(name for pattern, name in MODULES if re.search(pattern, last))
    if op in ("placeholder", "get_attr", "output"):
        return op
    found = re.match(r"<(?:built-in (?:function|method)|function) (\w+)", target)
    return found.group(1) if found else target


def forward_ops(step: Step) -> list[Timed]:
    """The operators of the forward pass that take time on a GPU."""
    pairs = ((node, forward_op(node, step.training)) for node in step.nodes)
    return [Timed(op, node.count, node.forward_s) for node, op in pairs if op is not None]


def forward_op(node: Node, training: bool) -> Op | None:
    """The operator of a node; None where it takes no time on the GPU."""
    name, shape = node.function, node.shape
    size = prod(shape)
    if name in ("linear", "addmm", "matmul", "bmm"):
        return matmul_op(node.name, matmul_sizes(node))
    if size <= 1:
        return None
    rows = {"rows": size // shape[-1], "columns": shape[-1]}
    if name == "softmax":
        return memory_op(node.name, "softmax", rows, 5 * size, [size, size])
    if name == "layer_norm":
        return memory_op(node.name, "norm", rows, 8 * size, [size, size])
    if name == "embedding":
        return memory_op(node.name, "embedding", rows, 0, [size, size])
    if name == "dropout" and training:
        mask = size * MASK_BYTES / BYTES
        return elementwise_op(node.name, size, [size, mask, size])
    return _simple_op(node, size)


def _simple_op(node: Node, size: int) -> Op | None:
    if node.function in COPIES:
        moved = node.function in ("bool", "long") or not node.contiguous
        return memory_op(node.name, "copy", {"size": size}, 0, [size, size]) if moved else None
    if node.function not in (*POINTWISE, "activation"):
        return None
    inputs = [prod(s) for s in node.input_shapes if prod(s) > 1]
    return elementwise_op(node.name, size, [*inputs, size])


def matmul_sizes(node: Node) -> dict[str, int]:
    """The batch, m, n and k of a linear layer or a product."""
    shapes = node.input_shapes
    if node.function == "linear":
        k = shapes[0][-1]
        return {"batch": 1, "m": prod(shapes[0]) // k, "n": node.shape[-1], "k": k}
    left, right = shapes[-2:]
    return {"batch": prod(left[:-2]), "m": left[-2], "n": right[-1], "k": left[-1]}


def matmul_op(name: str, dims: dict[str, int]) -> Op:
    """A product (m, k) @ (k, n), `batch` times."""
    batch, m, n, k = (dims[key] for key in ("batch", "m", "n", "k"))
    read, written = batch * (m * k + k * n) * BYTES, batch * m * n * BYTES
    return Op(name, "matmul", 2.0 * batch * m * n * k, read, written, "float32", (), (), dims=dims)


def memory_op(
    name: str, kind: str, dims: dict[str, int], flops: float, elements: Sequence[float]
) -> Op:
    """An operator that moves float32 elements: those of its inputs, and last those it writes."""
    *read, written = elements
    return Op(name, kind, flops, sum(read) * BYTES, written * BYTES, "float32", (), (), dims=dims)


def elementwise_op(name: str, size: int, elements: Sequence[float]) -> Op:
    """A pointwise operator of `size` outputs; `elements` as in `memory_op`."""
    dims = {"size": size, "operands": list(elements[:-1]).count(size)}
    return memory_op(name, "elementwise", dims, size, elements)


def find_graph(steps: Iterable[Step], step: Step, batch: int) -> Step | None:
    """The nodes of another step of the same model and sequence, of the same mode if there is one.

    Shapes do not depend on the device that a trace was taken on; those of another batch are scaled.
    """
    same = [s for s in steps if s.nodes and (s.model, s.sequence) == (step.model, step.sequence)]
    same.sort(key=lambda s: (s.batch != batch, s.mode != step.mode, -s.batch, s.device))
    if not same:
        return None
    nodes = tuple(_rebatch(node, same[0], batch) for node in same[0].nodes)
    return replace(step, batch=batch, nodes=nodes, num_layers=same[0].num_layers)


def _rebatch(node: Node, step: Step, batch: int) -> Node:
    def scaled(shape: Shape) -> Shape:
        """First axis times the ratio of batches, of what has one; weights are matrices."""
        has_batch = len(shape) > 2 or shape[:1] in ((step.batch * step.sequence,), (step.batch,))
        if step.batch == batch or not has_batch or shape[0] * batch % step.batch:
            return shape
        return (shape[0] * batch // step.batch, *shape[1:])

    shapes = tuple(map(scaled, node.input_shapes))
    return replace(node, input_shapes=shapes, shape=scaled(node.shape))
