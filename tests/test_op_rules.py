import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

import executor.zoo.ops  # noqa: F401
from executor.capture import to_graph
from executor.export import export
from executor.op_rules import RULES, estimate
from executor.sources import Model

aten = torch.ops.aten
few = settings(max_examples=25, deadline=None)
size = st.integers(1, 7)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


def node_of(op, *args, **kwargs):
    """A node of an exported graph that calls the operator, and what torch counts for it."""
    graph = fx.Graph()

    def placeholder(value):
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [placeholder(item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder("x")
        node.meta["val"] = value
        return node

    named = {key: placeholder(value) for key, value in kwargs.items()}
    node = graph.call_function(op, tuple(placeholder(a) for a in args), named)
    with FlopCounterMode(display=False) as counter:
        node.meta["val"] = op(*args, **kwargs)
    return node, counter.get_total_flops()


def cost(op, *args, **kwargs):
    return estimate(node_of(op, *args, **kwargs)[0])


def dims(op, *args, **kwargs):
    return tuple(cost(op, *args, **kwargs).dims.values())


@few
@given(b=size, m=size, n=size, k=st.integers(2, 7))
def test_matrix_products_cost_2mnk(b, m, n, k):
    left, right = meta(b, m, k), meta(b, k, n)
    calls = [
        (aten.bmm.default, left, right),
        (aten.baddbmm.default, meta(b, m, n), left, right),
        (aten.matmul.default, left, right),
        (aten.matmul.default, meta(1, m, k), right),
        (aten.matmul.default, meta(2, b, m, k), right),
        (aten.einsum.default, "bij,bjk->bik", [left, right]),
    ]
    for call in calls:
        node, counted = node_of(*call)
        made = estimate(node)
        batch = node.meta["val"].numel() // (m * n)
        assert made.dims == {"batch": batch, "m": m, "n": n, "k": k}
        assert made.flops == 2 * batch * m * n * k == counted


@few
@given(b=size, m=size, n=size, k=size)
def test_linear_layers_have_all_leading_axes_as_rows(b, m, n, k):
    x, rows = meta(b, m, k), meta(b * m, k)
    calls = [
        (aten.linear.default, x, meta(n, k), meta(n)),
        (aten.matmul.default, x, meta(k, n)),
        (aten.mm.default, rows, meta(k, n)),
        (aten.addmm.default, meta(n), rows, meta(k, n)),
        (aten.einsum.default, "bmk,nk->bmn", [x, meta(n, k)]),
    ]
    for call in calls:
        made = cost(*call)
        assert made.flops == 2 * b * m * n * k
        assert made.dims == {"batch": 1, "m": b * m, "n": n, "k": k}


@few
@given(
    st.integers(1, 3),
    st.booleans(),
    st.tuples(*[st.integers(1, 3)] * 7),
)
def test_convolutions_cost_what_torch_counts(spatial, transposed, sizes):
    batch, groups, per_in, per_out, kernel, stride, dilation = sizes
    shape = [7, 8, 9][:spatial]
    shape = [n + (kernel - 1) * dilation for n in shape]
    ends = (per_in * groups, per_out) if transposed else (per_out * groups, per_in)
    x, weight = meta(batch, per_in * groups, *shape), meta(*ends, *[kernel] * spatial)
    padding, zeros = [kernel // 2] * spatial, [0] * spatial
    steps = ([stride] * spatial, padding, [dilation] * spatial)
    call = (x, weight, None, *steps, transposed, zeros, groups)
    node, counted = node_of(aten.convolution.default, *call)
    made, out = estimate(node), node.meta["val"]
    assert made.flops == counted
    assert made.dims["out_pixels"] == out[0, 0].numel()
    assert made.dims["kernel"] == kernel**spatial
    assert made.dims["stride"] == stride**spatial
    mask = [True, True, False]
    back = (torch.empty_like(out), x, weight, None, *steps, transposed, zeros, groups, mask)
    node, counted = node_of(aten.convolution_backward.default, *back)
    assert estimate(node).flops == 2 * made.flops
    assert counted == 2 * made.flops or groups > 1, "torch counts groups once too often there"
    assert estimate(node).dims == made.dims


def test_convolution_layers_as_exported():
    x, weight = meta(2, 8, 12, 12), meta(16, 2, 3, 3)
    assert cost(aten.conv2d.default, x, weight, None, [2, 2], [1, 1], [1, 1], 4).dims == {
        "batch": 2,
        "in_channels": 8,
        "out_channels": 16,
        "out_pixels": 36,
        "in_pixels": 144,
        "kernel": 9,
        "groups": 4,
        "stride": 4,
    }
    assert cost(aten.conv1d.default, meta(1, 3, 9), meta(4, 3, 3), None, [2]).dims["stride"] == 2
    up = cost(aten.conv_transpose2d.input, meta(1, 8, 4, 4), meta(8, 6, 2, 2), None, [2, 2])
    assert up.flops == 2 * 16 * 8 * 6 * 4


ATTENTION = {
    "scaled_dot_product_attention": {},
    "_scaled_dot_product_flash_attention_for_cpu": {},
    "_scaled_dot_product_flash_attention": {},
    "_scaled_dot_product_efficient_attention": {"attn_bias": None, "compute_log_sumexp": False},
    "_scaled_dot_product_cudnn_attention": {"attn_bias": None, "compute_log_sumexp": False},
}


@few
@given(st.sampled_from(sorted(ATTENTION)), size, size, size, size, st.integers(1, 4))
def test_attention_costs_its_two_products(name, batch, heads, queries, keys, eighths):
    depth = 8 * eighths
    query, key = meta(batch, heads, queries, depth), meta(batch, heads, keys, depth)
    options = {**ATTENTION[name], "is_causal": True}
    made = cost(getattr(aten, name).default, query, key, key, **options)
    assert made.flops == 4 * batch * heads * queries * keys * depth
    assert made.dims == {
        "batch": batch,
        "heads": heads,
        "kv_heads": heads,
        "queries": queries,
        "keys": keys,
        "depth": depth,
        "value_depth": depth,
        "causal": 1,
    }


def test_attention_with_grouped_queries_and_with_a_cache():
    query, key = meta(2, 8, 5, 16), meta(2, 2, 5, 16)
    grouped = cost(aten.scaled_dot_product_attention.default, query, key, key, enable_gqa=True)
    assert (grouped.dims["heads"], grouped.dims["kv_heads"], grouped.dims["causal"]) == (8, 2, 0)
    assert grouped.flops == 4 * 2 * 8 * 5 * 5 * 16
    past = meta(2, 2, 11, 16)
    cached = cost(torch.ops.apportion.cached_attention.default, query, key, key, past, past)
    assert (cached.dims["queries"], cached.dims["keys"], cached.dims["causal"]) == (5, 16, 1)
    assert cached.flops == 4 * 2 * 8 * 5 * 16 * 16


def test_backward_of_attention_costs_five_products():
    x, rows = meta(2, 4, 6, 8), meta(2, 4, 6)
    op = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    assert cost(op, x, x, x, x, x, rows, 0.0, False).flops == 5 * 2 * 2 * 4 * 6 * 6 * 8


@few
@given(st.integers(1, 40), st.integers(1, 8), size, size)
def test_experts_cost_their_rows_and_read_at_most_one_matrix_a_row(rows, groups, k, n):
    op = torch.ops.apportion.grouped_mm.default
    made = cost(op, meta(rows, k), meta(groups, k, n), meta(groups, dtype=torch.int32))
    assert made.flops == 2 * rows * k * n
    assert made.share == min(1, rows / groups)


@pytest.mark.parametrize(
    ("op", "args", "kind", "sizes"),
    [
        (aten.layer_norm.default, (meta(2, 3, 8), [8]), "norm", (6, 8)),
        (aten.native_layer_norm.default, (meta(2, 3, 8), [3, 8], None, None, 1e-5), "norm",
         (2, 24)),
        (aten.rms_norm.default, (meta(2, 3, 8), [8]), "norm", (6, 8)),
        (aten.group_norm.default, (meta(2, 8, 5, 5), 4), "norm", (8, 50)),
        (aten.native_group_norm.default, (meta(2, 8, 25), None, None, 2, 8, 25, 4, 1e-5), "norm",
         (8, 50)),
        (aten._native_batch_norm_legit_no_training.default,
         (meta(2, 8, 5, 5), None, None, meta(8), meta(8), 0.1, 1e-5), "norm", (16, 25)),
        (aten.native_layer_norm_backward.default,
         (meta(6, 8), meta(6, 8), [8], meta(6, 1), meta(6, 1), None, None, [True, False, False]),
         "norm", (6, 8)),
        (aten.softmax.int, (meta(2, 3, 8), 1), "softmax", (16, 3)),
        (aten._softmax_backward_data.default, (meta(4, 9), meta(4, 9), -1, torch.float32),
         "softmax", (4, 9)),
        (aten.sum.dim_IntList, (meta(2, 3, 8), [0, 2]), "reduce", (3, 16)),
        (aten.cumsum.default, (meta(2, 3, 8), 1), "reduce", (16, 3)),
        (aten.topk.default, (meta(4, 8), 2), "reduce", (4, 8)),
        (aten.max_pool2d.default, (meta(2, 3, 8, 8), [2, 2]), "pool", (96, 4)),
        (aten.max_pool2d.default, (meta(2, 3, 8, 8), [2]), "pool", (96, 4)),
        (aten.adaptive_avg_pool2d.default, (meta(2, 3, 8, 8), [1, 1]), "pool", (6, 64)),
        (aten.embedding.default, (meta(100, 16), meta(2, 3, dtype=torch.int64)), "embedding",
         (6, 16)),
        (aten.embedding_dense_backward.default,
         (meta(2, 3, 16), meta(2, 3, dtype=torch.int64), 100, -1, False), "embedding", (6, 16)),
        (aten.index.Tensor, (meta(9, 4, 16), [meta(5, dtype=torch.int64)]), "embedding", (5, 64)),
        (aten.gather.default, (meta(9, 4), 0, meta(2, 4, dtype=torch.int64)), "embedding", (8, 1)),
        (aten.add.Tensor, (meta(2, 3, 8), meta(2, 3, 8)), "elementwise", (48, 2)),
        (aten.mul.Tensor, (meta(2, 3, 8), meta(8)), "elementwise", (48, 1)),
        (aten.cat.default, ([meta(2, 3), meta(4, 3)],), "copy", (18,)),
        (aten.upsample_nearest2d.vec, (meta(1, 2, 4, 4), None, [2.0, 2.0]), "copy", (128,)),
        (aten.transpose.int, (meta(2, 3), 0, 1), "view", ()),
    ],
)  # fmt: skip
def test_class_and_sizes_of_an_operator(op, args, kind, sizes):
    made = cost(op, *args)
    assert (made.kind, tuple(made.dims.values())) == (kind, sizes)
    assert made.costed


def test_reshape_is_a_view_only_where_memory_lies_so():
    split = meta(2, 3, 24)[..., :8]
    assert cost(aten.reshape.default, split, [2, 3, 2, 4]).kind == "view"
    assert cost(aten.reshape.default, meta(2, 3, 8).transpose(1, 2), [2, 24]).kind == "copy"
    assert cost(aten.contiguous.default, split).kind == "copy"
    assert cost(aten.to.dtype, meta(4), torch.float32).kind == "view"
    assert cost(aten.to.dtype, meta(4), torch.bfloat16).kind == "copy"


def test_dropout_works_only_in_training():
    assert cost(aten.dropout.default, meta(8), 0.5, False).kind == "view"
    assert cost(aten.dropout.default, meta(8), 0.5, True).flops == 16


def test_an_operator_in_place_is_the_same_operator():
    assert cost(aten.relu_.default, meta(8)) == cost(aten.relu.default, meta(8))


def test_an_unknown_operator_is_other_and_uncosted():
    made = cost(aten.linalg_qr.default, meta(4, 4))
    assert (made.kind, made.costed, made.flops) == ("other", False, 0)


def test_every_rule_names_an_operator_that_exists():
    assert [name for name in RULES if "." not in name and not hasattr(aten, name)] == []


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_cost_their_products(layer, gates):
    module = layer(8, 16, num_layers=2, bidirectional=True, batch_first=True).eval()
    with torch.device("meta"):
        inputs = (torch.randn(3, 5, 8),)
    graph = to_graph(export(Model("rnn", module.to("meta"), inputs)), "rnn", 3)
    weights = 2 * gates * 16 * ((8 + 16) + (32 + 16))
    assert graph.flops_by_kind()["matmul"] == 2 * 3 * 5 * weights
    assert graph.uncosted_ops == []
