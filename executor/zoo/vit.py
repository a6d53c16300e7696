"""ViT-B/16: 12 layers, 12 heads, width 768, patches of 16 x 16 of 224 x 224 pixels.

Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, arXiv:2010.11929, section
3.1 and table 1. 86,567,656 parameters, with the head of 1,000 classes.
"""

import torch
from torch import Tensor, nn

from executor.zoo.transformer import PreNormLayer

WIDTH, HEADS, LAYERS, PATCH, PIXELS, CLASSES = 768, 12, 12, 16, 224, 1000


class VisionTransformer(nn.Module):
    """Patches and a class token, encoder layers, and a head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, (PIXELS // PATCH) ** 2 + 1, WIDTH) * 0.02)
        self.layers = nn.Sequential(*(PreNormLayer(WIDTH, HEADS, eps=1e-6) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, 224, 224) to (batch, classes)."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        token = self.class_token.expand(image.shape[0], -1, -1)
        x = torch.cat([token, patches], 1) + self.positions
        result: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return result


def vit_b_16(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build ViT-B/16; input (batch, 3, 224, 224)."""
    return VisionTransformer().eval(), (torch.randn(batch, 3, PIXELS, PIXELS),)
