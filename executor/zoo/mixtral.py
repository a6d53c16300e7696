"""Mixtral 8x7B: Llama's layers with eight experts for MLP, of which each token takes two.

Source: Jiang et al., "Mixtral of experts", arXiv:2401.04088, section 2 and table 1; vocabulary
32,000, rotary base 1,000,000. 46,702,792,704 parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executor.zoo.generation import step
from executor.zoo.llama import Llama, Shape, language_model
from executor.zoo.ops import grouped_mm

EXPERTS, CHOSEN = 8, 2
MIXTRAL = Shape(32000, 4096, 14336, 32, 32, 8, 1_000_000.0)


class Experts(nn.Module):
    """Mixture of SwiGLU experts; rows are sorted by expert and multiplied group by group."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, EXPERTS, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(EXPERTS, shape.width, 2 * shape.inner))
        self.down_proj = nn.Parameter(torch.empty(EXPERTS, shape.inner, shape.width))
        nn.init.normal_(self.gate_up_proj, std=0.02)
        nn.init.normal_(self.down_proj, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        rows = x.flatten(0, 1)
        weights, chosen = self.gate(rows).softmax(-1, dtype=torch.float32).topk(CHOSEN, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        expert, order = chosen.flatten().sort()
        counts = torch.zeros(EXPERTS, device=x.device, dtype=torch.int64)
        ends = counts.scatter_add(0, expert, torch.ones_like(expert)).cumsum(0)
        ends = ends.to(torch.int32)
        gate, up = grouped_mm(rows[order // CHOSEN], self.gate_up_proj, ends).chunk(2, -1)
        made = grouped_mm(F.silu(gate) * up, self.down_proj, ends)
        made = made * weights.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(rows).index_add(0, order // CHOSEN, made).view_as(x)


def mixtral_8x7b(batch: int, tokens: int = 128) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build Mixtral-8x7B; input token ids (batch, tokens)."""
    return language_model(Llama(MIXTRAL, Experts), batch, tokens)


def mixtral_8x7b_decoder(batch: int, new: int, past: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a step of generation for `new` tokens after `past` ones."""
    return step(Llama(MIXTRAL, Experts), batch, new, past)
