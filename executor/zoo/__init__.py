"""Models that people recognise, in plain torch, with random weights and their published shapes.

A model is a function `(batch) -> (module, example inputs)`, the module in evaluation mode; one of
TAKES_TOKENS also takes the number of tokens, `(batch, tokens)`. A model's file is imported, and
torch with it, when the model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Factory = Callable[..., "tuple[nn.Module, tuple[Tensor, ...]]"]


def _later(file: str, function: str) -> Factory:
    def build(*sizes: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        made: Any = getattr(import_module(f"executor.zoo.{file}"), function)(*sizes)
        return made  # type: ignore[no-any-return]

    return build


ZOO: Mapping[str, Factory] = {
    "cifar10-cnn": _later("cifar10_cnn", "cifar10_cnn"),
    "resnet50": _later("resnet50", "resnet50"),
    "mobilenet-v3": _later("mobilenet_v3", "mobilenet_v3"),
    "unet": _later("unet", "unet"),
    "vit-b-16": _later("vit", "vit_b_16"),
    "bert-base": _later("bert", "bert_base"),
    "gpt2": _later("gpt2", "gpt2"),
    "llama-3-8b": _later("llama", "llama_3_8b"),
    "llama-3-70b": _later("llama", "llama_3_70b"),
    "mixtral-8x7b": _later("mixtral", "mixtral_8x7b"),
    "whisper-small": _later("whisper", "whisper_small"),
    "dlrm": _later("dlrm", "dlrm"),
}

TAKES_TOKENS = frozenset(
    ["bert-base", "gpt2", "llama-3-8b", "llama-3-70b", "mixtral-8x7b", "whisper-small"]
)

POSITIONS = {"bert-base": 512, "gpt2": 1024, "whisper-small": 448}
"""Tokens that a model has positions for at most, where positions are learnt, not computed."""


def check_positions(source: str, tokens: int) -> None:
    """Refuse more tokens than a zoo model has positions for.

    Raises:
        ValueError: naming the model, its positions and the tokens.
    """
    scheme, _, name = source.partition(":")
    if scheme == "zoo" and tokens > POSITIONS.get(name, tokens):
        raise ValueError(
            f"{source} has {POSITIONS[name]:,} positions, got {tokens:,} tokens; ask for fewer"
        )


DECODERS: Mapping[str, Factory] = {
    "gpt2": _later("gpt2", "gpt2_decoder"),
    "llama-3-8b": _later("llama", "llama_3_8b_decoder"),
    "llama-3-70b": _later("llama", "llama_3_70b_decoder"),
    "mixtral-8x7b": _later("mixtral", "mixtral_8x7b_decoder"),
}
"""Generation step by name: `(batch, new_tokens, past_tokens) -> (module, example inputs)`.

The inputs are token ids (batch, new) and, where there is a past, a key and a value tensor
(batch, kv_heads, past, depth) for every layer in turn; the outputs are the logits of the last
token (batch, 1, vocabulary) and the keys and values of the new tokens, to be appended. Without
past tokens the step is the prefill.
"""
