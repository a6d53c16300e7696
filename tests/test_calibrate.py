import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_graph

from executor import cache, calibrate, op_models
from executor import timing as executor_timing
from executor.alone import Subject, distinct_recipes, measure_beside
from executor.devices import LocalDevice
from executor.loaded import load_model
from executor.measure import DeviceFigures
from executor.op_cases import CLASSES
from executor.op_models import Judged, interval_factor, measure_op_models, widened
from executor.recipes import Arena, Recipe, calls, dense, describe
from executor.timing import Load, Sample, Timing, calmest, time_in_turn, timing, undisturbed
from executor.whole import save_whole
from executor.worker import Context
from executor.workers import Workers
from hardware.catalog import read_profiles
from hardware.cluster import Cluster
from hardware.profile import DeviceProfile, Provenance
from scheduler.cost_model.costs import cost_table, roofline_seconds
from scheduler.cost_model.features import OpColumns, feature_matrix
from ui.calibration import check_origin, judgement, left_out, profile_text
from ui.this_machine import busiest

SOURCE = Provenance("calibrated", "this machine")
PROFILE = DeviceProfile(
    "one core", "cpu", {"float32": 5e10}, 2**34, 1e10, SOURCE, launch_overhead_s=2e-6
)
DEVICE = LocalDevice("cpu0", "cpu", "cpu", (0,), 2**34)


def make_context(device=DEVICE):
    return Context(device, 0, {}, {}, {}, lambda share: None)


@pytest.fixture(scope="module")
def found():
    """Calibrated on synthetic times: roofline times a smooth factor per class, 3 % noise."""
    patch = pytest.MonkeyPatch()
    rng = np.random.default_rng(0)
    measured = []

    def synthetic(context, arena, picks):
        for bench, i in picks:
            one = OpColumns(bench.ops.kind, bench.ops.dtype, (bench.ops.ops[i],))
            work = float(np.log(bench.roofline_s[i]))
            factor = np.exp(0.4 * np.tanh((work + 9) / 3) + 0.03 * rng.standard_normal())
            bench.seconds[i] = float(roofline_seconds(one, PROFILE)[0] * factor)
            measured.append(bench.case.key)

    patch.setattr(op_models, "_measure", synthetic)
    yield measure_op_models(make_context(), PROFILE, 0), measured
    patch.undo()


def test_at_most_300_points_and_every_class_has_its_own(found):
    _, measured = found
    assert len(measured) <= 300
    assert {case.key: measured.count(case.key) >= 8 for case in CLASSES} == {
        case.key: True for case in CLASSES
    }


def test_the_fit_holds_on_points_held_out_and_the_intervals_cover_them(found):
    models, _ = found
    every = judgement(models.judged)["all"]
    assert every["points"] == len(models.judged) >= 50
    assert every["median_error"] < 0.06
    assert 0.8 <= every["coverage"] <= 1.0
    assert left_out(models)["all"]["points"] == sum(len(m.points) for m in models.models.values())


def test_the_profile_file_is_read_back_as_it_was(found, tmp_path):
    models, _ = found
    profile = DeviceProfile(
        "one core", "cpu", {"float32": 5e10}, 2**34, 1e10, SOURCE, op_times=dict(models.models)
    )
    path = tmp_path / "mine.yaml"
    path.write_text(profile_text(profile))
    assert read_profiles(path) == {"one core": profile}


def test_intervals_are_scaled_so_that_nine_of_ten_points_lie_inside(found):
    away = np.linspace(-2, 2, 101)
    points = [Judged("conv", float(np.exp(x)), 1.0, 1 / np.e, float(np.e)) for x in away]
    factor = interval_factor(points)
    assert np.mean(np.abs(away) <= factor) == pytest.approx(0.9, abs=0.03)
    models = found[0].models
    wide = widened(models, 2.0)
    assert all(wide[k].interval_scale == 2 * models[k].interval_scale for k in models)


def test_a_profile_from_elsewhere_is_refused_or_said(tmp_path, capsys):
    with pytest.raises(ValueError, match="comes from 'this machine', this machine is 'another'"):
        check_origin(tmp_path, PROFILE, "another", accept=False)
    check_origin(tmp_path, PROFILE, "another", accept=True)
    assert "as if they were of this machine" in " ".join(capsys.readouterr().err.split())
    check_origin(tmp_path, PROFILE, "this machine", accept=False)
    assert capsys.readouterr().err == ""


def test_a_corrupt_profile_in_the_cache_is_not_trusted():
    calibrate.keep(DEVICE, PROFILE)
    assert calibrate.known_profile(DEVICE) == PROFILE
    (path,) = cache.cache_folder().glob("*-classes-cpu-1.json")
    path.write_text(path.read_text().replace("10000000000.0", "NaN"))
    assert calibrate.known_profile(DEVICE) is None
    path.write_text("{")
    assert calibrate.known_profile(DEVICE) is None
    path.unlink()


def test_weights_are_others_each_time_and_activations_stay():
    recipe = Recipe("aten.linear.default", (dense(4, 8), dense(16, 8, weight=True)))
    ready = calls(recipe, Arena(64 * 1024, "cpu"))
    assert len(ready) == 32
    assert len({call.args[0].data_ptr() for call in ready}) == 1
    assert len({call.args[1].data_ptr() for call in ready}) == 32
    assert ready[0]().shape == (4, 16)


def test_recipes_are_seen_as_capture_sees_them():
    weight = dense(16, 8, 3, 3, weight=True)
    args = (dense(2, 8, 10, 10), weight, None, (1, 1), (1, 1), (1, 1), 1)
    (op,) = describe([Recipe("aten.conv2d.default", args)])
    assert (op.kind, op.flops) == ("conv", 2 * 2 * 16 * 100 * 8 * 9)
    assert op.param_bytes == 4 * 16 * 8 * 9
    assert op.dims["out_pixels"] == 100


def test_an_unknown_operator_is_said():
    with pytest.raises(ValueError, match="unknown operator 'aten"):
        describe([Recipe("aten.linaer.default", (dense(1),))])


def test_operators_are_timed_in_turn_and_the_median_counts():
    order = []
    operators = [[lambda i=i: order.append(i)] for i in range(3)]
    found = time_in_turn(make_context(), operators, 0.0)
    assert order == [0, 1, 2] * 7
    assert all(t.seconds >= 0 for t in found)
    assert timing([1.0, 2.0, 3.0, 4.0, 100.0]) == Timing(3.0, 2.0, 4.0)


def test_samples_during_which_the_thread_lost_its_core_do_not_count():
    samples = [Sample(1e-3, 1e-5), Sample(1.4e-3, 4e-4), Sample(1e-6, 4e-6)]
    assert undisturbed(samples) == [1e-3, 1e-6]
    assert calmest(samples * 3) == [1e-3, 1e-6] * 3
    worse = [Sample(1.0 + i, 0.2 * i) for i in range(8)]
    assert calmest(worse) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_features_tell_the_operators_of_a_class_apart():
    x = dense(2, 8, 10, 10)
    ops = describe(
        [
            Recipe("aten.max_pool2d.default", (x, (2, 2), (2, 2), (0, 0))),
            Recipe("aten.avg_pool2d.default", (x, (2, 2), (2, 2), (0, 0))),
        ]
    )
    pools = OpColumns("pool", "float32", tuple(ops))
    assert feature_matrix(("on_max_pool2d",), pools, PROFILE).tolist() == [[1.0], [0.0]]
    ops = describe([Recipe("aten.gelu.default", (x,)), Recipe("aten.add.Tensor", (x, x))])
    pointwise = OpColumns("elementwise", "float32", tuple(ops))
    assert feature_matrix(("function", "on_gelu"), pointwise, PROFILE).tolist() == [[1, 1], [0, 0]]


def test_the_module_as_written_is_measured_beside_the_exported_one_and_its_operators(tmp_path):
    with Workers((DEVICE,)) as workers:
        model = load_model("zoo:cifar10-cnn", 1, "float32", 1)
        save_whole(workers, model.whole, model.batches, DEVICE.name)
        recipes, which = distinct_recipes(model.whole)
        subject = Subject("zoo:cifar10-cnn", 1, workers.folder, 2**20)
        found = workers.call(DEVICE.name, measure_beside, subject, recipes, 0.01)
    assert len(found.eager_s) == len(found.whole_s) == len(found.op_s) >= 3
    assert {len(times) for times in found.op_s} == {len(recipes)}
    assert min(found.eager_s + found.whole_s + found.op_s[0]) > 0
    assert max(which) == len(recipes) - 1


def test_slow_calls_take_the_time_they_take():
    two = LocalDevice("cpu", "cpu", "cpu", (0, 1), 2**34)
    (found,) = time_in_turn(make_context(two), [[lambda: time.sleep(0.005)]], 0.0)
    assert found.seconds >= 0.005


def test_on_one_core_the_time_that_others_take_it_away_does_not_count():
    (found,) = time_in_turn(make_context(), [[lambda: time.sleep(0.005)]], 0.0)
    assert found.seconds < 0.0025


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_operators_are_timed_by_events():
    gpu = LocalDevice("gpu0", "gpu", "cuda:0", (0,), 2**34)
    recipe = Recipe("aten.linear.default", (dense(512, 512), dense(512, 512, weight=True)))
    (found,) = time_in_turn(make_context(gpu), [calls(recipe, Arena(2**24, "cuda:0"))], 0.1)
    assert 1e-6 < found.seconds < 0.01


class Shares:
    """A machine of which others take these shares, one after another."""

    def __init__(self, monkeypatch, *shares):
        self.left = list(shares)
        monkeypatch.setattr(executor_timing, "Load", lambda: self)

    def share(self):
        return self.left.pop(0)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((0.02,), (1, 0.0)), ((0.6, 0.05), (2, 0.0)), ((0.6, 0.4, 0.5), (2, 0.4))],
)
def test_a_busy_machine_is_measured_again_and_the_calmest_attempt_counts(
    monkeypatch, shares, expected
):
    Shares(monkeypatch, *shares)
    attempts = iter((1, 2, 3))
    assert executor_timing.calmly(lambda: next(attempts), [0.0] * len(shares)) == expected


def test_load_is_what_others_took_of_all_cores(monkeypatch):
    figures = iter([(100.0, 40.0, 10.0), (108.0, 46.0, 11.0), (108.0, 46.0, 11.0)])
    monkeypatch.setattr(Load, "_figures", lambda self: next(figures))
    monkeypatch.setattr(executor_timing.psutil, "cpu_count", lambda: 4)
    load = Load()
    assert load.share() == pytest.approx(5 / 8)
    assert load.others() == pytest.approx(2.5)


def test_a_profile_of_a_busy_machine_says_so_and_may_be_too_slow():
    busy = replace(SOURCE, busy_share=0.6)
    assert str(busy).endswith("while others kept 60% of the machine busy")
    low, high = SOURCE.band
    assert busy.band == (pytest.approx(0.4 * low), high)
    graph = make_graph({"one": []}, kind="elementwise", bytes_read=8e6)
    table = cost_table(graph, Cluster("one", {"cpu0": PROFILE}))
    doubtful = Cluster("one", {"cpu0": replace(PROFILE, provenance=busy)})
    wide = cost_table(graph, doubtful)
    assert wide.low_s[0, 0] == pytest.approx(0.4 * table.low_s[0, 0])
    assert wide.seconds[0, 0] == table.seconds[0, 0]
    assert busiest(doubtful) == 0.6
    with pytest.raises(ValueError, match="busy_share must be from 0 and below 1, got 1"):
        replace(SOURCE, busy_share=1.0)


def test_devices_measured_beside_others_are_marked_and_links_too(monkeypatch):
    kept = {}
    monkeypatch.setattr(calibrate.cache, "store", lambda name, value: kept.update({name: value}))
    monkeypatch.setattr(calibrate, "local_devices", lambda: [DEVICE, replace(DEVICE, name="cpu1")])
    monkeypatch.setattr(calibrate, "known_profile", lambda device: None)
    monkeypatch.setattr(calibrate, "calmly", lambda measure: (measure(), 0.5))
    rates = dict.fromkeys(("copy", "elementwise"), 10000000000.0)
    figures = DeviceFigures({("matmul", "float32"): 1e11}, rates, 1e-6)

    class Fake:
        folder = None

        def call(self, name, function):
            return figures

        def call_all(self, function, args):
            return {key: [1e-05, 0.0001, 0.001] for key in args}

    cluster = calibrate.calibrate(Fake(), lambda share: None)
    assert {p.provenance.busy_share for p in cluster.devices.values()} == {0.5}
    assert {link.provenance.busy_share for link in cluster.links} == {0.5}
    assert kept[calibrate.CACHE_NAME] == cluster
