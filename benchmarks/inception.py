"""A network of parallel branches, in the shape of GoogLeNet (Szegedy et al., CVPR 2015)."""

import torch
from torch import Tensor, nn

WIDTHS = ((192, 64, 96, 128, 16, 32, 32), (256, 128, 128, 192, 32, 96, 64))
"""Channels in, 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, pooled of modules 3a and 3b."""


def _conv(num_in: int, num_out: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, size, stride, size // 2)
    return nn.Sequential(conv, nn.ReLU())


class Branches(nn.Module):
    """Four branches side by side, joined by channel."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        num_in, one, three_in, three, five_in, five, pooled = widths
        self.one = _conv(num_in, one, 1)
        self.three = nn.Sequential(_conv(num_in, three_in, 1), _conv(three_in, three, 3))
        self.five = nn.Sequential(_conv(num_in, five_in, 1), _conv(five_in, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(num_in, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The branches' channels one after the other."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


def inception(batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module and its inputs: images of 224 x 224."""
    stem = (_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), _conv(64, 192, 3), nn.MaxPool2d(3, 2, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(480, 1000))
    model = nn.Sequential(*stem, *(Branches(widths) for widths in WIDTHS), *head)
    return model.eval(), (torch.empty(batch, 3, 224, 224),)
