"""Whisper small: 12 encoder and 12 decoder layers, 12 heads, width 768; 30 s of speech.

Source: Radford et al., "Robust speech recognition via large-scale weak supervision", ICML 2023,
arXiv:2212.04356, section 2.2 and table 1. 241,734,912 parameters, with the encoder's fixed
sinusoids and the head tied to the token embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executor.zoo.transformer import PreNormLayer

VOCABULARY, TEXT_CONTEXT, WIDTH, HEADS, LAYERS, EPS = 51865, 448, 768, 12, 12, 1e-5
MELS, FRAMES = 80, 3000  # 30 s in steps of 10 ms; the second convolution halves them


def sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines (length, width) of positions, wavelengths 2 pi to 10,000 * 2 pi."""
    scale = math.log(10000) / (width // 2 - 1)
    angles = torch.outer(torch.arange(length), torch.exp(-scale * torch.arange(width // 2)))
    return torch.cat([angles.sin(), angles.cos()], 1)


def layer(*, crosses: bool = False) -> PreNormLayer:
    """One layer; keys have no bias."""
    return PreNormLayer(WIDTH, HEADS, eps=EPS, crosses=crosses, key_bias=False)


class Encoder(nn.Module):
    """Two convolutions over time, then layers over 1,500 frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, 2, 1)
        self.positions = nn.Parameter(sinusoids(FRAMES // 2, WIDTH), requires_grad=False)
        self.layers = nn.Sequential(*(layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, mels: Tensor) -> Tensor:
        """Map a log-mel spectrogram (batch, mels, frames) to (batch, frames / 2, width)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2)
        result: Tensor = self.norm(self.layers(x + self.positions))
        return result


class Whisper(nn.Module):
    """Encoder of speech, decoder of text that attends to it, and the tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(TEXT_CONTEXT, WIDTH)
        self.layers = nn.ModuleList(layer(crosses=True) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, mels: Tensor, tokens: Tensor) -> Tensor:
        """Map speech and token ids (batch, tokens) to logits (batch, tokens, vocabulary)."""
        speech = self.encoder(mels)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        for block in self.layers:
            x = block(x, speech)
        return F.linear(self.norm(x), self.tokens.weight)


def whisper_small(batch: int, tokens: int = 128) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build Whisper small; inputs 30 s of speech (batch, 80, 3000), token ids (batch, tokens)."""
    speech, text = torch.randn(batch, MELS, FRAMES), torch.randint(VOCABULARY, (batch, tokens))
    return Whisper().eval(), (speech, text)
