from dataclasses import replace

import numpy as np
import pytest

from hardware.catalog import find_profile, load_profiles
from hardware.efficiency import LinearModel
from hardware.fitted import FittedModels, load_fitted, with_fitted
from hardware.profile import DeviceProfile
from hardware.provenance import Provenance
from scheduler.cost_model.costs import class_seconds, plain_roofline_seconds
from scheduler.cost_model.features import OpColumns
from scheduler.cost_model.pooled import Prior, Run, fit_pooled, predict_pooled
from scheduler.ir.graph import Op

FITTED = load_fitted()["gpu-float32"]
GPUS = [p for p in load_profiles().values() if FITTED.suit(p)]


def matmul(m: int, n: int = 1024, k: int = 1024, batch: int = 1) -> Op:
    read, written = 4.0 * batch * (m * k + k * n), 4.0 * batch * m * n
    dims = {"batch": batch, "m": m, "n": n, "k": k}
    flops = 2.0 * batch * m * n * k
    return Op(f"{m}", "matmul", flops, read, written, "float32", (), (), dims=dims)


def pointwise(size: int) -> Op:
    dims = {"size": size, "operands": 1}
    return Op(f"{size}", "elementwise", size, 4.0 * size, 4.0 * size, "float32", (), (), dims=dims)


def rows(kind: str, num: int, columns: int = 1024) -> Op:
    size, dims = 4.0 * num * columns, {"rows": num, "columns": columns}
    return Op(f"{num}", kind, size, size, size, "float32", (), (), dims=dims)


def seconds(ops: list[Op], profile: DeviceProfile) -> np.ndarray:
    return class_seconds(OpColumns(ops[0].kind, "float32", tuple(ops)), profile)[1]


def test_the_shipped_models_say_where_they_come_from_and_that_they_are_fitted():
    assert FITTED.fitted_on
    for key, model in FITTED.models.items():
        assert key.endswith("/float32")
        assert model.provenance.level == "fitted"
        assert "NeuSight" in model.provenance.source


def test_catalog_gpus_carry_them_and_other_devices_do_not():
    assert {"H100-SXM5-80GB", "L4", "A100-PCIe-80GB", "T4"} <= {p.name for p in GPUS}
    assert all("matmul/float32" in p.op_times for p in GPUS)
    assert not find_profile("TPU-v5e").op_times


@pytest.mark.parametrize("profile", GPUS, ids=lambda p: p.name)
def test_predictions_are_finite_grow_with_size_and_lie_in_their_interval(profile):
    sizes = [2**i for i in range(5, 18)]
    families = [
        [matmul(m) for m in sizes],
        [matmul(512, 512, 64, batch) for batch in sizes],
        [pointwise(size * 1024) for size in sizes],
        *[[rows(kind, num) for num in sizes] for kind in ("softmax", "norm")],
    ]
    for ops in families:
        columns = OpColumns(ops[0].kind, "float32", tuple(ops))
        low, value, high, level = class_seconds(columns, profile)
        assert level == "fitted"
        assert np.isfinite(value).all()
        assert (low < value).all()
        assert (value < high).all()
        assert (value[1:] > 0.85 * value[:-1]).all()  # fuller tiles may outweigh more of them
        assert value[-1] > 5 * value[0]


@pytest.mark.parametrize("profile", GPUS, ids=lambda p: p.name)
def test_large_operators_take_between_one_and_six_times_the_roofline(profile):
    for op in (matmul(8192, 8192, 8192), pointwise(2**28), rows("softmax", 2**18)):
        columns = OpColumns(op.kind, "float32", (op,))
        ratio = class_seconds(columns, profile)[1][0] / plain_roofline_seconds(columns, profile)[0]
        assert 1.0 <= ratio <= 6.0


def test_a_board_that_feeds_half_the_rate_takes_about_twice_as_long():
    t4 = find_profile("T4")
    strong, op = replace(t4, power_w=700), [matmul(8192, 8192, 8192)]
    assert seconds(op, t4)[0] == pytest.approx(1.9 * seconds(op, strong)[0], rel=0.25)


def test_products_are_slower_where_arithmetic_takes_every_issue_slot():
    v100, op = find_profile("V100-PCIe-32GB"), [matmul(8192, 8192, 8192)]
    full = seconds(op, replace(v100, issue_share=1.0))[0] / seconds(op, v100)[0]
    assert 1.1 < full < 1.5


def test_a_dtype_or_device_without_fitted_models_keeps_its_datasheet():
    t4 = find_profile("T4")
    half = replace(matmul(4096), dtype="float16")
    assert class_seconds(OpColumns("matmul", "float16", (half,)), t4)[3] == "datasheet"
    unknown = replace(t4, process_nm=None, op_times={})
    assert with_fitted(unknown).op_times == {}


def test_models_for_a_named_device_go_before_those_of_its_kind():
    named = FittedModels("gpu", {}, devices=("T4",))
    assert named.suit(find_profile("T4"))
    assert not named.suit(find_profile("L4"))


def test_what_a_profile_has_of_its_own_stays():
    own = LinearModel((), 0.5, (), 0.1, Provenance("calibrated", "here"))
    profile = with_fitted(replace(find_profile("T4"), op_times={"matmul/float32": own}))
    assert profile.op_times["matmul/float32"] is own
    assert "softmax/float32" in profile.op_times


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weights": (1.0, 2.0)}, "weights must be 1"),
        ({"intercept": float("nan")}, "finite"),
        ({"spread": 0.0}, "spread must be positive"),
    ],
)
def test_a_linear_model_refuses_what_it_cannot_use(change, word):
    good = LinearModel(("ramp",), 0.1, (0.2,), 0.1, Provenance("fitted", "x"))
    with pytest.raises(ValueError, match=word):
        replace(good, **change)


def synthetic_device(number: int) -> DeviceProfile:
    share = 1.0 if number % 2 else 0.5
    peak, bandwidth = 5e12 * (1 + number), 3e11 * (1 + number)
    return replace(
        find_profile("V100-PCIe-32GB"),
        name=f"device {number}",
        peak_flops_per_s={"float32": peak},
        memory_bytes_per_s=bandwidth,
        num_compute_units=20 * (1 + number),
        issue_share=share,
        power_w=1000,
        op_times={},
    )


PRIORS = {"matmul": Prior((0.0, 0.3), {"issue_bound": (0.0, 0.3), "idle_units": (0.0, 0.3)})}
TRUE = {"matmul": np.array([0.2, 0.3, 0.5])}


def synthetic_run(profile: DeviceProfile, rng: np.random.Generator) -> Run:
    """Operators by a known law, with noise, and an offset of the device's own."""
    ops = tuple(matmul(int(2 ** rng.uniform(6, 13)), 2048, 1024) for _ in range(40))
    exact = predict_pooled(ops, profile, PRIORS, TRUE) * np.exp(rng.normal(0, 0.05))
    alone = exact * np.exp(rng.normal(0, 0.05, len(ops)))
    counts = rng.integers(1, 20, len(ops)).astype(float)
    return Run(profile, ops, counts, alone, float(counts @ exact))


def test_a_device_left_out_is_predicted_from_the_others():
    rng = np.random.default_rng(0)
    runs = [synthetic_run(synthetic_device(i), rng) for i in range(7)]
    for left_out in runs:
        others = [run for run in runs if run is not left_out]
        found = fit_pooled(others, PRIORS)
        whole = left_out.counts @ predict_pooled(left_out.ops, left_out.profile, PRIORS, found)
        assert whole == pytest.approx(left_out.seconds, rel=0.2)


def test_without_measurements_a_fit_is_its_prior():
    run = synthetic_run(synthetic_device(0), np.random.default_rng(1))
    silent = replace(run, op_seconds=np.zeros(len(run.ops)), seconds=0.0)
    assert fit_pooled([silent], PRIORS)["matmul"] == pytest.approx(np.zeros(3), abs=1e-6)


def test_one_odd_device_does_not_move_what_the_others_agree_on():
    rng = np.random.default_rng(2)
    runs = [synthetic_run(synthetic_device(i), rng) for i in range(6)]
    odd = replace(runs[0], op_seconds=4 * runs[0].op_seconds, seconds=4 * runs[0].seconds)
    moved = fit_pooled([odd, *runs[1:]], PRIORS)["matmul"] - fit_pooled(runs, PRIORS)["matmul"]
    assert np.abs(moved).max() < 0.35
