"""Fitting efficiency models to several devices at once, for devices that were never measured.

Every operator class has an intercept and a weight per feature, with a prior that pulls it towards
the roofline with plausible losses. Each measured device deviates from the common curve by an offset
of its own, one for products and one for memory-bound classes, which is estimated too and dropped:
so a device that is oddly fast or slow teaches little, and two devices of a kind do not count twice
(a mixed-effects model). Both single operators and sums of operators (whole runs) are fitted; whole
runs weigh more, since an operator timed alone meets another clock than in a run.

Source: Gelman, Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models",
Cambridge 2006, chapter 12.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hardware.profile import DeviceProfile
from scheduler.cost_model.costs import plain_roofline_seconds
from scheduler.cost_model.features import COMPUTE_KINDS, OpColumns, feature_matrix
from scheduler.ir.graph import Op

Array = NDArray[np.float64]
Coefficients = dict[str, Array]

OP_SPREAD, RUN_SPREAD = 0.7, 0.05
"""Deviation of the logarithm of one operator's time, and of a whole run's, from the model."""
DEVICE_SPREAD = {True: 0.2, False: 0.12}
"""Deviation of a device from the common curve, of products and of memory-bound classes."""


@dataclass(frozen=True)
class Prior:
    """What the weights of one operator class are before any measurement: mean and deviation."""

    intercept: tuple[float, float]
    weights: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """A measured sum of operators on one device.

    Attributes:
        counts: how often each operator ran.
        op_seconds: of each operator alone; 0 where it was not measured.
        seconds: of the whole; 0 where it was not measured.
    """

    profile: DeviceProfile
    ops: tuple[Op, ...]
    counts: Array
    op_seconds: Array
    seconds: float


@dataclass(frozen=True)
class Design:
    """Operators as rows: roofline seconds, and the columns of all coefficients."""

    base: Array
    columns: Array
    products: NDArray[np.bool_]


def design(ops: Sequence[Op], profile: DeviceProfile, priors: Mapping[str, Prior]) -> Design:
    """Rows of operators of the classes that `priors` names; others keep their roofline."""
    starts = _starts(priors)
    base = np.empty(len(ops))
    columns = np.zeros((len(ops), starts["end"]))
    for kind, dtype in dict.fromkeys((op.kind, op.dtype) for op in ops):
        rows = [i for i, op in enumerate(ops) if (op.kind, op.dtype) == (kind, dtype)]
        group = OpColumns(kind, dtype, tuple(ops[i] for i in rows))
        base[rows] = plain_roofline_seconds(group, profile)
        if kind in priors:
            features = feature_matrix(list(priors[kind].weights), group, profile)
            start = starts[kind]
            columns[rows, start] = 1.0
            columns[rows, start + 1 : start + 1 + features.shape[1]] = features
    return Design(base, columns, np.array([op.kind in COMPUTE_KINDS for op in ops]))


def fit_pooled(runs: Sequence[Run], priors: Mapping[str, Prior]) -> Coefficients:
    """Maximum a posteriori of every class's intercept and weights, robust to odd operators."""
    designs = [design(run.ops, run.profile, priors) for run in runs]
    names = list(dict.fromkeys(run.profile.name for run in runs))
    mean, spread = _prior_vectors(priors)
    num = len(mean)
    offset_spread = np.repeat([DEVICE_SPREAD[True], DEVICE_SPREAD[False]], len(names))

    def residuals(x: Array) -> Array:
        parts = [(x[:num] - mean) / spread, x[num:] / offset_spread]
        for run, rows in zip(runs, designs, strict=True):
            place = names.index(run.profile.name)
            offsets = np.where(rows.products, x[num + place], x[num + len(names) + place])
            seconds = rows.base * np.exp(rows.columns @ x[:num] + offsets)
            parts.append(_run_residuals(run, seconds))
        return np.concatenate(parts)

    start = np.concatenate([mean, np.zeros(2 * len(names))])
    found = least_squares(residuals, start, loss="soft_l1").x[:num]
    starts = _starts(priors)
    return {
        kind: found[starts[kind] : starts[kind] + 1 + len(prior.weights)]
        for kind, prior in priors.items()
    }


def predict_pooled(
    ops: Sequence[Op],
    profile: DeviceProfile,
    priors: Mapping[str, Prior],
    coefficients: Coefficients,
) -> Array:
    """Seconds of operators on a device."""
    rows = design(ops, profile, priors)
    return np.asarray(rows.base * np.exp(rows.columns @ np.concatenate([*coefficients.values()])))


def _run_residuals(run: Run, seconds: Array) -> Array:
    """Of the whole, and of each operator weighted by the root of its share in its class."""
    timed = run.op_seconds > 0
    measured = run.counts * run.op_seconds
    kinds = np.array([op.kind for op in run.ops])
    share = np.zeros(len(run.ops))
    for kind in set(kinds[timed]):
        own = timed & (kinds == kind)
        share[own] = measured[own] / measured[own].sum()
    errors = np.log(seconds[timed] / run.op_seconds[timed])
    alone = errors * np.sqrt(share[timed]) / OP_SPREAD
    if not run.seconds:
        return np.asarray(alone)
    whole = np.log(run.counts @ seconds / run.seconds) / RUN_SPREAD
    return np.append(alone, whole)


def _starts(priors: Mapping[str, Prior]) -> dict[str, int]:
    starts, place = {}, 0
    for kind, prior in priors.items():
        starts[kind] = place
        place += 1 + len(prior.weights)
    return starts | {"end": place}


def _prior_vectors(priors: Mapping[str, Prior]) -> tuple[Array, Array]:
    pairs = [
        pair for prior in priors.values() for pair in (prior.intercept, *prior.weights.values())
    ]
    mean, spread = np.array(pairs).T
    return mean, spread
