"""One step of a decoder with a cache of keys and values: prefill, or the next tokens."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executor.zoo.ops import cached_attention

Cache = tuple[Tensor, ...]
"""Keys and values of every layer in turn, each (batch, kv_heads, tokens, depth)."""


class Decoder(Protocol):
    """What a language model gives to be generated from."""

    num_layers: int
    num_kv_heads: int
    depth: int
    vocabulary: int

    def hidden(self, tokens: Tensor, past: Cache) -> tuple[Tensor, Cache]:
        """Map token ids to the last layer's output, and to their keys and values."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Map the last layer's output to the vocabulary."""


def attend(query: Tensor, key: Tensor, value: Tensor, past: Cache) -> Tensor:
    """Causal attention to the past, if there is one, and to the tokens themselves."""
    if past:
        made: Tensor = cached_attention(query, key, value, *past)
    else:
        grouped = query.shape[1] != key.shape[1]
        made = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return made


class Step(nn.Module):
    """Logits of the last token, and the keys and values of the new tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Map (batch, new) token ids and the cache to (batch, 1, vocabulary) and new entries."""
        model: Decoder = self.model  # type: ignore[assignment]
        hidden, cache = model.hidden(tokens, past)
        return (model.logits(hidden[:, -1:]), *cache)


def step(model: nn.Module, batch: int, new: int, past: int) -> tuple[nn.Module, Cache]:
    """A decoder's step for `new` tokens after `past` ones, and its inputs."""
    decoder: Decoder = model  # type: ignore[assignment]
    tokens = torch.randint(decoder.vocabulary, (batch, new))
    shape = (batch, decoder.num_kv_heads, past, decoder.depth)
    cache = tuple(torch.randn(shape) for _ in range(2 * decoder.num_layers)) if past else ()
    return Step(model).eval(), (tokens, *cache)
