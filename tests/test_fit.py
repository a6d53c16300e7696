from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.documents import parse, read_raw, to_plain, write_text
from hardware.efficiency import EfficiencyModel
from hardware.provenance import Provenance
from scheduler.cost_model.fit import farthest, fit, leave_out, most_telling
from scheduler.cost_model.gaussian_process import interval, predict

SOURCE = Provenance("calibrated", "test")
NAMES = ("a", "b", "c")


def truth(x):
    return 0.4 * np.sin(x[:, 0]) + 0.1 * x[:, 1] - 0.5


def sample(num, seed=0, noise=0.03):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-4, 4, (num, 3))
    return x, truth(x) + noise * rng.standard_normal(num)


@pytest.fixture(scope="module")
def model():
    return fit(NAMES, *sample(80), SOURCE)


def test_the_fit_follows_the_function_and_its_interval_covers_nine_of_ten(model):
    x, y = sample(2000, seed=1)
    mean, std = predict(model, x)
    assert np.abs(mean - y).mean() < 0.04
    assert 0.85 < (np.abs(mean - y) <= interval(model, std)).mean() < 0.95


def test_leaving_points_out_in_closed_form_equals_fitting_without_them(model):
    groups = [i // 8 for i in range(80)]
    for labels in (None, groups):
        errors, std = leave_out(model, labels)
        out = np.array([i for i in range(80) if (i == 3 if labels is None else labels[i] == 0)])
        rest = [i for i in range(80) if i not in out]
        points, residuals = np.array(model.points), np.array(model.residuals)
        # The linear part is about the points' middle: put it back where it was.
        centre = points.mean(axis=0)
        without = replace(
            model,
            points=tuple(map(tuple, points[rest])),
            residuals=tuple(residuals[rest]),
        )
        assert np.abs(points[rest].mean(axis=0) - centre).max() < 1
        mean, deviation = predict(without, points[out])
        assert residuals[out] - mean == pytest.approx(errors[out], abs=0.02)
        assert deviation == pytest.approx(std[out], rel=0.1)


def test_beyond_the_points_the_factor_stays_and_the_doubt_grows(model):
    edge = np.array(model.points).max(axis=0)
    (near, far), (sure, unsure) = predict(model, np.array([edge, edge + 20]))
    assert far == pytest.approx(near)
    assert unsure > 2 * sure


def test_round_trip_through_yaml(model, tmp_path):
    path = tmp_path / "model.yaml"
    write_text(path, yaml.safe_dump(to_plain(model)))
    assert parse(read_raw(path), EfficiencyModel, "model") == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 0.0}, "noise must be positive"),
        ({"signal": float("nan")}, "signal"),
        ({"scales": [1.0]}, "scales must be 3, got 1"),
        ({"residuals": [1.0]}, "residuals must be 80, got 1"),
        ({"slopes": [1.0]}, "unknown key 'slopes'; did you mean 'slope'"),
        ({"points": []}, "at least one feature and one point"),
    ],
)
def test_impossible_models_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        parse({**to_plain(model), **change}, EfficiencyModel, "model")


def test_figures_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        fit(["a"], np.array([[np.nan]]), np.zeros(1), SOURCE)
    with pytest.raises(ValueError, match="points must be"):
        fit(["a", "b"], np.zeros((2, 1)), np.zeros(2), SOURCE)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(-5, 5)), min_size=1, max_size=12),
    st.floats(-100, 100),
)
def test_any_points_give_finite_predictions_and_positive_deviations(rows, where):
    data = np.array(rows)
    fitted = fit(["a"], data[:, :1], data[:, 1], SOURCE)
    mean, std = predict(fitted, np.array([[where], [where]]))
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    assert mean[0] == mean[1]
    assert (interval(fitted, std) > 0).all()


def test_more_work_takes_longer():
    work = np.linspace(0, 15, 16)  # log seconds of the roofline
    residuals = 0.3 * np.tanh(8 - work) + 0.02 * np.cos(7 * work)
    fitted = fit(["work"], work[:, None], residuals, SOURCE)
    dense = np.linspace(-3, 20, 300)
    mean, _ = predict(fitted, dense[:, None])
    assert (np.diff(dense + mean) > 0).all()


def test_the_next_points_are_where_nothing_was_measured():
    x = np.linspace(0, 10, 60)[:, None]
    left = fit(["a"], x[:20], np.sin(x[:20, 0]), SOURCE)
    chosen = most_telling(left, x, 5)
    assert len(set(chosen)) == 5
    assert min(chosen) >= 20


def test_the_first_points_spread_over_the_range():
    x = np.linspace(0, 1, 101)[:, None]
    assert farthest(x, 3) == [50, 0, 100]
    assert sorted(farthest(x[:4], 10)) == [0, 1, 2, 3]
