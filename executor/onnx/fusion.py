"""A product with a weight and its bias as one linear layer, as every runtime runs them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from executor.onnx.steps import Ref, Step


def with_linear_layers(
    steps: Sequence[Step],
    tensors: Mapping[str, Tensor],
    weights: Collection[str],
    outputs: Collection[str],
) -> list[Step]:
    """Steps with MatMul by a weight (k, n) and Add of a weight (n,) joined, where nothing between.

    Args:
        steps: in order.
        tensors: shapes by name.
        weights: names of stored tensors.
        outputs: names that must stay computed.
    """
    uses = Counter(x.name for step in steps for x in step.inputs if isinstance(x, Ref))
    uses.update(outputs)
    products = {
        step.outputs[0]: step
        for step in steps
        if step.call.op == "MatMul" and _is_weight(step.inputs[1], 2, tensors, weights)
    }
    joined: dict[str, Step] = {}
    result = []
    for step in steps:
        made = next((x.name for x in step.inputs if getattr(x, "name", "") in products), "")
        bias = next((x for x in step.inputs if x != Ref(made)), None)
        is_bias = step.call.op == "Add" and _is_weight(bias, 1, tensors, weights)
        if made and is_bias and uses[made] == 1 and _fits(products[made], bias, tensors):
            product = products[made]
            call = replace(step.call, op="Linear")
            joined[made] = Step(product.name, call, (*product.inputs, bias), step.outputs)
            result.append(joined[made])
        else:
            result.append(step)
    return [step for step in result if step.call.op != "MatMul" or step.outputs[0] not in joined]


def _is_weight(
    value: object, axes: int, tensors: Mapping[str, Tensor], weights: Collection[str]
) -> bool:
    return isinstance(value, Ref) and value.name in weights and tensors[value.name].ndim == axes


def _fits(product: Step, bias: object, tensors: Mapping[str, Tensor]) -> bool:
    assert isinstance(bias, Ref)
    weight = product.inputs[1]
    return tensors[bias.name].shape[0] == tensors[weight.name].shape[1]
