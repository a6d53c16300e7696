"""Placement on real hardware mixes: our plans beside the algorithms that others use.

    python -m benchmarks.scheduler_mixes [--time-limit S] [--models NAME...] [--plot FILE.svg]

Ten zoo models on five mixes of the catalog's devices, for latency, throughput and cost. Ratios are
our value / theirs, of pipelines as they run in steady state: 1 is as good, below 1 better. Rivals
run alone, each by its own algorithm. Every plan of ours is checked. Times are the cost model's.
About 4 minutes of one core, and 150 times the time limit.
"""

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.mixes import MODELS, graphs_of, mixes
from hardware.errors import InfeasibleError
from scheduler.baselines.single_device import memory_fill, single_device
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.timeline import slowdown
from scheduler.list_scheduling.heft import heft
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.problem import Objective, Placement, Problem
from scheduler.throughput.contiguous import split_order
from scheduler.throughput.contract import contract

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "cost")
UNITS = {"latency": "ms", "throughput": "ms", "cost": "USD/1M"}


def pipedream(problem: Problem) -> Placement:
    """The interval dynamic programme over the order as given, and over no other."""
    arrays = contract(problem.arrays, problem.arrays.unit)
    device = split_order(arrays, np.arange(arrays.num_ops))[problem.arrays.unit]
    names = problem.costs.devices
    return {op.name: names[d] for op, d in zip(problem.graph.ops, device, strict=True)}


RIVALS: dict[str, Callable[[Problem], Placement]] = {
    "greedy fill": memory_fill,
    "PipeDream DP": pipedream,
    "HEFT": heft,
}
TITLES = (*RIVALS, "best device")
NONE = "none fits"


def reached(problem: Problem, plan: Plan) -> float:
    """The plan's value; of a pipeline what it reaches in steady state."""
    if problem.objective == "latency":
        return plan.value
    return plan.value * slowdown(problem, plan.stages, plan.in_flight)


def value_of(problem: Problem, place: Callable[[Problem], Placement]) -> float:
    """What an algorithm's plan reaches; infinite where it has none that fits."""
    try:
        return reached(problem, finish_plan(problem, "rival", place(problem), 0.0, 0.0))
    except InfeasibleError:
        return math.inf


def rivals(problem: Problem) -> dict[str, float]:
    """What each rival's plan reaches."""
    values = {title: value_of(problem, place) for title, place in RIVALS.items()}
    alone = (partial(single_device, device=device) for device in problem.costs.devices)
    return {**values, "best device": min(value_of(problem, place) for place in alone)}


@dataclass(frozen=True)
class Row:
    """A model on a mix for an objective: our plan, if any, and ours / each rival's that fits."""

    mix: str
    model: str
    objective: str
    plan: Plan | None
    ratios: dict[str, float]

    @property
    def cells(self) -> list[str]:
        """Value, gap, and the ratios in the order of `TITLES`."""
        if self.plan is None:
            return [NONE, "", ""]
        value = f"{self.plan.value * 1e3:.4g}"
        ratios = (f"{self.ratios[t]:.3f}" if t in self.ratios else "–" for t in TITLES)
        return [value, f"{self.plan.gap:.1%}", " ".join(ratios)]


def row(problem: Problem, model: str, limit_s: float) -> Row:
    """Our plan for a problem beside the rivals'."""
    mix, objective = problem.cluster.name, problem.objective
    values = rivals(problem)
    try:
        best = solve(problem, time_limit_s=limit_s).best
    except InfeasibleError:
        found = [title for title, value in values.items() if math.isfinite(value)]
        assert not found, f"{mix}, {model}, {objective}: no plan of ours, but of {found}"
        return Row(mix, model, objective, None, {})
    broken = check_plan(problem, best)
    assert not broken, broken
    ours = reached(problem, best)
    ratios = {t: ours / value for t, value in values.items() if math.isfinite(value)}
    return Row(mix, model, objective, best, ratios)


def measure(models: list[str], limit_s: float) -> list[Row]:
    """All rows; progress on standard error."""
    rows: list[Row] = []
    num = len(models) * len(mixes()) * len(OBJECTIVES)
    for model in models:
        graphs = graphs_of(model)
        for cluster, usd_per_hour, dtype in mixes():
            costs = cost_table(graphs[dtype], cluster)
            stated = Problem(graphs[dtype], cluster, costs, usd_per_hour=usd_per_hour)
            for objective in OBJECTIVES:
                rows.append(row(replace(stated, objective=objective), model, limit_s))
                told = [f"{len(rows)} of {num}", cluster.name, model, objective, *rows[-1].cells]
                print(", ".join(told), file=sys.stderr, flush=True)
    return rows


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(rows: list[Row]) -> str:
    """A line for each model and mix, with the three objectives side by side."""
    shown = [(f"{o} ({UNITS[o]})", "gap", "ratios") for o in OBJECTIVES]
    columns = ["model", "mix", *(title for titles in shown for title in titles)]
    lines = [line(columns), "|---" * len(columns) + "|"]
    for at in range(0, len(rows), len(OBJECTIVES)):
        found = rows[at : at + len(OBJECTIVES)]
        cells = [cell for each in found for cell in each.cells]
        lines.append(line([found[0].model, found[0].mix, *cells]))
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """Median, best and worst ratio and the gap by mix and objective, and the worst of all."""
    columns = ["mix", "objective", "plans", "gap", *TITLES]
    lines = [line(columns), "|---" * len(columns) + "|"]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for found in rows:
        groups[found.mix, found.objective].append(found)
    for (mix, objective), group in groups.items():
        gaps = [found.plan.gap for found in group if found.plan]
        spread = f"{statistics.median(gaps):.1%} / {max(gaps):.1%}" if gaps else ""
        cells = [mix, objective, str(len(gaps)), spread]
        for title in TITLES:
            known = [found.ratios[title] for found in group if title in found.ratios]
            spreads = (f(known) for f in (statistics.median, min, max)) if known else ()
            cells.append(" / ".join(f"{ratio:.3f}" for ratio in spreads) or "no fit")
        lines.append(line(cells))
    ratios = [(r, t, f) for f in rows for t, r in f.ratios.items()]
    ratio, title, worst = max(ratios, key=lambda found: found[0])
    worse = sum(r > 1 + 1e-9 for r, _, _ in ratios)
    lines += ["", f"{len(ratios)} ratios, {worse} above 1; the largest is {ratio:.6f} "
              f"({worst.model} on {worst.mix}, {worst.objective}, beside {title})."]  # fmt: skip
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """A heat map of the ratios: models by mixes, for each rival and objective."""
    import altair as alt
    import pandas as pd  # type: ignore[import-untyped]

    frame = pd.DataFrame(
        {"model": r.model, "mix": r.mix, "objective": r.objective, "rival": t, "ratio": ratio}
        for r in rows
        if r.objective != "cost"
        for t, ratio in r.ratios.items()
    )
    colours = alt.Scale(scheme="viridis", type="log", domain=[0.1, 1], clamp=True)
    x = alt.X("mix", title=None, sort=None, axis=alt.Axis(labelAngle=-40))
    y = alt.Y("model", title=None, sort=None)
    cells = (
        alt.Chart()
        .mark_rect()
        .encode(color=alt.Color("ratio", scale=colours, title="ours / theirs"))
    )
    dark = alt.condition("datum.ratio > 0.5", alt.value("black"), alt.value("white"))
    texts = (
        alt.Chart().mark_text(fontSize=8).encode(text=alt.Text("ratio", format=".2f"), color=dark)
    )
    panels = alt.layer(cells.encode(x, y), texts.encode(x, y), data=frame)
    panels = panels.properties(width=130, height=170)
    columns = alt.Column("rival", title=None, sort=list(TITLES))
    facets = panels.facet(row=alt.Row("objective", title=None, sort=None), column=columns)
    facets.configure(aria=False).save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds per plan")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME")
    parser.add_argument("--plot", type=Path, help="draw the ratios here (SVG or PNG)")
    arguments = parser.parse_args()
    rows = measure(arguments.models, arguments.time_limit)
    print(f"Ratios: beside {', '.join(TITLES)}.\n\n{table(rows)}\n\n{summary(rows)}")
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
