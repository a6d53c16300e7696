"""The transformer's multi-head attention and feed-forward, as ViT, BERT and Whisper share them.

Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, sections 3.2 and 3.3.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Attention of a sequence to itself, or to another one; no mask but the causal one."""

    def __init__(self, width: int, heads: int, key_bias: bool = True) -> None:
        super().__init__()
        self.depth = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor | None = None, causal: bool = False) -> Tensor:
        """Map (batch, queries, width) to the same shape; source is (batch, keys, width)."""
        source = x if source is None else source
        q, k, v = (
            project(y).unflatten(-1, (-1, self.depth)).transpose(1, 2)
            for project, y in ((self.query, x), (self.key, source), (self.value, source))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        result: Tensor = self.out(y.transpose(1, 2).flatten(-2))
        return result


def feed_forward(width: int, inner: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class PreNormLayer(nn.Module):
    """x + attention(norm(x)); then attention to a source, if it has one; x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, *, eps: float, **options: bool) -> None:
        super().__init__()
        crosses = options.pop("crosses", False)
        self.attention_norm = nn.LayerNorm(width, eps)
        self.attention = MultiHeadAttention(width, heads, **options)
        if crosses:
            self.cross_norm = nn.LayerNorm(width, eps)
            self.cross = MultiHeadAttention(width, heads, **options)
        self.mlp_norm = nn.LayerNorm(width, eps)
        self.mlp = feed_forward(width, 4 * width)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Map (batch, tokens, width) to the same shape; with a source, attention is causal."""
        x = x + self.attention(self.attention_norm(x), causal=source is not None)
        if source is not None:
            x = x + self.cross(self.cross_norm(x), source)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result
