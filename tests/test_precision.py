import pytest

from hardware.cluster import Cluster
from hardware.profile import DeviceProfile, Provenance
from scheduler.cost_model.costs import cost_table
from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.ir.precision import Precision, Pruning, pruned, unsupported, with_precision
from ui.model_spec import ModelSpec

SOURCE = Provenance("datasheet", "test")


def profile(name, **peaks):
    return DeviceProfile(name, "gpu", peaks, 2**34, 1e9, SOURCE)


def tensor(name, *shape, dtype="float32"):
    return Tensor(name, shape, dtype)


@pytest.fixture
def graph():
    """ids -> embedding (100 rows of 8) -> norm -> linear 8x8 -> softmax, for four tokens."""
    row = 4 * 8 * 4  # bytes of four rows of eight float32

    def op(name, kind, read, inputs, weights, flops=0.0, **more):
        out = (tensor(name, 4, 8),)
        return Op(name, kind, flops, read, row, "float32", inputs, out, weights, **more)

    ops = (
        op("embedding", "embedding", 32, ("ids",), {"table": 3200}, weight_share=0.04),
        op("norm", "norm", row, ("embedding",), {"scale": 32}),
        op("linear", "matmul", row, ("norm",), {"w": 256}, 512.0, dims={"m": 4, "n": 8, "k": 8}),
        op("softmax", "softmax", row, ("linear",), {}),
    )
    return Graph("g", ops, (tensor("ids", 4, dtype="int64"),), ("softmax",), 1, 872)


def changed(graph, weights=None, activations=None):
    return with_precision(graph, Precision(weights, activations)).by_name


def test_int8_weights_are_read_as_bytes_and_computed_in_bfloat16(graph):
    ops = changed(graph, "int8", "bfloat16")
    assert ops["linear"].dtype == "bfloat16"
    assert ops["linear"].weights == {"w": 64}
    assert ops["linear"].bytes_read == 64
    assert ops["linear"].bytes_written == 64
    assert ops["linear"].outputs[0].dtype == "bfloat16"
    assert ops["norm"].weights == {"scale": 32}, "norms keep their parameters at 8 bits"
    assert ops["linear"].flops == 512


def test_an_embedding_reads_rows_in_the_format_of_the_table(graph):
    op = changed(graph, "int8", "bfloat16")["embedding"]
    assert op.weights == {"table": 800}
    assert op.bytes_read == 32, "the ids stay int64"
    assert op.params_read == 32, "four rows, a byte a number"
    assert op.bytes_written == 64


@pytest.mark.parametrize(
    ("weights", "activations", "arithmetic", "weight_bytes", "output_bytes"),
    [
        (None, None, "float32", 256, 128),
        ("tf32", None, "tfloat32", 256, 128),
        ("tf32", "tf32", "tfloat32", 256, 128),
        ("bfloat16", None, "float32", 128, 128),
        (None, "float16", "float16", 256, 64),
        ("int8", None, "float32", 64, 128),
        ("int8", "int8", "int8", 64, 32),
        ("fp8", "fp8", "float8", 64, 32),
        ("float16", "fp8", "float16", 128, 32),
    ],
)
def test_arithmetic_and_bytes(graph, weights, activations, arithmetic, weight_bytes, output_bytes):
    op = changed(graph, weights, activations)["linear"]
    assert op.dtype == arithmetic
    assert op.param_bytes == weight_bytes
    assert op.outputs[0].num_bytes == output_bytes


def test_two_kinds_of_eight_bits_do_not_mix():
    with pytest.raises(ValueError, match="weights in int8 and activations in fp8 have no common"):
        Precision("int8", "fp8")


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(ValueError, match="activations: unknown dtype 'bfloat'; did you mean 'bfl"):
        Precision(activations="bfloat")


def test_structured_pruning_removes_work_and_parameters(graph):
    after = pruned(graph, Pruning(0.25, "structured"))
    op = after.by_name["linear"]
    assert (op.flops, op.weights, op.dims["n"], op.dims["k"]) == (384, {"w": 192}, 6, 8)
    assert after.by_name["embedding"] == graph.by_name["embedding"]
    assert after.num_params == 872 - 16


@pytest.mark.parametrize(
    ("ratio", "weights", "held"),
    [(0.5, None, 128 + 8), (0.75, "int8", 16 + 8), (0.1, "int8", 64), (0.01, None, 256)],
)
def test_unstructured_pruning_only_makes_weights_smaller(graph, ratio, weights, held):
    """Those left over and a bit for each of 64; dense where that is smaller."""
    stored = with_precision(graph, Precision(weights=weights))
    op = pruned(stored, Pruning(ratio, "unstructured"), weights).by_name["linear"]
    assert op.weights == {"w": held}
    assert op.flops == 512


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_leaves_something(ratio):
    with pytest.raises(ValueError, match="ratio must be at least 0 and below 1"):
        Pruning(ratio)


def test_a_format_that_a_device_lacks_is_said(graph):
    devices = {"new": profile("h", bfloat16=1e12, int8=1e12), "old": profile("v", float32=1e12)}
    both = Cluster("c", devices)
    halved = with_precision(graph, Precision("bfloat16", "bfloat16"))
    assert unsupported(halved, both) == [
        "device 'old' (v) has no figure for bfloat16, it has float32: "
        "1 operators cannot run there, 'linear' is the first"
    ]
    assert cost_table(halved, both).seconds[2].tolist()[1] == float("inf")
    with pytest.raises(ValueError, match="operator 'linear': no device supports dtype float8; "):
        cost_table(with_precision(graph, Precision("fp8", "fp8")), both)


def test_formats_change_predicted_times(graph):
    cluster = Cluster("c", {"d": profile("d", float32=1e6, bfloat16=4e6)})
    slow, fast = (
        cost_table(g, cluster).seconds[2, 0]
        for g in (graph, with_precision(graph, Precision("bfloat16", "bfloat16")))
    )
    assert slow == pytest.approx(4 * fast)


def test_a_what_if_is_worded_where_it_is_shown():
    model = ModelSpec(
        "zoo:gpt2", precision=Precision(weights="int8"), pruning=Pruning(0.5, "unstructured")
    )
    assert str(model) == "zoo:gpt2, batch 1, float32, weights int8, unstructured pruning of 50%"
    assert str(ModelSpec("zoo:gpt2")) == "zoo:gpt2, batch 1, float32"
