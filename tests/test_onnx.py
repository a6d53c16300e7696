"""The model source onnx:FILE against the reference evaluator of the package onnx."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from executor.capture import capture, to_graph
from executor.export import export
from executor.sources import Model, build_model

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


X4 = (2, 4, 8, 8)
X3 = (2, 5, 6)
X1 = floats(2, 5, 1)
KV = floats(2, 2, 5, 8)
W_LSTM = {"w": floats(2, 12, 4), "r": floats(2, 12, 3), "b": floats(2, 24)}
W_GRU = {"w": floats(1, 9, 4), "r": floats(1, 9, 3), "b": floats(1, 18)}

# operator, attributes, shape of x, further inputs in order, operator set
CASES: list[tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any], int]] = [
    *((op, {}, X3, {}, 22) for op in ("Abs", "Neg", "Floor", "Ceil", "Round", "Exp", "Erf")),
    *((op, {}, X3, {}, 22) for op in ("Sign", "Sin", "Cos", "Tanh", "Sigmoid", "HardSigmoid")),
    *((op, {}, X3, {}, 22) for op in ("Elu", "Selu", "Gelu", "HardSwish", "Mish", "Softplus")),
    *((op, {}, X3, {}, 22) for op in ("Softsign", "LeakyRelu", "ThresholdedRelu", "Reciprocal")),
    *((op, {}, X3, {"b": floats(6)}, 18) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((op, {}, X3, {"b": np.float32(2)}, 18) for op in ("Add", "Sub", "Div", "Pow", "Max", "Min")),
    ("PRelu", {}, X4, {"s": floats(4, 1, 1)}, 18),
    ("Clip", {}, X3, {"lo": np.float32(-0.5), "hi": np.float32(0.5)}, 13),
    ("Clip", {"min": -0.5, "max": 0.5}, X3, {}, 6),
    ("Mod", {"fmod": 1}, X3, {"b": np.float32(0.3)}, 13),
    ("Softmax", {}, X3, {}, 13),
    ("LogSoftmax", {"axis": 1}, X3, {}, 13),
    ("Conv", {"strides": [2, 2], "pads": [0, 1, 2, 1]}, X4, {"w": floats(6, 4, 3, 3)}, 18),
    ("Conv", {"auto_pad": "SAME_UPPER", "group": 2}, X4, {"w": floats(6, 2, 3, 3)}, 18),
    ("Conv", {"dilations": [2]}, (2, 4, 9), {"w": floats(6, 4, 3), "b": floats(6)}, 18),
    ("ConvTranspose", {"strides": [2, 2]}, X4, {"w": floats(4, 3, 2, 2)}, 18),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, X4, {}, 18),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, X4, {}, 18),
    ("GlobalMaxPool", {}, X4, {}, 18),
    ("InstanceNormalization", {}, X4, {"s": floats(4), "b": floats(4)}, 18),
    ("LayerNormalization", {"axis": -1}, X3, {"s": floats(6), "b": floats(6)}, 18),
    ("GroupNormalization", {"num_groups": 2}, X4, {"s": floats(4), "b": floats(4)}, 21),
    ("RMSNormalization", {}, X3, {"s": floats(6)}, 23),
    ("Gemm", {"alpha": 0.5, "transB": 1}, (2, 5), {"w": floats(3, 5), "c": floats(2, 1)}, 13),
    ("MatMul", {}, X3, {"w": floats(6, 3)}, 13),
    ("Einsum", {"equation": "bij,jk->bik"}, X3, {"w": floats(6, 3)}, 13),
    *((f"Reduce{op}", {}, X3, {"a": ints(1)}, 18) for op in ("Mean", "Max", "Min", "Prod", "L2")),
    ("ReduceMean", {"axes": [1, 2], "keepdims": 0}, X3, {}, 11),
    ("ReduceSum", {"keepdims": 0}, X3, {"a": ints(-1)}, 13),
    ("ArgMax", {"axis": 2, "keepdims": 0}, X3, {}, 13),
    ("ArgMin", {"axis": 1, "select_last_index": 1}, X3, {}, 13),
    ("CumSum", {"exclusive": 1, "reverse": 1}, X3, {"a": np.array(1, np.int64)}, 14),
    ("Transpose", {"perm": [2, 0, 1]}, X3, {}, 13),
    ("Slice", {}, X3, {"s": ints(-1), "e": ints(-9), "a": ints(2), "t": ints(-2)}, 13),
    ("Slice", {"starts": [1], "ends": [4], "axes": [1]}, X3, {}, 9),
    ("Squeeze", {"axes": [1]}, (2, 1, 3), {}, 11),
    ("Unsqueeze", {}, X3, {"a": ints(0, -1)}, 13),
    ("Pad", {}, X3, {"p": ints(0, 1, 2, 0, 0, 3), "v": np.float32(2)}, 18),
    ("Pad", {"mode": "reflect"}, X4, {"p": ints(0, 0, 2, 1, 0, 0, 1, 2)}, 18),
    ("Pad", {"pads": [0, 0, 1, 0, 0, 2], "value": 3.0}, X3, {}, 2),
    ("Expand", {}, (2, 1, 3), {"s": ints(4, 1)}, 13),
    ("Tile", {}, X3, {"r": ints(1, 2, 3)}, 13),
    ("Flatten", {"axis": 2}, X4, {}, 13),
    ("Gather", {"axis": 1}, X3, {"i": np.array([[0, -1], [2, 3]], np.int64)}, 13),
    ("GatherElements", {"axis": 1}, X3, {"i": np.array([[[-1] * 6]] * 2, np.int64)}, 13),
    ("GatherND", {"batch_dims": 1}, X3, {"i": np.array([[[0]], [[4]]], np.int64)}, 13),
    ("ScatterND", {}, X3, {"i": np.array([[1]], np.int64), "u": floats(1, 5, 6)}, 18),
    ("ScatterElements", {"axis": 2}, X3, {"i": np.zeros((2, 5, 1), np.int64), "u": X1}, 18),
    ("Trilu", {"upper": 0}, X3, {"k": np.array(-1, np.int64)}, 14),
    ("DepthToSpace", {"blocksize": 2, "mode": "DCR"}, X4, {}, 13),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, X4, {}, 13),
    ("SpaceToDepth", {"blocksize": 2}, X4, {}, 13),
    ("Resize", {"mode": "linear"}, X4, {"": 0, "s": np.float32([1, 1, 2, 1.5])}, 18),
    ("Resize", {"mode": "cubic"}, X4, {"": 0, "s": np.float32([1, 1, 2, 2])}, 18),
    ("Resize", {"nearest_mode": "floor"}, X4, {"": 0, "s": np.float32([1, 1, 2, 0.6])}, 18),
    ("RNN", {"hidden_size": 3}, (5, 2, 4), {"w": floats(1, 3, 4), "r": floats(1, 3, 3)}, 14),
    ("GRU", {"hidden_size": 3}, (5, 2, 4), W_GRU, 14),
    ("GRU", {"hidden_size": 3, "linear_before_reset": 1}, (5, 2, 4), W_GRU, 14),
    ("LSTM", {"hidden_size": 3, "direction": "bidirectional"}, (5, 2, 4), W_LSTM, 14),
    ("Attention", {}, (2, 3, 7, 8), {"k": floats(2, 3, 5, 8), "v": floats(2, 3, 5, 8)}, 23),
    ("Attention", {"is_causal": 1}, (2, 4, 5, 8), {"k": KV, "v": KV}, 23),
    ("Cast", {"to": TensorProto.INT32}, X3, {}, 13),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "attrs", "shape", "others", "opset"),
    CASES,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)],
)
def test_an_operator_gives_what_the_reference_gives(
    op: str, attrs: dict[str, Any], shape: Any, others: dict[str, Any], opset: int, tmp_path: Path
) -> None:
    node = helper.make_node(op, ["x", *others], ["y"], **attrs)
    agrees(
        saved(tmp_path, [node], {"x": shape}, {n: v for n, v in others.items() if n}, opset),
        shape[0],
    )


class Block(torch.nn.Module):
    """Normalise, attend with one head, add."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, 8) to the same."""
        q, k, v = (layer(self.norm(x)) for layer in self.qkv)
        return x + torch.matmul(torch.softmax(torch.matmul(q, k.transpose(1, 2)), -1), v)


def test_a_transformer_costs_and_gives_what_it_does_in_torch(tmp_path: Path) -> None:
    block = Block().eval()
    nodes, weights = [], {"s": block.norm.weight, "t": block.norm.bias}
    for i, layer in enumerate(block.qkv):
        weights |= {f"w{i}": layer.weight.t(), f"b{i}": layer.bias}
        nodes += [
            helper.make_node("LayerNormalization", ["x", "s", "t"], [f"n{i}"]),
            helper.make_node("MatMul", [f"n{i}", f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"b{i}", f"m{i}"], [f"q{i}"]),
        ]
    nodes += [
        helper.make_node("Transpose", ["q1"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q0", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "q2"], ["o"]),
        helper.make_node("Add", ["x", "o"], ["y"]),
    ]
    arrays = {name: value.detach().numpy() for name, value in weights.items()}
    path = saved(tmp_path, nodes, {"x": ("batch", "sequence", 8)}, arrays)
    x = torch.randn(2, 6, 8)
    ours = build_model(f"onnx:{path}", 2, "float32", "cpu", 6)
    torch.testing.assert_close(ours.module(x)[0], block(x))
    theirs = to_graph(export(Model("block", Block().eval(), (x,))), "block", 2)
    graph = capture(f"onnx:{path}", 2, "bfloat16", tokens=6)
    assert graph.num_params == theirs.num_params
    assert sum(op.flops for op in graph.ops) == sum(op.flops for op in theirs.ops)


def test_weights_whose_file_is_missing_are_random_and_told(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = saved(tmp_path, nodes, {"x": (1, 8)}, {"w": floats(8, 4)})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    assert not capture(f"onnx:{path}", 1).notes
    (tmp_path / "w.data").unlink()
    assert "1 weights have random values" in capture(f"onnx:{path}", 1).notes[0]


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'apportion\[onnx\]'"):
        capture(f"onnx:{tmp_path / 'm.onnx'}", 1)


def test_a_branch_by_data_is_refused_and_one_that_is_known_is_taken(tmp_path: Path) -> None:
    def branch(op: str) -> Any:
        node = helper.make_node(op, ["x"], [f"{op}_out"])
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node], op, [], [out])

    both = {"then_branch": branch("Relu"), "else_branch": branch("Neg")}
    known = [helper.make_node("If", ["c"], ["y"], **both)]
    path = saved(tmp_path, known, {"x": (1, 3)}, {"c": np.array(False)})
    assert [op.target for op in capture(f"onnx:{path}", 1).ops] == ["aten.neg.default"]
    by_data = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        *known,
    ]
    path = saved(tmp_path, by_data, {"x": (1, 3)}, {"zero": np.float32(0)})
    with pytest.raises(ValueError, match=r"\(If\) chooses by data.*Where"):
        capture(f"onnx:{path}", 1)
