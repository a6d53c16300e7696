"""The backward operators of a traced forward pass, from the derivative of each.

The published traces hold forward nodes; what autograd runs behind them follows from its formulas
(PyTorch 2.1, `derivatives.yaml`). Gradients of a value that is used k times are added k - 1 times;
those of parameters are added to the ones of the step before.
"""

import re
from collections import Counter
from collections.abc import Mapping
from math import prod

from benchmarks.neusight_trace import (
    BYTES,
    MASK_BYTES,
    Node,
    Step,
    Timed,
    elementwise_op,
    forward_op,
    matmul_op,
    matmul_sizes,
    memory_op,
)
from scheduler.ir.graph import Op

TENSORS_MOVED: Mapping[str, tuple[float, ...]] = {
    # Per kernel: full-size tensors read and written.
    "truediv": (2,),
    "tanh": (3,),
    "gelu": (3,),
    "activation": (3,),
    "where": (2,),
    "masked_fill": (2,),
    "max": (3, 3),
    "pow": (2, 2, 3),
    "dropout": (2 + MASK_BYTES / BYTES,),
}
NO_GRADIENT = frozenset({"size", "getattr", "dim", "placeholder", "get_attr", "output"})


def backward_ops(step: Step) -> list[Timed]:
    """The operators behind a forward pass, last node first, and the sums of gradients."""
    nodes = [node for node in step.nodes if node.function not in NO_GRADIENT]
    uses = Counter(name for node in nodes if prod(node.shape) > 1 for name in node.inputs)
    vocabulary = logits(step).shape[-1]
    timed = []
    for node in reversed(nodes):
        size = prod(node.shape)
        if size > 1 and uses[node.name] > 1 and node.function != "arange":
            add = elementwise_op(f"{node.name}.sum", size, [size, size, size])
            timed.append(Timed(add, node.count * (uses[node.name] - 1)))
        timed += [Timed(op, node.count) for op in _behind(node, vocabulary)]
    return timed


def logits(step: Step) -> Node:
    """The layer that makes a score for each word of the vocabulary."""
    return max(step.nodes, key=lambda node: (node.function == "linear") * node.shape[-1])


def loss_ops(step: Step, with_forward: bool) -> list[Timed]:
    """Cross entropy over (tokens, vocabulary): log-softmax and its gradient."""
    shape = logits(step).shape
    vocabulary, size = shape[-1], prod(shape)
    sizes = {"rows": size // vocabulary, "columns": vocabulary}
    ops = [
        elementwise_op("loss.fill", size, [size]),
        memory_op("loss.backward", "softmax", sizes, 3 * size, [size, size, size]),
    ]
    if with_forward:
        ops.append(memory_op("loss.forward", "softmax", sizes, 5 * size, [size, size]))
    return [Timed(op, 1) for op in ops]


def _behind(node: Node, vocabulary: int) -> list[Op]:
    size, name = prod(node.shape), f"{node.name}.backward"
    if node.function in ("linear", "addmm", "matmul", "bmm"):
        return _matmul(node, name)
    if forward_op(node, training=True) is None and node.function != "split":
        return []
    rows = {"rows": size // node.shape[-1], "columns": node.shape[-1]}
    match node.function:
        case "softmax":
            return [memory_op(name, "softmax", rows, 4 * size, [size, size, size])]
        case "layer_norm":
            scales = elementwise_op(f"{name}.scales", size, [size, size, 2 * node.shape[-1]])
            return [memory_op(name, "norm", rows, 12 * size, [size, size, size]), scales]
        case "embedding":
            return _embedding(node, name, vocabulary)
        case "split":
            size = prod(node.input_shapes[0])
            return [memory_op(name, "copy", {"size": size}, 0, [size, size])]
        case "mul":
            full = sum(prod(shape) == size for shape in node.input_shapes)
            return [elementwise_op(name, size, [size] * (1 + full)) for _ in range(full)]
        case _:
            return [
                elementwise_op(name, size, [size * (moved - 1), size])
                for moved in TENSORS_MOVED.get(node.function, ())
            ]


def _matmul(node: Node, name: str) -> list[Op]:
    """Gradients dC B^T and A^T dC; of a layer also the sums of those of weight and bias."""
    dims = matmul_sizes(node)
    batch, m, n, k = (dims[key] for key in ("batch", "m", "n", "k"))
    ops = [
        matmul_op(f"{name}.left", {"batch": batch, "m": m, "n": k, "k": n}),
        matmul_op(f"{name}.right", {"batch": batch, "m": k, "n": n, "k": m}),
    ]
    if node.function in ("linear", "addmm"):
        ops.append(elementwise_op(f"{name}.sum", k * n, [k * n, k * n, k * n]))
        ops.append(
            memory_op(f"{name}.bias", "reduce", {"rows": n, "columns": m}, m * n, [m * n, n])
        )
    return ops


def _embedding(node: Node, name: str, vocabulary: int) -> list[Op]:
    """A dense gradient as large as the table: filled with zeros, scattered into, added."""
    rows = vocabulary if re.search(r"wte|word_emb|embed_tokens", node.name) else node.shape[-2]
    size = rows * node.shape[-1]
    return [
        elementwise_op(f"{name}.fill", size, [size]),
        elementwise_op(f"{name}.sum", size, [size, size, size]),
    ]
