"""Operators that servers have and torch has in no portable form: on every device, on meta too.

Both compute from torch's own operators where they run for real. Importing this file registers them.
"""

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
def grouped_mm(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each group of rows by its own matrix: torch's grouped_mm, in every dtype.

    rows (rows, k), weight (groups, k, n), ends (groups): where each group's rows end.
    """
    return F.grouped_mm(rows, weight, offs=ends)


@grouped_mm.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[-1])
