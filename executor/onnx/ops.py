"""The ONNX operators that we can run, by name; one small rule each, by family."""

from executor.onnx import (
    attention,
    elementwise,
    layers,
    movement,
    recurrent,
    reduce,
    resize,
)
from executor.onnx.rule import Rules

RULES: Rules = {
    **attention.RULES,
    **elementwise.RULES,
    **layers.RULES,
    **movement.RULES,
    **recurrent.RULES,
    **reduce.RULES,
    **resize.RULES,
}
