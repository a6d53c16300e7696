"""The ONNX operators Attention and RotaryEmbedding.

Source: ONNX operator schemas, operator set 23, https://onnx.ai/onnx/operators.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from executor.onnx.rule import Call, Rule, Rules


def _by_head(x: Tensor, heads: int | None) -> Tensor:
    """(batch, tokens, heads * depth) to (batch, heads, tokens, depth)."""
    if x.ndim == 4 or heads is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attention(call: Call, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    """Scaled dot-product attention; keys and values of the past come first."""
    mask, past_k, past_v, lengths = (*rest, None, None, None, None)[:4]
    known = {"softcap", "is_causal", "q_num_heads", "kv_num_heads", "scale", "softmax_precision"}
    refused = sorted(call.attrs.keys() - known - {"qk_matmul_output_mode"})
    refused += ["softcap"] if call.get("softcap") else []
    refused += ["nonpad_kv_seqlen"] if lengths is not None else []
    refused += ["the product Q K as output"] if call.num_outputs > 3 else []
    if refused:
        raise ValueError(f"Attention with {', '.join(refused)} is not known; export without")
    is_flat = q.ndim == 3
    q = _by_head(q, call.get("q_num_heads"))
    k, v = (_by_head(x, call.get("kv_num_heads")) for x in (k, v))
    offset = 0 if past_k is None else past_k.shape[2]
    k = k if past_k is None else torch.cat([past_k, k], 2)
    v = v if past_v is None else torch.cat([past_v, v], 2)
    is_causal = bool(call.get("is_causal", 0))
    if is_causal and (mask is not None or offset):
        mask, is_causal = _causal(q, k, mask, offset), False
    y = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, is_causal, scale=call.get("scale"),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    y = y.transpose(1, 2).flatten(2) if is_flat else y
    return (y, k, v)[: call.num_outputs] if call.num_outputs > 1 else y


def _causal(q: Tensor, k: Tensor, mask: Tensor | None, offset: int) -> Tensor:
    """A mask that also hides what comes later."""
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
    if mask is None:
        return seen
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, float("-inf"))


def _rotary(call: Call, x: Tensor, cos: Tensor, sin: Tensor, ids: Tensor | None = None) -> Tensor:
    """Turn pairs of values by the angles of their positions."""
    is_flat = x.ndim == 3
    x = _by_head(x, call.get("num_heads") or None)
    cos, sin = (t if ids is None else F.embedding(ids.long(), t) for t in (cos, sin))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    depth = call.get("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :depth], x[..., depth:]
    cos, sin = cos[..., : depth // 2], sin[..., : depth // 2]
    if call.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        y = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    y = torch.cat([y, rest], -1) if rest.shape[-1] else y
    return y.transpose(1, 2).flatten(2) if is_flat else y


RULES: Rules = {"Attention": Rule(_attention), "RotaryEmbedding": Rule(_rotary)}
