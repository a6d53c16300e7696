"""From the nodes of an ONNX file to steps of torch functions, for fixed sizes of the inputs.

Everything that is known without data (shapes, index arithmetic, constants) is computed here by
the reference implementation of the package onnx; what remains runs on the model's inputs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from executor.onnx.file import OnnxFile, array_of, as_tensor, attributes, dtype_of, onnx_package
from executor.onnx.fusion import with_linear_layers
from executor.onnx.inputs import Shape
from executor.onnx.ops import RULES
from executor.onnx.rule import Call, Rule
from executor.onnx.steps import Ref, Step, run_step

Array = np.ndarray[Any, Any]
CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
RANDOM = {"RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}


@dataclass
class Trace:
    """What is known of each name while the nodes are walked.

    Attributes:
        known: values that need no data.
        tensors: shapes and types of what is computed, on meta.
        weights: stored tensors that a step reads.
        buffers: known values that a step reads as a tensor.
        constants: nodes that could be computed without data, by their outputs.
    """

    file: OnnxFile
    known: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


def trace(file: OnnxFile, shapes: Mapping[str, Shape]) -> Trace:
    """Walk the nodes with inputs of given shapes.

    Raises:
        ValueError: operators without a rule, a size that depends on data, or sizes that clash.
    """
    check_operators(file)
    walk = Trace(file)
    for given in file.inputs:
        dtype = dtype_of(given.type.tensor_type.elem_type)
        dtype = torch.float32 if dtype.is_floating_point else dtype
        walk.tensors[given.name] = torch.empty(shapes[given.name], dtype=dtype, device="meta")
    for name, tensor in file.initializers.items():
        _hold(walk, name, tensor)
    with torch.no_grad():
        _walk(walk, file.nodes)
    outputs = [output.name for output in file.proto.graph.output]
    for name in outputs:
        _tensor(walk, name)
    walk.steps = with_linear_layers(walk.steps, walk.tensors, walk.weights, outputs)
    return walk


def _hold(walk: Trace, name: str, tensor: Any) -> None:
    """Keep a stored tensor: as a weight where it has axes and is floating or large, else known."""
    dtype = dtype_of(tensor.data_type)
    is_small = len(tensor.dims) < 2 and not dtype.is_floating_point
    if (len(tensor.dims) == 0 or is_small) and name not in walk.file.missing:
        walk.known[name] = array_of(walk.file, tensor)
        return
    walk.weights[name] = tensor
    dtype = torch.float32 if dtype.is_floating_point else dtype
    held = torch.empty(tuple(tensor.dims), dtype=dtype, device="meta")
    walk.tensors[name] = torch.nn.Parameter(held) if dtype.is_floating_point else held


def _walk(walk: Trace, nodes: Sequence[Any]) -> None:
    for node in nodes:
        attrs = attributes(node)
        if node.op_type == "Constant":
            _constant(walk, node, attrs)
        elif node.op_type in ("Shape", "Size") and node.input[0] in walk.tensors:
            shape = np.array(walk.tensors[node.input[0]].shape, np.int64)
            sliced = shape[slice(attrs.get("start", 0), attrs.get("end"))]
            size = np.array(int(shape.prod()), np.int64)
            walk.known[node.output[0]] = sliced if node.op_type == "Shape" else size
        elif all(name in walk.known for name in node.input if name) and _folds(node):
            walk.known |= _folded(walk, node)
        elif node.op_type == "If":
            _inline(walk, node, attrs)
        else:
            _step(walk, node, attrs)


def _folds(node: Any) -> bool:
    return node.op_type not in CONTROL | RANDOM


def _constant(walk: Trace, node: Any, attrs: Mapping[str, Any]) -> None:
    (kind, value), name = next(iter(attrs.items())), node.output[0]
    if kind == "value":
        tensor = next(a.t for a in node.attribute)
        _hold(walk, name, tensor)
        return
    dtype = {"i": np.int64, "f": np.float32}.get(kind.removeprefix("value_")[0])
    walk.known[name] = np.array(value, dtype)


def _folded(walk: Trace, node: Any) -> dict[str, Array]:
    """The outputs of a node whose inputs need no data."""
    feeds = {name: _static(walk, name) for name in node.input if name}
    run = onnx_package().reference.ReferenceEvaluator(node, opsets={"": walk.file.opset})
    outputs = [name for name in node.output if name]
    return dict(zip(outputs, (np.asarray(v) for v in run.run(outputs, feeds)), strict=True))


def _static(walk: Trace, name: str) -> Array:
    """A value that needs no data: known, stored, or computed from such."""
    if name in walk.known:
        return walk.known[name]
    if name in walk.weights and name not in walk.file.missing:
        return array_of(walk.file, walk.weights[name])
    if name in walk.constants:
        return _folded(walk, walk.constants[name])[name]
    raise ValueError(f"'{name}' depends on data, but a size or an axis is made of it")


def _inline(walk: Trace, node: Any, attrs: Mapping[str, Any]) -> None:
    """Take the branch of an If whose condition is known."""
    if node.input[0] not in walk.known:
        raise ValueError(f"node '{node.name}' (If) chooses by data: {_CONTROL_ADVICE}")
    branch = attrs["then_branch" if walk.known[node.input[0]].all() else "else_branch"]
    for tensor in branch.initializer:
        _hold(walk, tensor.name, tensor)
    _walk(walk, branch.node)
    for inner, outer in zip(branch.output, node.output, strict=True):
        if inner.name in walk.known:
            walk.known[outer] = walk.known[inner.name]
        else:
            call = Call("Identity", {}, walk.file.opset, 1, torch.float32)
            _run(walk, Step(node.name, call, (Ref(inner.name),), (outer,)))


def _step(walk: Trace, node: Any, attrs: dict[str, Any]) -> None:
    rule = _rule(node)
    call = Call(node.op_type, attrs, walk.file.opset, len(node.output), torch.float32)
    title = f"node '{node.name or node.output[0]}' ({node.op_type})"
    try:
        inputs = tuple(_input(walk, rule, i, name) for i, name in enumerate(node.input))
        _run(walk, Step(title, call, inputs, tuple(node.output)))
    except (
        ValueError,
        RuntimeError,
        IndexError,
        TypeError,
        KeyError,
        NotImplementedError,
    ) as error:
        raise ValueError(f"{title}: {str(error).strip().splitlines()[0]}") from error
    names = [name for name in node.input if name]
    sources = (walk.known, walk.weights, walk.constants)
    if all(any(name in source for source in sources) for name in names):
        walk.constants |= {name: node for name in node.output if name}


def _rule(node: Any) -> Rule:
    if node.op_type not in RULES or node.domain not in ("", "ai.onnx"):
        raise ValueError(f"node '{node.name}': operator '{_title(node)}' has no rule")
    return RULES[node.op_type]


def _input(walk: Trace, rule: Rule, position: int, name: str) -> Any:
    if not name:
        return None
    if position in rule.static:
        return _static(walk, name)
    if rule.scalars and name in walk.known and walk.known[name].ndim == 0:
        return walk.known[name].item()
    _tensor(walk, name)
    return Ref(name)


def _tensor(walk: Trace, name: str) -> None:
    """See that a name is a tensor: one that is known becomes a buffer."""
    if name in walk.tensors:
        return
    if name not in walk.known:
        raise ValueError(f"'{name}' is read before it is computed; the file is broken")
    walk.buffers[name] = walk.known[name]
    value = as_tensor(walk.known[name]).to("meta")
    walk.tensors[name] = value.float() if value.is_floating_point() else value


def _run(walk: Trace, step: Step) -> None:
    results = run_step(step, walk.tensors, torch.float32)
    walk.tensors |= results
    walk.steps.append(step)


_CONTROL_ADVICE = (
    "control flow that depends on data has no fixed graph; compute both sides and choose with "
    "Where, or export the model for fixed sizes"
)


def _title(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def check_operators(file: OnnxFile) -> None:
    """Refuse a file with operators that we cannot run, all of them named with their counts.

    Raises:
        ValueError: there are such; those whose inputs need no data are computed and pass.
    """
    constant = {*file.initializers, ""}
    unknown: Counter[str] = Counter()
    for node in file.nodes:
        is_folded = all(name in constant for name in node.input) and _folds(node)
        if is_folded or node.op_type in ("Shape", "Size", "Constant"):
            constant |= set(node.output)
        elif node.op_type not in {*RULES, "If"} or node.domain not in ("", "ai.onnx"):
            unknown[_title(node)] += 1
    if not unknown:
        return
    counts = ", ".join(f"{name} ({n})" for name, n in sorted(unknown.items()))
    loops = f" (Loop, Scan: {_CONTROL_ADVICE})" if unknown.keys() & CONTROL else ""
    raise ValueError(
        f"operators without a rule: {counts}{loops}; export the model without them (fixed sizes, "
        "plain ai.onnx operators, before any optimisation by a runtime), or write it as a torch "
        "module: python:FILE.py:FACTORY"
    )
