"""The class, the sizes and the FLOPs of every operator that we know; one small rule each.

An addition, a multiplication, a comparison, and one value of exp, log, sin, tanh, erf or a root
count 1 each; a multiply-add counts 2. A causal mask is not deducted. An operator without a rule
is class `other` with 0 FLOPs, costed by the bytes that it moves, and listed as uncosted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Any

import torch
from torch import Tensor, fx

from executor.op_call import OpCall, call_of
from executor.op_dims import DIMS, Dims

Flops = Callable[[OpCall, Dims], float]


@dataclass(frozen=True)
class Estimate:
    """What one run of an operator is and does.

    Attributes:
        kind: operator class; `other` where there is no rule.
        flops: floating-point operations.
        dims: sizes by the names that `executor/op_dims.py` lists.
        costed: whether there is a rule.
        chosen: name of the input node of which only a share is read.
        share: of that input's bytes: rows looked up, experts chosen; 0 where only its shape counts.
    """

    kind: str
    flops: float
    dims: Dims
    costed: bool = True
    chosen: str = ""
    share: float = 1.0

    def read_share(self, name: str) -> float:
        """Share of an input's bytes that are read."""
        return self.share if name == self.chosen else 1.0


def _matmul(call: OpCall, dims: Dims) -> float:
    """2 m n k of each product; a grouped one has 2 n for each element of its left matrix.

    The backward of a grouped one computes both gradients.
    """
    if "grouped_mm" in call.name:
        products = 2 if call.name.endswith("_backward") else 1
        return float(2 * products * int(call.input.numel()) * dims["n"])
    return float(2 * prod(dims.values()))


def _conv(call: OpCall, dims: Dims) -> float:
    """2 kernel (in / groups) out per output pixel; per input pixel where it is transposed.

    Each of the gradients by input and by weight is as much again.
    """
    transposed = call.args.get("transposed", "transpose" in call.name)
    pixels = dims["in_pixels"] if transposed else dims["out_pixels"]
    weights = dims["in_channels"] * dims["out_channels"] // dims["groups"] * dims["kernel"]
    passes: int = sum(call.args.get("output_mask", [1])[:2])
    return 2.0 * dims["batch"] * pixels * weights * passes


def _attention(count: float) -> Flops:
    """Q K^T and P V: 2 b h q k (d + d_v); backward 5 such products in place of 2.

    Source: Dao, "FlashAttention-2", ICLR 2024, section 3.1.2 and appendix: the backward pass
    computes Q K^T again, and the gradients of V, P, Q and K.
    """

    def flops(call: OpCall, dims: Dims) -> float:
        pairs = dims["batch"] * dims["heads"] * dims["queries"] * dims["keys"]
        return count * 2.0 * pairs * (dims["depth"] + dims["value_depth"])

    return flops


def _each(count: float) -> Flops:
    """`count` per element: per output of a pointwise operator, per input of one by rows."""
    return lambda call, dims: count * (dims["size"] if "size" in dims else _area(dims))


def _area(dims: Dims) -> float:
    return float(dims["rows"] * dims["columns"])


def _pool(call: OpCall, dims: Dims) -> float:
    return float(dims["size"] * dims["kernel"])


def _sort(call: OpCall, dims: Dims) -> float:
    """N log2 n comparisons; of the k largest, N log2 k."""
    chosen = call.args.get("k", dims["columns"])
    return _area(dims) * max(ceil(log2(max(chosen, 1))), 1)


def _gelu(call: OpCall, dims: Dims) -> float:
    return float(dims["size"] * (9 if call.args.get("approximate") == "tanh" else 5))


def _dropout(call: OpCall, dims: Dims) -> float:
    return 2.0 * dims["size"]


def _accumulate(call: OpCall, dims: Dims) -> float:
    """One addition per element that is added."""
    added = call.args.get("source", call.args.get("src", call.args.get("values")))
    adds = call.args.get("accumulate", True) and isinstance(added, Tensor)
    return float(added.numel()) if adds else 0.0


_none = _each(0)

_GROUPS: list[tuple[str, Flops, str]] = [
    (
        "matmul",
        _matmul,
        "linear matmul mm bmm addmm baddbmm addbmm _addmm_activation mv addmv dot vdot inner "
        "einsum _int_mm _scaled_mm _grouped_mm _scaled_grouped_mm transformers.grouped_mm_fallback "
        "transformers.grouped_mm_fallback_backward apportion.grouped_mm lstm gru rnn_tanh rnn_relu",
    ),
    (
        "conv",
        _conv,
        "conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d "
        "conv_transpose3d convolution_backward",
    ),
    (
        "attention",
        _attention(1),
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable "
        "_scaled_dot_product_attention_math apportion.cached_attention",
    ),
    (
        "attention",
        _attention(2.5),
        "_scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_flash_attention_backward "
        "_scaled_dot_product_efficient_attention_backward "
        "_scaled_dot_product_cudnn_attention_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
    ),
    (
        "elementwise",
        _each(1),
        "add sub rsub mul div true_divide floor_divide neg abs relu clamp clamp_min clamp_max "
        "maximum minimum pow sqrt rsqrt reciprocal square where eq ne lt le gt ge logical_and "
        "logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor "
        "bitwise_left_shift bitwise_right_shift __and__ __or__ masked_fill sign sgn floor ceil "
        "round trunc frac remainder fmod fmin fmax exp exp2 expm1 log log2 log10 log1p sin cos tan "
        "asin acos atan sinh cosh atan2 tanh erf erfc erfinv isnan isinf isfinite isin threshold "
        "threshold_backward polar logit heaviside nan_to_num special_erf bernoulli outer ger diff",
    ),
    (
        "elementwise",
        _each(2),
        "relu6 leaky_relu hardtanh prelu lerp hardtanh_backward leaky_relu_backward "
        "_prelu_kernel _prelu_kernel_backward",
    ),
    (
        "elementwise",
        _each(3),
        "addcmul addcdiv softplus elu celu selu hardsigmoid_backward elu_backward "
        "tanh_backward sigmoid_backward _weight_norm _weight_norm_interface",
    ),
    ("elementwise", _each(4), "sigmoid hardsigmoid log_sigmoid mish glu logaddexp"),
    (
        "elementwise",
        _each(5),
        "silu hardswish hardswish_backward softplus_backward mse_loss binary_cross_entropy "
        "smooth_l1_loss huber_loss binary_cross_entropy_with_logits "
        "_weight_norm_interface_backward",
    ),
    ("elementwise", _each(8), "silu_backward glu_backward mish_backward"),
    ("elementwise", _each(12), "gelu_backward"),
    ("elementwise", _gelu, "gelu"),
    ("elementwise", _dropout, "native_dropout native_dropout_backward"),
    ("softmax", _each(5), "softmax log_softmax _softmax _log_softmax _safe_softmax"),
    ("softmax", _each(4), "_softmax_backward_data _log_softmax_backward_data"),
    ("softmax", _each(4), "logsumexp"),
    (
        "norm",
        _each(2),
        "batch_norm _native_batch_norm_legit_no_training",
    ),
    (
        "norm",
        _each(7),
        "layer_norm group_norm instance_norm native_layer_norm native_group_norm "
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
        "_batch_norm_with_update _batch_norm_with_update_functional cudnn_batch_norm",
    ),
    ("norm", _each(4), "rms_norm _fused_rms_norm"),
    (
        "norm",
        _each(11),
        "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward "
        "batch_norm_backward cudnn_batch_norm_backward _fused_rms_norm_backward",
    ),
    (
        "pool",
        _pool,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
        "max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
        "avg_pool2d_backward avg_pool3d_backward",
    ),
    (
        "pool",
        _each(1),
        "max_pool2d_with_indices_backward max_pool3d_with_indices_backward "
        "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
        "adaptive_max_pool2d_backward",
    ),
    ("embedding", _none, "embedding index_select gather index _unsafe_index take_along_dim"),
    (
        "embedding",
        lambda call, dims: _area(dims),
        "embedding_bag _embedding_bag _embedding_bag_forward_only embedding_dense_backward "
        "_embedding_bag_backward _embedding_bag_dense_backward embedding_backward",
    ),
    (
        "reduce",
        _each(1),
        "mean sum amax amin aminmax max min prod argmax argmin any all nansum count_nonzero "
        "nll_loss nll_loss_forward nll_loss2d_forward cumsum cumprod cummax cummin histc bincount "
        "trace logcumsumexp",
    ),
    ("reduce", _each(2), "norm linalg_vector_norm norm_except_dim"),
    ("reduce", _each(4), "var std var_mean std_mean"),
    ("reduce", _sort, "topk sort argsort"),
    ("reduce", _each(5), "cross_entropy_loss"),
    (
        "copy",
        _none,
        "cat concat stack hstack vstack clone copy copy_ pad constant_pad_nd reflection_pad1d "
        "reflection_pad2d replication_pad1d replication_pad2d repeat arange linspace eye zeros "
        "ones full zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty "
        "new_empty_strided empty_strided empty empty_permuted rand randn randint rand_like "
        "randn_like randperm roll repeat_interleave scalar_tensor _to_copy scatter "
        "slice_scatter select_scatter index_copy index_fill masked_scatter flip one_hot tril triu "
        "tril_indices triu_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact2d upsample_nearest2d_backward pixel_shuffle pixel_unshuffle tile "
        "im2col col2im channel_shuffle nll_loss_backward nll_loss2d_backward slice_backward "
        "select_backward diagonal_scatter diag_embed unfold_backward nonzero complex fill fill_ "
        "zero zero_ meshgrid lift_fresh",
    ),
    ("copy", _accumulate, "index_add scatter_add scatter_reduce index_put _unsafe_index_put"),
    (
        "elementwise",
        _each(7),
        "upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d "
        "upsample_bilinear2d_backward",
    ),
    ("elementwise", _each(35), "upsample_bicubic2d _upsample_bicubic2d_aa"),
    (
        "view",
        _none,
        "view permute transpose unsqueeze squeeze expand slice select chunk split split_with_sizes "
        "tensor_split unbind alias detach t mT numpy_T unflatten dropout dropout_ feature_dropout "
        "expand_as view_as broadcast_to lift_fresh_copy detach_ _assert_tensor_metadata "
        "narrow movedim moveaxis swapaxes swapdims adjoint _unsafe_view sym_size "
        "_assert_scalar sym_constrain_range_for_size _assert_async diagonal as_strided unfold "
        "view_as_real view_as_complex real imag _conj conj resolve_conj resolve_neg squeeze_ "
        "unsqueeze_ hsplit vsplit dsplit unsafe_split unsafe_chunk unsafe_split_with_sizes "
        "positive is_same_size item _local_scalar_dense",
    ),
]

RULES: Mapping[str, tuple[str, Flops]] = {
    name: (kind, flops) for kind, flops, names in _GROUPS for name in names.split()
}
VIEW_IF_POSSIBLE = {"reshape", "flatten", "contiguous", "to", "type_as", "ravel"}
"""Views where strides, dtype and memory format allow it; copies otherwise."""


def estimate(node: fx.Node) -> Estimate:
    """Class, sizes and FLOPs of the operator that a node of an exported graph calls."""
    call = call_of(node)
    kind, flops = _rule(call)
    if kind == "other":
        return Estimate(kind, 0.0, {}, costed=False)
    dims = {name: int(size) for name, size in DIMS[kind](call).items()}
    position, share = _read_in_part(call, kind, dims)
    chosen = node.all_input_nodes[position].name if share < 1 else ""
    work = float(flops(call, dims)) if dims and kind != "view" else 0.0
    return Estimate(kind, work, dims, True, chosen, share)


def _read_in_part(call: OpCall, kind: str, dims: Dims) -> tuple[int, float]:
    """Position of the input that is read in part, and its share."""
    if call.name.startswith("new_") or call.name.endswith("_like"):
        return 0, 0.0
    if kind == "embedding" and "backward" not in call.name:
        return 0, min(1.0, _area(dims) / max(call.input.numel(), 1))
    if "grouped_mm" in call.name and call.tensors[1].ndim == 3:
        return 1, min(1.0, call.input.numel() / max(dims["k"] * dims["batch"], 1))
    return 0, 1.0


def _rule(call: OpCall) -> tuple[str, Flops]:
    name = call.name
    if name in VIEW_IF_POSSIBLE:
        return RULES["view" if _is_view(call.input, call.output, call) else "clone"]
    if name in ("dropout", "feature_dropout") and call.args["train"]:
        return RULES["native_dropout"]
    return RULES.get(name) or RULES.get(name.removesuffix("_"), ("other", _none))


def _is_view(source: Tensor, result: Tensor, call: OpCall) -> bool:
    """Whether the result can be had from the source's memory as it lies."""
    if source.dtype != result.dtype or source.device != result.device or call.args.get("copy"):
        return False
    if call.name == "contiguous":
        wanted: Any = call.args["memory_format"] or torch.contiguous_format
        return source.is_contiguous(memory_format=wanted)
    same_memory = torch.empty_strided(source.shape, source.stride(), device="meta")
    try:
        same_memory.view(result.shape)
    except RuntimeError:
        return False
    return True
