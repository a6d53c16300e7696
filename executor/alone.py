"""The distinct operators of a model, measured one by one beside the whole model."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.capture import is_op
from executor.program import Program
from executor.recipes import Arena, Recipe, calls, recipe_of
from executor.stages import Job, Runner
from executor.timing import Load, sample
from executor.worker import Context
from scheduler.plan import Stage

PHASE_S = 0.04
"""Whole passes and operators take turns of this length, so that both meet the same machine."""


@dataclass(frozen=True)
class Beside:
    """Rounds of measurements, each of the whole model and of every operator within a moment.

    Attributes:
        whole_s: median seconds of a pass, by round.
        op_s: median seconds of each recipe, by round.
        others_cores: cores that other processes kept busy meanwhile.
    """

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
    context: Context, folder: Path, recipes: Sequence[Recipe], footprint_bytes: float,
    budget_s: float,
) -> Beside:  # fmt: skip
    """Measure a whole model and its recipes in turns until `budget_s` is spent; 5 rounds at least.

    `footprint_bytes` is what passes between two uses of a weight: the model's parameters.
    """
    runner = Runner(context, Job(folder, (Stage(context.device.name, ()),), {}, 1))
    arguments = [runner.inputs[0][name] for name in runner.stages[0].inputs]
    module = runner.modules[0]
    arena = Arena(footprint_bytes, context.device.torch_device)
    ready = [calls(recipe, arena) for recipe in recipes]
    for _ in range(2):
        module(*arguments)
        for some in ready:
            some[0]()
    load = Load()
    whole_s: list[float] = []
    op_s: list[list[float]] = []
    begin_s, turn = context.clock(), 0
    while len(whole_s) < 5 or context.clock() - begin_s < budget_s:
        passes: list[float] = []
        start_s = context.clock()
        while not passes or context.clock() - start_s < PHASE_S:
            pass_s = context.clock()
            module(*arguments)
            passes.append(context.clock() - pass_s)
        samples: list[list[float]] = [[] for _ in ready]
        start_s = context.clock()
        while not samples[0] or context.clock() - start_s < PHASE_S:
            for times, some in zip(samples, ready, strict=True):
                times.append(sample(context, some, turn))
            turn += 1
        whole_s.append(statistics.median(passes))
        op_s.append([statistics.median(times) for times in samples])
        context.tell(min(1.0, (context.clock() - begin_s) / budget_s))
    return Beside(whole_s, op_s, load.others())
