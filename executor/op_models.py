"""Calibrating the operator classes of a device: choose points, measure, fit, and judge the fit.

Runs in the device's worker. Operators of like size are measured in turn, so that caches are as
warm as in a model, where neighbours are of like size. Half of a class's points spread over the
sizes of networks; the rest are chosen, in rounds, where they tell the models so far most. Points
held out are measured among them and never fitted: they scale the intervals and judge the fit.

Source: Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74,
2015, doi:10.1007/s10472-013-9368-4: each half of the points held out is judged by intervals that
the other half scaled; the intervals that are kept are scaled by both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from executor.op_cases import CLASSES, CaseClass
from executor.recipes import Arena, Recipe, calls, describe
from executor.timing import Load, Timing, time_in_turn
from executor.worker import Context
from hardware.efficiency import EfficiencyModel
from hardware.profile import DeviceProfile
from scheduler.cost_model.costs import class_seconds, roofline_seconds
from scheduler.cost_model.features import OpColumns, feature_matrix
from scheduler.cost_model.fit import farthest, fit, most_telling
from scheduler.cost_model.gaussian_process import Array

NUM_CANDIDATES = 160
MAX_CALL_S = 0.03
MAX_CALL_BYTES = 2**27
HELD_OUT_SHARE, MIN_HELD_OUT = 0.2, 4
ROUND_SHARES = (0.5, 0.25, 0.25)
GROUP = 10
SECONDS_PER_POINT = 0.12
COLD_BYTES = 2**27
"""What passes between two uses of a weight: more than caches hold, as in most models."""


@dataclass(frozen=True)
class Judged:
    """A point that was not fitted: seconds measured and predicted, and the 90 % interval."""

    kind: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class OpModels:
    """What calibration found.

    Attributes:
        models: by operator class, as in `DeviceProfile.op_times`.
        judged: the points held out.
        others_cores: cores that other processes kept busy meanwhile.
    """

    models: dict[str, EfficiencyModel]
    judged: list[Judged]
    others_cores: float


@dataclass
class Bench:
    """One class under calibration: candidates, which were measured, and what came out."""

    case: CaseClass
    recipes: list[Recipe]
    ops: OpColumns
    features: Array
    roofline_s: Array
    held_out: list[int]
    seconds: dict[int, float]

    def fitted(self) -> list[int]:
        """The candidates that were measured to be fitted."""
        return [i for i in self.seconds if i not in self.held_out]

    def model(self, profile: DeviceProfile) -> EfficiencyModel:
        """The model of the points so far."""
        rows = self.fitted()
        measured = np.array([self.seconds[i] for i in rows])
        residuals = np.log(measured / self.roofline_s[rows])
        return fit(self.case.features, self.features[rows], residuals, profile.provenance)

    def choose(self, num: int, profile: DeviceProfile) -> list[int]:
        """The next candidates to measure."""
        taken = {*self.seconds, *self.held_out}
        left = np.array([i for i in range(len(self.recipes)) if i not in taken])
        if not self.fitted():
            return [int(left[i]) for i in farthest(self.features[left], num)]
        chosen = most_telling(self.model(profile), self.features[left], num)
        return [int(left[i]) for i in chosen]


def measure_op_models(context: Context, profile: DeviceProfile, seed: int) -> OpModels:
    """Calibrate every operator class of this worker's device; `profile` gives the roofline."""
    load = Load()
    rng = np.random.default_rng(seed)
    benches = [_bench(case, profile, rng) for case in CLASSES]
    arena = Arena(COLD_BYTES, context.device.torch_device)
    for step, share in enumerate(ROUND_SHARES):
        picks = [(bench, i) for bench in benches for i in _round(bench, share, step, profile)]
        order = sorted(picks, key=lambda pick: float(pick[0].ops.num_bytes[pick[1]]))
        for start in range(0, len(order), GROUP):
            _measure(context, arena, order[start : start + GROUP])
            context.tell((step + (start + GROUP) / len(order)) / len(ROUND_SHARES))
    models = {bench.case.key: bench.model(profile) for bench in benches}
    held_out = [(bench, i) for bench in benches for i in bench.held_out]
    halves = held_out[::2], held_out[1::2]
    judged = [
        _judge(bench, i, profile, widened(models, factor))
        for half, factor in zip(halves, map(_factor_of(models, profile), halves[::-1]), strict=True)
        for bench, i in half
    ]
    factor = _factor_of(models, profile)(held_out)
    return OpModels(widened(models, factor), judged, load.others())


def _bench(case: CaseClass, profile: DeviceProfile, rng: np.random.Generator) -> Bench:
    drawn = [case.draws[i % len(case.draws)](rng) for i in range(3 * NUM_CANDIDATES)]
    small = [r for r in drawn if sum(x.num_bytes for x in r.likes) <= MAX_CALL_BYTES]
    found = describe(small)
    columns = OpColumns(found[0].kind, found[0].dtype, tuple(found))
    fast = np.flatnonzero(roofline_seconds(columns, profile) <= MAX_CALL_S)[:NUM_CANDIDATES]
    ops = OpColumns(columns.kind, columns.dtype, tuple(found[i] for i in fast))
    num_held_out = max(MIN_HELD_OUT, int(np.ceil(case.num_points * HELD_OUT_SHARE)))
    return Bench(
        case,
        [small[i] for i in fast],
        ops,
        feature_matrix(case.features, ops, profile),
        roofline_seconds(ops, profile),
        list(range(num_held_out)),
        {},
    )


def _round(bench: Bench, share: float, step: int, profile: DeviceProfile) -> list[int]:
    """Points to measure in a round: those chosen, and a third of those held out."""
    chosen = bench.choose(round(bench.case.num_points * share), profile)
    return chosen + bench.held_out[step :: len(ROUND_SHARES)]


def _measure(context: Context, arena: Arena, picks: list[tuple[Bench, int]]) -> None:
    operators = [calls(bench.recipes[i], arena) for bench, i in picks]
    timings: list[Timing] = time_in_turn(context, operators, SECONDS_PER_POINT * len(picks))
    for (bench, i), found in zip(picks, timings, strict=True):
        bench.seconds[i] = found.seconds


def widened(models: dict[str, EfficiencyModel], factor: float) -> dict[str, EfficiencyModel]:
    """The models with every interval wider by a factor."""
    return {
        key: replace(model, interval_scale=model.interval_scale * factor)
        for key, model in models.items()
    }


def interval_factor(points: Sequence[Judged]) -> float:
    """The factor on the intervals, in logarithms, with which they hold nine of ten points."""
    away = sorted(
        abs(math.log(p.measured_s / p.predicted_s)) / math.log(p.high_s / p.predicted_s)
        for p in points
    )
    return away[min(len(away), math.ceil(0.9 * (len(away) + 1))) - 1]


def _factor_of(
    models: dict[str, EfficiencyModel], profile: DeviceProfile
) -> Callable[[Sequence[tuple[Bench, int]]], float]:
    return lambda held_out: interval_factor(
        [_judge(bench, i, profile, models) for bench, i in held_out]
    )


def _judge(
    bench: Bench, i: int, profile: DeviceProfile, models: dict[str, EfficiencyModel]
) -> Judged:
    one = OpColumns(bench.ops.kind, bench.ops.dtype, (bench.ops.ops[i],))
    known = replace(profile, op_times=dict(models))
    low, predicted, high, _ = class_seconds(one, known)
    ends = (float(predicted[0]), float(low[0]), float(high[0]))
    return Judged(one.kind, bench.seconds[i], *ends)
