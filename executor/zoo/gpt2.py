"""GPT-2 small: 12 layers, 12 heads, width 768.

Source: Radford et al., "Language models are unsupervised multitask learners", OpenAI 2019,
section 2.3; the language-model head shares the token embedding. 124,439,808 parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executor.zoo.generation import Cache, attend, step

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 50257, 1024, 768, 12, 12


class Block(nn.Module):
    """Pre-norm self-attention and a four times wider MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.out = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, past: Cache) -> tuple[Tensor, Cache]:
        """Map (batch, tokens, width) to the same shape, and to keys and values."""
        batch, tokens, _ = x.shape
        q, k, v = (
            part.view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.attn(self.ln_1(x)).split(WIDTH, dim=2)
        )
        y = attend(q, k, v, past)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        hidden = F.gelu(self.fc(self.ln_2(x)), approximate="tanh")
        return x + self.out(hidden), (k, v)


class GPT2(nn.Module):
    """Token and position embeddings, the blocks, and the tied head."""

    num_layers, num_kv_heads, depth, vocabulary = LAYERS, HEADS, WIDTH // HEADS, VOCABULARY

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, tokens) to logits (batch, tokens, vocabulary)."""
        return self.logits(self.hidden(tokens, ())[0])

    def hidden(self, tokens: Tensor, past: Cache) -> tuple[Tensor, Cache]:
        """Map token ids to the last block's output, and to their keys and values."""
        first = past[0].shape[2] if past else 0
        positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        cache: Cache = ()
        for i, block in enumerate(self.h):
            x, made = block(x, past[2 * i : 2 * i + 2])
            cache += made
        return x, cache

    def logits(self, hidden: Tensor) -> Tensor:
        """Map the last block's output to the vocabulary."""
        return F.linear(self.ln_f(hidden), self.wte.weight)


def gpt2(batch: int, tokens: int = 128) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build GPT-2 small; input token ids (batch, tokens), at most 1,024 of them."""
    return GPT2().eval(), (torch.randint(VOCABULARY, (batch, tokens)),)


def gpt2_decoder(batch: int, new: int, past: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a step of generation for `new` tokens after `past` ones."""
    return step(GPT2(), batch, new, past)
