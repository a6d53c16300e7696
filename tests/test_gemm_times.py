"""Kernel models: closed forms, transfer between devices, choice of points, the shipped files."""

import numpy as np
import pytest

from hardware.catalog import find_profile
from hardware.kernel_model import (
    Chip,
    KernelModel,
    kernel_models,
    kriging,
    load_kernels,
    load_shapes,
    transfer_spread,
    transferred,
)
from hardware.provenance import Provenance
from scheduler.cost_model.kernel_fit import Sample, adapt, choose
from scheduler.cost_model.kernel_times import model_for
from scheduler.cost_model.kernels import FORMS, chip_of, kernel_seconds, product_seconds

CHIP = Chip(peak=1e15, bandwidth=3e12, units=132, cache=5e7)


def sizes(**given):
    return {"batch": np.array([1.0]), **{k: np.array(v, dtype=float) for k, v in given.items()}}


def usual(form):
    return dict(FORMS[form].usual)


def test_one_tile_more_than_a_wave_costs_a_whole_wave():
    constants = usual("product")
    for name in constants:
        if name.startswith("tile_") and name != "tile_128x128":
            constants[name] = 1e-9
    full, over = 128 * 132, 128 * 132 + 1
    chip = Chip(CHIP.peak, 1e18, CHIP.units, CHIP.cache)
    wave, two = (
        product_seconds(constants, sizes(m=[m], n=[128], k=[64]), chip)[0] for m in (full, over)
    )
    start = constants["start_s"]
    assert (two - start) / (wave - start) == pytest.approx(2, rel=0.05)


def test_large_products_reach_the_share_of_peak():
    constants = usual("product")
    m = 128 * 132 * 4
    seconds = product_seconds(constants, sizes(m=[m], n=[16384], k=[16384]), CHIP)[0]
    share = 2 * m * 16384 * 16384 / seconds / CHIP.peak
    best = constants["compute"] * max(v for k, v in constants.items() if k.startswith("tile_"))
    assert 0.8 * best < share <= best


def test_a_skinny_product_takes_its_weights_at_the_share_of_bandwidth():
    constants = usual("product")
    seconds = product_seconds(constants, sizes(m=[1], n=[65536], k=[16384]), CHIP)[0]
    share = 2 * 65536 * 16384 / (seconds - constants["start_s"]) / CHIP.bandwidth
    assert share == pytest.approx(constants["memory"], rel=0.05)


@pytest.mark.parametrize("name", ["H100-SXM5-80GB", "A100-SXM4-80GB", "H200-SXM-141GB"])
def test_times_are_finite_and_grow_with_the_sizes(name):
    profile = find_profile(name)
    model, chip = model_for("product", profile, "bfloat16")
    side = np.array([64.0, 256, 1024, 4096, 16384])
    seconds = kernel_seconds(model, {"batch": np.ones(5), "m": side, "n": side, "k": side}, chip)
    assert np.isfinite(seconds).all()
    assert (np.diff(seconds) > 0).all()


def test_every_form_is_shipped_for_every_measured_device():
    data = load_kernels()
    assert len(data.devices) == 10
    for form in FORMS:
        shapes = load_shapes(form)
        assert shapes.sizes.shape[1] == len(FORMS[form].sizes)
        for name, device in data.devices.items():
            assert set(device.constants[form]) == set(FORMS[form].usual)
            assert np.isfinite(shapes.residuals[name]).sum() > 4000


def test_kriging_takes_the_twin_and_opens_up_far_away():
    twin, far = Chip(1e15, 3.1e12, 132, 5e7), Chip(1e12, 1e10, 4, 1e6)
    simple, mean, share = kriging(CHIP, [twin, far])
    assert simple[0] > 0.85
    assert abs(simple[1]) < 0.01
    assert mean.sum() == pytest.approx(1)
    assert share < 0.15
    assert kriging(far, [CHIP])[2] == pytest.approx(1, abs=0.01)


def test_a_left_out_device_is_not_in_its_own_transfer():
    devices = dict(load_kernels().devices)
    device = devices.pop("H100-SXM5-80GB")
    model = transferred("product", device.chip, devices)
    assert "H100-SXM5-80GB" not in model.like
    assert max(model.like, key=model.like.get) == "H200-SXM-141GB"


def test_a_few_points_find_a_slower_device():
    model = KernelModel("product", usual("product"), {}, 0.1, Provenance("fitted", "test"))
    slower = {**model.constants, "memory": 0.6, "start_s": 6e-6}
    generator = np.random.default_rng(0)
    x = {name: 2.0 ** generator.integers(5, 14, 300) for name in "mnk"} | {"batch": np.ones(300)}
    measured = Sample(x, product_seconds(slower, x, CHIP), CHIP)
    chosen = choose(model, x, CHIP, 64)
    assert len(set(chosen)) == 64
    adapted = adapt(model, measured.rows(chosen), 0.5, 2.0)
    error = np.abs(adapted.seconds(x, CHIP) / measured.seconds - 1)
    before = np.abs(kernel_seconds(model, x, CHIP) / measured.seconds - 1)
    assert error.mean() < 0.04 < before.mean()


def test_points_are_chosen_by_sizes_alone():
    model, chip = model_for("product", find_profile("L40S"), "bfloat16")
    x = {name: np.array([64.0, 512, 4096, 8192]) for name in "mnk"} | {"batch": np.ones(4)}
    assert choose(model, x, chip, 3) == choose(model, x, chip, 3)
    assert len(choose(model, x, chip, 64)) == 4


def test_no_model_for_other_dtypes_and_devices_far_from_all():
    assert model_for("product", find_profile("H100-SXM5-80GB"), "float32") is None
    assert chip_of(find_profile("T4"), "bfloat16") is None


def test_a_model_refuses_constants_that_are_not_positive():
    with pytest.raises(ValueError, match="memory must be positive"):
        KernelModel("decode", {"memory": 0.0}, {}, 0.1, Provenance("fitted", "test"))


def test_a_transfer_stays_with_the_maker():
    data = load_kernels()
    h100 = data.devices["H100-SXM5-80GB"].chip
    transfer = kernel_models("H100-like", h100, "nvidia", data)
    assert set(transfer) == set(FORMS)
    assert "Arc-Pro-B60" not in transfer["product"].like
    for maker in ("amd", "intel", ""):
        assert kernel_models("H100-like", h100, maker, data) == {}
    assert model_for("product", find_profile("MI300X"), "bfloat16") is None


def test_a_transfer_tells_a_wider_spread_the_more_it_leaves_open():
    devices = {k: d for k, d in load_kernels().devices.items() if d.maker == "nvidia"}
    for form in FORMS:
        near, middle, far = (transfer_spread(form, share, devices) for share in (0, 0.5, 0.9))
        assert 0.03 < near < middle < far < 0.6


@pytest.mark.parametrize("form", list(FORMS))
def test_the_spread_of_a_transfer_is_that_of_devices_left_out(form):
    devices = {k: d for k, d in load_kernels().devices.items() if d.maker == "nvidia"}
    for name, device in devices.items():
        others = {k: d for k, d in devices.items() if k != name}
        told = transferred(form, device.chip, others).spread
        assert 0.4 < told / device.transfer[form] < 2.5
