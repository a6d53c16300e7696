"""Operators that servers have and torch has in no portable form: on every device, on meta too.

Both compute from torch's own operators where they run for real. Importing this file registers them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("apportion::cached_attention", mutates_args=())
def cached_attention(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor
) -> Tensor:
    """Attend from new tokens to the cache and, causally, to themselves; grouped queries.

    Reads the cache where it lies, as flash_attn_with_kvcache does: a step of generation then moves
    the cache once, and gives only the new keys and values back. Tensors are (batch, heads, tokens,
    depth); keys and values have kv_heads.
    """
    keys, values = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    new, whole = query.shape[2], keys.shape[2]
    mask = torch.ones(new, whole, dtype=torch.bool, device=query.device).tril(whole - new)
    return F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True)


@cached_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


@torch.library.custom_op("apportion::grouped_mm", mutates_args=())
def grouped_mm(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Multiply groups of rows, or of columns, each on its own: torch's grouped_mm.

    ends (groups) says where each group ends. left (rows, k) by right (groups, k, n): each group of
    rows by its own matrix, to (rows, n). left (m, rows) by right (rows, n): each group of columns
    of the left by its rows of the right, to (groups, m, n); the gradient of the matrices is one.
    """
    return F.grouped_mm(left, right, offs=ends)


@grouped_mm.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    groups = ends.shape if right.ndim == 2 else ()
    return left.new_empty(*groups, left.shape[0], right.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, matrices, ends = ctx.saved_tensors
    return grouped_mm(grad, matrices.mT, ends), grouped_mm(rows.mT, grad, ends), None


grouped_mm.register_autograd(_gradients, setup_context=_keep)
