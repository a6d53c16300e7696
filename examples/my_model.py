"""A model of one's own: a factory that takes the batch size and returns (module, inputs)."""

import torch
from torch import Tensor, nn


class TwoTowers(nn.Module):
    """Two independent towers that meet at the end: work for two devices at once."""

    def __init__(self, width: int = 1024, depth: int = 4) -> None:
        super().__init__()
        self.left = nn.Sequential(*self._tower(width, depth))
        self.right = nn.Sequential(*self._tower(width, depth))
        self.head = nn.Linear(2 * width, 10)

    @staticmethod
    def _tower(width: int, depth: int) -> list[nn.Module]:
        return [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.GELU())]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map two inputs (batch, width) to scores (batch, 10)."""
        scores: Tensor = self.head(torch.cat([self.left(x), self.right(y)], dim=1))
        return scores


def two_towers(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build the model and one batch of inputs."""
    return TwoTowers(), (torch.randn(batch, 1024), torch.randn(batch, 1024))
