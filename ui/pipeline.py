"""What is done with a prepared scenario: plan, predict, price, execute.

Torch is imported inside the functions that need it, so that help and catalogs answer at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from hardware.catalog import common_instances, find_instance, load_prices
from hardware.errors import InfeasibleError
from scheduler.answer_plans import solve_answer
from scheduler.evaluation.check import check_stages
from scheduler.explanation.explain import explain
from scheduler.ir.graph import Graph
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.report import Report
from scheduler.solution import Solution
from scheduler.tensor_parallel.split_search import may_split, split_where_it_pays, with_splits
from scheduler.training.micro_batches import over_all
from simulator.billing import Cost, cost_at_full_load
from simulator.generation import GenerationReport, predict_generation
from simulator.replay import replay
from simulator.whatif import Outcome, compare_instances
from ui.prepare import Prepared, generation_of
from ui.rented import rent
from ui.scenario import Scenario
from ui.server_kinds import best_served, served_plans
from ui.steps import Steps

if TYPE_CHECKING:
    from executor.loaded import LoadedModel
    from executor.run import Execution
    from executor.workers import Workers


@dataclass(frozen=True)
class Measured:
    """What running for real gave: the plan, and the unsplit model on each device and all cores."""

    execution: Execution
    baselines: dict[str, Report] = field(default_factory=dict)


def plan(
    prepared: Prepared,
    steps: Steps,
    time_limit_s: float = 0.0,
    improved: Callable[[float, float], None] = lambda value, bound: None,
) -> Prepared:
    """Run the placement algorithms; search within the time limit, telling value and bound.

    Where operators may be split, half of the time limit goes to that; of a generation's rest, half
    to its prefill. With a time limit Ctrl-C ends either, with the best plan until then.
    """
    problem, algorithm = prepared.problem, prepared.scenario.algorithm
    generation = generation_of(prepared)
    splitting = time_limit_s > 0 and algorithm == "auto" and may_split(problem)
    search_s = time_limit_s / (2 if splitting else 1) / (2 if generation else 1)
    with steps("Planning"):
        solution = solve(problem, algorithm, search_s, improved, stoppable=time_limit_s > 0)
    both = partial(solve_answer, generation=generation) if generation else None
    if both:
        rest_s = 0.0 if solution.stopped else search_s
        with steps("Planning the prefill, and both phases as one"):
            solution = both(
                problem,
                solution,
                solve=lambda first: solve(first, algorithm, rest_s, stoppable=rest_s > 0),
            )
    unsplit = solution.best
    if prepared.tried:
        plans = tuple(over_all(one, prepared.tried) for one in solution.plans)
        solution = replace(solution, best=plans[0], plans=plans)
    if splitting and not solution.stopped:
        with steps("Splitting operators where it pays"), suppress(KeyboardInterrupt):
            deadline_s = time.perf_counter() + time_limit_s / 2
            problem, solution = split_where_it_pays(
                problem, solution, algorithm, deadline_s, *([both] if both else [])
            )
    prepared = replace(prepared, problem=problem, solution=solution, unsplit=unsplit)
    if not generation or prepared.scenario.traffic is None or solution.best.splits:
        return prepared
    with steps("Choosing the plan that serves best"), suppress(InfeasibleError):
        prepared = _best_served(prepared, solution)
    return prepared


def _best_served(prepared: Prepared, solution: Solution) -> Prepared:
    """Under traffic, take the plan whose servers give most for the objective."""
    scenario = prepared.scenario
    served = served_plans(scenario, prepared, solution.plans)
    best = best_served(served, scenario.objective).plan
    plans = (best, *(plan for plan in solution.plans if plan is not best))
    return replace(
        prepared, solution=replace(solution, best=best, plans=plans), served=tuple(served)
    )


def given_plan(prepared: Prepared, chosen: Plan) -> Prepared:
    """Split the operators that a given plan splits, and check that it can run.

    Its value and its memory are left to the replay: times may have been measured again.

    Raises:
        ValueError: it places other operators, uses devices that are not here, or its stages
            cannot run.
    """
    prepared = replace(prepared, problem=with_splits(prepared.problem, chosen.splits))
    if set(chosen.placement) != set(prepared.graph.by_name):
        raise ValueError("the plan places other operators than this model has; plan it again")
    unknown = set(chosen.devices) - set(prepared.problem.cluster.devices)
    if unknown:
        raise ValueError(f"the plan uses devices that are not here: {', '.join(sorted(unknown))}")
    if broken := check_stages(prepared.problem, chosen):
        raise ValueError(f"the plan cannot run: {broken[0]}; plan it again")
    return prepared


def explained(prepared: Prepared, chosen: Plan, steps: Steps) -> Prepared:
    """Say why a plan is as it is: what binds, what would help, where operators could go."""
    with steps("Trying the plan's alternatives"):
        step = replace(chosen, value=chosen.step_value)
        return replace(prepared, explanation=explain(prepared.problem, step))


def predict(prepared: Prepared, chosen: Plan, steps: Steps) -> tuple[Report, Cost | None]:
    """Replay a plan in simulation and price it; a generation by its tokens, prefill included."""
    with steps("Simulating"):
        report = replay(prepared.problem, chosen, prepared.scenario.replay)
        answer = generation_report(prepared, chosen, report)
    usd_per_hour, provenance = rent(prepared.scenario)
    cost = None
    if usd_per_hour is not None:
        per_s = answer.tokens_per_s if answer else report.throughput_per_s
        cost = cost_at_full_load(usd_per_hour, per_s, provenance)
    return report, cost


def generation_report(
    prepared: Prepared, chosen: Plan, predicted: Report
) -> GenerationReport | None:
    """What the plan of a decode step means for the generation; None in other modes.

    Raises:
        InfeasibleError: the prefill does not fit.
    """
    found = generation_of(prepared)
    return predict_generation(prepared.problem, chosen, found, predicted) if found else None


def elsewhere(
    scenario: Scenario,
    graph: Graph,
    num_micro_batches: int,
    steps: Steps,
    names: list[str] | None = None,
) -> list[Outcome]:
    """The same model planned, simulated and priced on instances of the catalog."""
    instances = [find_instance(name) for name in names or common_instances()]
    with steps("What if: other instances") as tell:
        return compare_instances(
            graph,
            num_micro_batches,
            instances,
            load_prices(),
            scenario.objective,
            scenario.prices.market,
            tell,
            scenario.constraints.replicate is not False,
        )


def execute(
    workers: Workers, model: LoadedModel, prepared: Prepared, chosen: Plan, steps: Steps
) -> Measured:
    """Run the unsplit model on every device and on all cores, then the plan, for real.

    Raises:
        WorkerError: a worker died or failed.
        ValueError: the plan was made for devices that this machine does not have.
    """
    from executor import run, whole
    from executor.devices import all_cores
    from executor.operator_splits import split_program

    for device in chosen.devices:
        if device not in workers.devices:
            raise ValueError(
                f"the plan uses device '{device}', this machine has: {', '.join(workers.devices)}"
            )
    trains = prepared.graph.mode == "training"
    if trains and any(stage.replicas for stage in chosen.stages):
        raise ValueError(
            "the plan trains on replicas, and workers do not sum gradients with each other; plan "
            "again with constraints: {replicate: false}"
        )
    batch = prepared.scenario.model.batch
    baselines: dict[str, Report] = {}
    for device in workers.devices:
        with steps(f"Running the unsplit model on {device}") as tell:
            baselines[device], reference = whole.run_whole_in(workers, device, model, batch, tell)
    if trains:
        with steps("Running two unsplit steps to compare with"):
            reference = whole.first_steps(workers, chosen.devices[0], model)
    if chosen.splits:
        model = replace(model, micro=split_program(model.micro, chosen.splits))
    with steps("Running the plan") as tell:
        execution = run.execute(workers, model, chosen, prepared.problem, reference, tell)
    with steps("Running the unsplit model on all cores") as tell:
        baselines["all cores"], _ = whole.run_whole(all_cores(), model, batch, tell)
    return Measured(execution, baselines)
