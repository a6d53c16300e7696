"""The loss that a training step descends: the model's own where it has one, else a default."""

import inspect
from dataclasses import replace

import torch
from torch import Tensor, nn

from executor.sources import Model

PER_SAMPLE = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
PER_TOKEN = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")
"""Endings of the names of transformers' classes whose labels are classes of samples, or tokens."""


def with_labels(model: Model) -> Model:
    """The model with labels among its inputs, where it is one of transformers that takes them.

    Labels are class 0 for each sample or token: what they are does not change what a step costs.
    """
    labels = _labels(model.module, dict(model.kwargs))
    return replace(model, kwargs={**model.kwargs, **labels}) if labels else model


def _labels(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    kind, config = type(module).__name__, getattr(module, "config", None)
    ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    reads = inspect.signature(module.forward).parameters
    if config is None or not inputs:
        return {}
    first = next(iter(inputs.values()))
    each = torch.zeros(first.shape[0], dtype=torch.int64, device=first.device)
    if kind.endswith("ForQuestionAnswering") and "start_positions" in reads:
        return {"start_positions": each, "end_positions": each.clone()}
    if "labels" not in reads:
        return {}
    if kind.endswith(PER_SAMPLE):
        return {"labels": _of_samples(config, each)}
    if kind.endswith((*PER_TOKEN, "ForTokenClassification")) and ids is not None:
        return {"labels": torch.zeros_like(ids)}
    return {}


def _of_samples(config: object, each: Tensor) -> Tensor:
    """A class for each sample; a number where the model regresses, else one bit per class."""
    num_labels = getattr(config, "num_labels", 2)
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return each.new_zeros(len(each), num_labels, dtype=torch.float32)
    regresses = problem == "regression" or (problem is None and num_labels == 1)
    return each.to(torch.float32) if regresses else each


def without_layer_drop(module: nn.Module) -> nn.Module:
    """Let the stacks of transformers that skip layers at random in training run them all.

    They ask a random tensor which, each step anew; the stack alone, without its layers, is told
    that it does not train.
    """
    for part in module.modules():
        names = {*vars(part), *vars(getattr(part, "config", None) or nn.Module())}
        if hasattr(part, "layers") and any(name.endswith("layerdrop") for name in names):
            part.training = False
    return module


def loss(outputs: list[Tensor]) -> tuple[Tensor, str]:
    """The loss of a model's outputs, and what it is in words.

    A scalar that the model returns first is its own loss. Else, of its first floating output:
    cross-entropy over the last axis against class 0 for two or three axes with several classes;
    the mean of squares for others.

    Raises:
        ValueError: there is no floating output.
    """
    floating = [out for out in outputs if out.is_floating_point()]
    if not floating:
        raise ValueError("it returns no floating-point tensor, so there is no loss to descend")
    first = floating[0]
    if first.ndim == 0:
        return first, "the model's own"
    if first.ndim in (2, 3) and first.shape[-1] > 1:
        return -first.log_softmax(-1)[..., 0].mean(), "cross-entropy of the first output"
    return first.square().mean(), "mean of squares of the first output"
