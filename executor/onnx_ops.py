"""The ONNX operators that we can run, by name; one small rule each, by family."""

from executor import onnx_elementwise, onnx_layers, onnx_movement, onnx_reduce
from executor.onnx_rule import Rules

RULES: Rules = {
    **onnx_elementwise.RULES,
    **onnx_layers.RULES,
    **onnx_movement.RULES,
    **onnx_reduce.RULES,
}
