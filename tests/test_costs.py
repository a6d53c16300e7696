import numpy as np
import pytest
from conftest import LITERAL, make_cluster, make_graph, make_op, make_profile

from hardware.cluster import Cluster
from hardware.profile import Provenance
from scheduler.cost_model.costs import CostTable, cost_table, op_seconds
from scheduler.cost_model.features import FEATURES, OpColumns, feature_matrix
from scheduler.cost_model.fit import fit
from scheduler.ir.graph import Graph, Tensor

CALIBRATED = Provenance("calibrated", "test")


def matmul(name, m, n=64, k=64, **changes):
    dims = {"batch": 1, "m": m, "n": n, "k": k}
    return make_op(
        name, ["x"], flops=2.0 * m * n * k, bytes_read=4.0 * (m * k + k * n),
        bytes_written=4.0 * m * n, dims=dims, **changes,
    )  # fmt: skip


def graph_of(*ops):
    return Graph("test", ops, (Tensor("x", (1, 10), "float32"),), (ops[-1].outputs[0].name,))


def modelled(profile, factor=3.0):
    """The profile with a model of matmul that says: `factor` times the roofline."""
    points = np.log(2.0 ** np.arange(0, 12))[:, None]
    model = fit(["log_m"], points, np.full(12, np.log(factor)), CALIBRATED)
    return make_profile(profile.name, op_times={"matmul": model})


def test_a_class_with_a_model_is_roofline_times_its_factor_and_the_rest_is_roofline():
    plain = make_profile()
    product, rest = matmul("a", 256), make_op("b", ["t_a"], kind="copy", bytes_read=1e6)
    table = cost_table(graph_of(product, rest), Cluster("c", {"d": modelled(plain)}))
    assert table.seconds[0, 0] == pytest.approx(3 * op_seconds(product, plain), rel=0.02)
    assert table.seconds[1, 0] == op_seconds(rest, plain)
    assert table.levels == {"d": {"matmul": "calibrated"}}
    assert (table.low_s[0] < table.seconds[0]).all()
    assert (table.seconds[0] < table.high_s[0]).all()


def test_an_operator_without_the_sizes_falls_back_to_the_roofline():
    plain, bare = make_profile(), make_op("a", ["x"], flops=1e6)
    table = cost_table(graph_of(bare), Cluster("c", {"d": modelled(plain)}))
    assert table.seconds[0, 0] == op_seconds(bare, plain)


def test_devices_of_one_profile_cost_the_same_and_levels_stand_by_device():
    plain = make_profile()
    cluster = Cluster("c", {"a": plain, "b": modelled(plain), "c": plain})
    table = cost_table(graph_of(matmul("o", 64)), cluster)
    assert table.seconds[0, 0] == table.seconds[0, 2] < table.seconds[0, 1]
    assert table.levels == {"a": {}, "b": {"matmul": "calibrated"}, "c": {}}
    assert table.origin("a") == str(plain.provenance)
    assert table.origin("b").endswith("; matmul: calibrated")
    assert table.levels_of(["a", "b"]) == f"calibrated and {plain.provenance.level}"


def test_measured_tables_need_no_interval_and_get_that_of_their_level():
    measured = Provenance("measured", "test")
    table = CostTable(("a", "b"), np.ones((2, 2)), {"a": measured, "b": LITERAL})
    assert table.low_s.tolist() == [[0.85, 1.0]] * 2
    assert table.high_s.tolist() == [[1.25, 1.0]] * 2
    assert table.band({"a": [0, 1]}) == (0.85, 1.25)
    assert table.band({"b": [0, 1]}) == (1.0, 1.0)
    assert table.band({"a": [0], "b": [1]}) == (0.925, 1.125)
    assert table.band({}) == (1.0, 1.0)


def test_own_errors_average_out_in_a_sum_and_common_ones_do_not():
    def relative(level, num):
        seconds = np.ones((num, 1))
        source = {"a": Provenance(level, "test")}
        table = CostTable(("a",), seconds, source, 0.8 * seconds, 1.2 * seconds)
        low, total, high = table.sum_s("a")
        return (total - low) / total, (high - total) / total

    assert relative("datasheet", 100) == pytest.approx((0.2, 0.2))
    assert relative("calibrated", 1) == pytest.approx((0.2, 0.2))
    assert relative("calibrated", 10_000)[0] == pytest.approx(0.2 * 0.5**0.5, rel=0.01)


def test_operators_of_another_level_average_out_by_their_own_share():
    seconds = np.ones((200, 1))
    common = np.concatenate([np.ones((100, 1)), np.zeros((100, 1))])
    source = {"a": Provenance("datasheet", "test")}
    table = CostTable(("a",), seconds, source, 0.8 * seconds, 1.2 * seconds, common)
    low, total, high = table.sum_s("a")
    expected = (20**2 + 100 * 0.2**2) ** 0.5
    assert (total - low, high - total) == pytest.approx((expected, expected))


def test_a_sum_over_some_rows_leaves_out_what_a_device_cannot_run():
    seconds = np.array([[1.0], [2.0], [np.inf]])
    table = CostTable(("a",), seconds, {"a": LITERAL})
    assert table.sum_s("a", [1, 2]) == (2.0, 2.0, 2.0)


def test_intervals_must_hold_the_times():
    ones = np.ones((1, 1))
    with pytest.raises(ValueError, match="must lie in their intervals"):
        CostTable(("a",), ones, {"a": LITERAL}, 2 * ones, 3 * ones)


def test_every_feature_is_a_finite_number_on_an_operator_that_carries_its_sizes():
    ops = OpColumns("matmul", "float32", (matmul("a", 1), matmul("b", 4096, 4096, 4096)))
    names = [*FEATURES.keys() - {"long_rows"}, "log_m", "log_n", "log_k", "log_batch"]
    matrix = feature_matrix(names, ops, make_profile(num_compute_units=8, cache_bytes=10**6))
    assert matrix.shape == (2, len(names))
    assert np.isfinite(matrix).all()


def test_an_unknown_feature_names_the_nearest():
    ops = OpColumns("matmul", "float32", (matmul("a", 1),))
    with pytest.raises(ValueError, match="did you mean 'param_share'"):
        feature_matrix(["params_share"], ops, make_profile())


def test_an_unsupported_dtype_is_never_and_refused_where_no_device_has_it():
    half = graph_of(matmul("a", 8, dtype="bfloat16"))
    able = make_profile("able", peak_flops_per_s={"bfloat16": 1e9})
    table = cost_table(half, Cluster("c", {"a": make_profile(), "b": able}))
    assert np.isinf(table.seconds[0, 0])
    assert np.isfinite(table.seconds[0, 1])
    with pytest.raises(ValueError, match="no device supports dtype bfloat16"):
        cost_table(half, make_cluster())


def test_the_old_graphs_without_sizes_cost_as_before():
    table = cost_table(make_graph({"a": [], "b": ["a"]}), make_cluster())
    assert table.seconds.shape == (2, 2)
    assert (table.seconds > 0).all()
