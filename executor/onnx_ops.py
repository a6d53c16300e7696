"""The ONNX operators that we can run, by name; one small rule each, by family."""

from executor import (
    onnx_attention,
    onnx_elementwise,
    onnx_layers,
    onnx_movement,
    onnx_recurrent,
    onnx_reduce,
    onnx_resize,
)
from executor.onnx_rule import Rules

RULES: Rules = {
    **onnx_attention.RULES,
    **onnx_elementwise.RULES,
    **onnx_layers.RULES,
    **onnx_movement.RULES,
    **onnx_recurrent.RULES,
    **onnx_reduce.RULES,
    **onnx_resize.RULES,
}
