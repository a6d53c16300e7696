"""The distinct operators of a model, measured one by one beside the whole model."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from executor.capture import is_op
from executor.program import Program
from executor.recipes import Arena, Call, Recipe, calls, recipe_of
from executor.sources import build_model
from executor.stages import Job, Runner
from executor.timing import Load, sample
from executor.worker import Context
from scheduler.plan import Stage

PHASE_S = 0.04
"""Whole passes and operators take turns of this length, so that both meet the same machine."""
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Subject:
    """A model to be measured whole.

    Attributes:
        source, batch: what it is built from.
        folder: where it lies exported.
        footprint_bytes: what passes between two uses of a weight: its parameters.
    """

    source: str
    batch: int
    folder: Path
    footprint_bytes: float


@dataclass(frozen=True)
class Beside:
    """Rounds of measurements, each of the whole model and of every operator within a moment.

    Attributes:
        eager_s: median seconds of a pass of the module as written, by round.
        whole_s: median seconds of a pass of the exported module, which plans run, by round.
        op_s: median seconds of each recipe, by round.
        others_cores: cores that other processes kept busy meanwhile.
    """

    eager_s: list[float]
    whole_s: list[float]
    op_s: list[list[float]]
    others_cores: float


def distinct_recipes(program: Program) -> tuple[list[Recipe], list[int]]:
    """The distinct calls of a program, and which of them each operator is, in order."""
    recipes = [recipe_of(n, program.weights) for n in program.graph.nodes if is_op(n)]
    numbers: dict[Recipe, int] = {}
    which = [numbers.setdefault(recipe, len(numbers)) for recipe in recipes]
    return list(numbers), which


def measure_beside(
    context: Context, subject: Subject, recipes: Sequence[Recipe], budget_s: float
) -> Beside:
    """Measure a whole model and its recipes in turns until `budget_s` is spent; at least thrice."""
    eager, exported = _eager(context, subject), _exported(context, subject.folder)
    arena = Arena(subject.footprint_bytes, context.device.torch_device)
    ready = [calls(recipe, arena) for recipe in recipes]
    for call in (eager, exported, *(some[0] for some in ready)):
        call()
    load = Load()
    found = Beside([], [], [], 0.0)
    begin_s = context.clock()
    while len(found.op_s) < MIN_ROUNDS or context.clock() - begin_s < budget_s:
        found.eager_s.append(_phase(context, [[eager]], 0)[0])
        found.whole_s.append(_phase(context, [[exported]], 0)[0])
        found.op_s.append(_phase(context, ready, len(found.op_s)))
        context.tell(min(1.0, (context.clock() - begin_s) / budget_s))
    return replace(found, others_cores=load.others())


def _eager(context: Context, subject: Subject) -> Call:
    device = context.device.torch_device
    model = build_model(subject.source, subject.batch, "float32", device)

    def call() -> object:
        with torch.no_grad():
            return model.module(*model.inputs, **model.kwargs)

    return call


def _exported(context: Context, folder: Path) -> Call:
    runner = Runner(context, Job(folder, ((Stage(context.device.name, ()),),), {}, 1))
    arguments = [runner.inputs[0][name] for name in runner.stages[0].inputs]
    return partial(runner.modules[0], *arguments)


def _phase(context: Context, ready: Sequence[Sequence[Call]], turn: int) -> list[float]:
    """Median seconds of each call, called in turn for `PHASE_S`."""
    samples: list[list[float]] = [[] for _ in ready]
    start_s = context.clock()
    while not samples[0] or context.clock() - start_s < PHASE_S:
        for times, some in zip(samples, ready, strict=True):
            times.append(sample(context, some, turn))
        turn += 1
    return [statistics.median(times) for times in samples]
