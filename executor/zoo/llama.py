"""Llama 3, 8B and 70B: RMS norm, rotary positions, grouped-query attention, SwiGLU.

Source: Grattafiori et al., "The Llama 3 herd of models", arXiv:2407.21783, section 3.2 and table
3; vocabulary 128,256, rotary base 500,000, context 8,192. 8,030,261,248 and 70,553,706,496
parameters; the head is not tied.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executor.zoo.generation import Cache, attend, step


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of this family; `inner` is the width inside its MLP."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    rotary_base: float
    norm_eps: float = 1e-5

    @property
    def depth(self) -> int:
        """Width of one head."""
        return self.width // self.heads


LLAMA_3_8B = Shape(128256, 4096, 14336, 32, 32, 8, 500_000.0)
LLAMA_3_70B = Shape(128256, 8192, 28672, 80, 64, 8, 500_000.0)


def rotary(first: int, tokens: int, shape: Shape, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (tokens, depth) of the positions from `first`; computed, never stored.

    Source: Su et al., "RoFormer", arXiv:2104.09864, equation 34.
    """
    places = torch.arange(first, first + tokens, device=like.device, dtype=torch.float32)
    halves = torch.arange(0, shape.depth, 2, device=like.device, dtype=torch.float32)
    angles = torch.outer(places, shape.rotary_base ** (-halves / shape.depth))
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the pairs (i, i + depth / 2) of each head by the angle of their position."""
    left, right = x.chunk(2, -1)
    return x * cosines + torch.cat([-right, left], -1) * sines


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.depth = shape.depth
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.depth, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.depth, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], past: Cache
    ) -> tuple[Tensor, Cache]:
        """Map (batch, tokens, width) to the same shape, and to keys and values."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.depth)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *angles), rotate(k, *angles)
        y = attend(q, k, v, past)
        return self.o_proj(y.transpose(1, 2).flatten(-2)), (k, v)


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, shape: Shape, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.mlp = mlp

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], past: Cache
    ) -> tuple[Tensor, Cache]:
        """Map (batch, tokens, width) to the same shape, and to keys and values."""
        y, cache = self.self_attn(self.input_layernorm(x), angles, past)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Llama(nn.Module):
    """Embedding, layers, norm and head; `mlp` makes the MLP of each layer."""

    def __init__(self, shape: Shape, mlp: Callable[[Shape], nn.Module] = GatedMLP) -> None:
        super().__init__()
        self.shape = shape
        self.num_layers, self.num_kv_heads = shape.layers, shape.kv_heads
        self.depth, self.vocabulary = shape.depth, shape.vocabulary
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape, mlp(shape)) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, tokens) to logits (batch, tokens, vocabulary)."""
        return self.logits(self.hidden(tokens, ())[0])

    def hidden(self, tokens: Tensor, past: Cache) -> tuple[Tensor, Cache]:
        """Map token ids to the last layer's output, and to their keys and values."""
        x = self.embed_tokens(tokens)
        angles = rotary(past[0].shape[2] if past else 0, tokens.shape[1], self.shape, x)
        cache: Cache = ()
        for i, layer in enumerate(self.layers):
            x, made = layer(x, angles, past[2 * i : 2 * i + 2])
            cache += made
        return x, cache

    def logits(self, hidden: Tensor) -> Tensor:
        """Map the last layer's output to the vocabulary."""
        result: Tensor = self.lm_head(self.norm(hidden))
        return result


def language_model(model: Llama, batch: int, tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model in evaluation mode and its input, token ids (batch, tokens)."""
    return model.eval(), (torch.randint(model.vocabulary, (batch, tokens)),)


def llama_3_8b(batch: int, tokens: int = 128) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build Llama-3-8B; input token ids (batch, tokens)."""
    return language_model(Llama(LLAMA_3_8B), batch, tokens)


def llama_3_70b(batch: int, tokens: int = 128) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build Llama-3-70B; input token ids (batch, tokens)."""
    return language_model(Llama(LLAMA_3_70B), batch, tokens)


def llama_3_8b_decoder(batch: int, new: int, past: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a step of generation for `new` tokens after `past` ones."""
    return step(Llama(LLAMA_3_8B), batch, new, past)


def llama_3_70b_decoder(batch: int, new: int, past: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a step of generation for `new` tokens after `past` ones."""
    return step(Llama(LLAMA_3_70B), batch, new, past)
