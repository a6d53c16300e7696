"""The model source onnx:FILE against the reference evaluator of the package onnx."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from executor.capture import capture
from executor.sources import build_model

SEED = 3


def saved(
    tmp_path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, tuple[Any, ...]],
    weights: dict[str, Any] | None = None,
    opset: int = 18,
) -> Path:
    """A model file with float inputs of given shapes; its outputs are those of the last node."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_value_info(n, onnx.TypeProto()) for n in nodes[-1].output if n],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, path := tmp_path / "m.onnx")
    return path


def agrees(path: Path, batch: int = 1, tolerance: float = 1e-4) -> None:
    """The torch module gives what the reference evaluator gives."""
    model = build_model(f"onnx:{path}", batch, "float32", "cpu")
    reference = ReferenceEvaluator(str(path))
    feeds = dict(zip(reference.input_names, (x.numpy() for x in model.inputs), strict=True))
    with torch.no_grad():
        ours = model.module(*model.inputs)
    for mine, theirs in zip(ours, reference.run(None, feeds), strict=True):
        assert tuple(mine.shape) == np.shape(theirs)
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=tolerance, atol=tolerance)


def floats(*shape: int) -> Any:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def test_a_network_of_convolutions_costs_what_it_costs_in_torch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"], transB=1),
    ]
    weights = {"w": floats(8, 3, 3, 3), "b": floats(8), "v": floats(10, 8), "d": floats(10)}
    path = saved(tmp_path, nodes, {"x": ("N", 3, 16, 16)}, weights)
    agrees(path, 2)
    graph = capture(f"onnx:{path}", 2)
    assert graph.num_params == 8 * 27 + 8 + 80 + 10
    assert [op.kind for op in graph.ops] == ["conv", "elementwise", "pool", "view", "matmul"]
    conv, relu, linear = graph.ops[0], graph.ops[1], graph.ops[4]
    assert conv.flops == 2 * 2 * 8 * 27 * 16 * 16
    assert relu.flops == 2 * 8 * 16 * 16
    assert linear.flops == 2 * 2 * 8 * 10


def test_sizes_made_of_shapes_are_known_before_capture(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": np.array(0, np.int64), "axes": ints(0), "rest": ints(2, -1)}
    path = saved(tmp_path, nodes, {"x": ("batch", 6, 4)}, weights)
    agrees(path, 3)
    assert [op.outputs[0].shape for op in capture(f"onnx:{path}", 3).ops] == [(3, 2, 12)]


def test_errors_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        capture(f"onnx:{tmp_path / 'none.onnx'}", 1)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="not an ONNX model"):
        capture(f"onnx:{tmp_path / 'text.onnx'}", 1)
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"]),
        helper.make_node("NonZero", ["x"], ["b"]),
        helper.make_node("Unique", ["x"], ["y"]),
    ]
    path = saved(tmp_path, nodes, {"x": (2, 3)})
    with pytest.raises(ValueError, match=r"NonZero \(2\), Unique \(1\); export"):
        capture(f"onnx:{path}", 2)


def test_a_batch_that_is_fixed_and_an_open_axis_are_told(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(ValueError, match=r"batch is fixed at 2.*set model.batch to 2"):
        capture(f"onnx:{saved(tmp_path, relu, {'x': (2, 3)})}", 1)
    with pytest.raises(ValueError, match=r"'x' leaves dimension 'height' \(axis 2\) open"):
        capture(f"onnx:{saved(tmp_path, relu, {'x': ('n', 3, 'height', 8)})}", 1)
