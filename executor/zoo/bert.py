"""BERT-base, uncased: 12 layers, 12 heads, width 768.

Source: Devlin et al., "BERT: pre-training of deep bidirectional transformers", NAACL 2019,
arXiv:1810.04805, section 3; vocabulary 30,522. 109,482,240 parameters, with the pooler, without
the heads of pre-training.
"""

import torch
from torch import Tensor, nn

from executor.zoo.transformer import MultiHeadAttention, feed_forward

VOCABULARY, CONTEXT, SEGMENTS, WIDTH, HEADS, LAYERS, EPS = 30522, 512, 2, 768, 12, 12, 1e-12


class PostNormLayer(nn.Module):
    """norm(x + attention(x)), norm(x + mlp(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(WIDTH, HEADS)
        self.attention_norm = nn.LayerNorm(WIDTH, EPS)
        self.mlp = feed_forward(WIDTH, 4 * WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = self.attention_norm(x + self.attention(x))
        result: Tensor = self.mlp_norm(x + self.mlp(x))
        return result


class Bert(nn.Module):
    """Token, position and segment embeddings, encoder layers, and the pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.segments = nn.Embedding(SEGMENTS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPS)
        self.layers = nn.Sequential(*(PostNormLayer() for _ in range(LAYERS)))
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map token ids (batch, tokens) to (batch, tokens, width) and pooled (batch, width)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        segments = torch.zeros_like(tokens)
        x = self.tokens(tokens) + self.segments(segments) + self.positions(positions)
        x = self.layers(self.norm(x))
        return x, torch.tanh(self.pooler(x[:, 0]))


def bert_base(batch: int, tokens: int = 128) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build BERT-base; input token ids (batch, tokens), at most 512 of them, one segment."""
    return Bert().eval(), (torch.randint(VOCABULARY, (batch, tokens)),)
