"""DLRM, the recommender, in its published configuration for the Criteo Kaggle data.

Source: Naumov et al., "Deep learning recommendation model for personalization and recommendation
systems", arXiv:1906.00091, section 5; sizes of bench/dlrm_s_criteo_kaggle.sh in the authors' code:
26 tables of width 16, bottom MLP 13-512-256-64-16, top MLP 512-256-1. 540,201,232 parameters in
the tables, 540,677,217 in all.
"""

import torch
from torch import Tensor, nn

TABLES = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]  # fmt: skip
DENSE, WIDTH = 13, 16
BOTTOM, TOP = (512, 256, 64, WIDTH), (512, 256)


def mlp(width: int, *widths: int) -> list[nn.Module]:
    """Linear layers of the given widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for next_width in widths:
        layers += [nn.Linear(width, next_width), nn.ReLU()]
        width = next_width
    return layers


class DLRM(nn.Module):
    """Dense features by an MLP, sparse ones by tables; their dot products; an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, WIDTH, mode="sum") for rows in TABLES)
        self.bottom = nn.Sequential(*mlp(DENSE, *BOTTOM))
        vectors = len(TABLES) + 1
        pairs = vectors * (vectors - 1) // 2
        self.top = nn.Sequential(*mlp(WIDTH + pairs, *TOP), nn.Linear(TOP[-1], 1), nn.Sigmoid())

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Map (batch, 13) and one id per table (batch, 26) to click probabilities (batch, 1)."""
        x = self.bottom(dense)
        looked_up = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
        vectors = torch.stack([x, *looked_up], 1)
        products = torch.bmm(vectors, vectors.mT)
        first, second = torch.tril_indices(
            len(TABLES) + 1, len(TABLES) + 1, -1, device=dense.device
        ).unbind()
        result: Tensor = self.top(torch.cat([x, products[:, first, second]], 1))
        return result


def dlrm(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build DLRM; inputs dense features (batch, 13) and ids (batch, 26)."""
    ids = torch.stack([torch.randint(rows, (batch,)) for rows in TABLES], 1)
    return DLRM().eval(), (torch.randn(batch, DENSE), ids)
