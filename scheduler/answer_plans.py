"""Plans of a generation: one placement for both phases, valued over the whole answer.

    | prefill | decode step | decode step | ... new_tokens - 1 of them

Both phases read the same weights and the same cache, so they share a placement. The plans of either
are tried on both, with the memory of weights, cache and the larger activations.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hardware.errors import InfeasibleError
from hardware.units import format_seconds
from scheduler.bounds.lower_bound import named_bound, usd_per_1k
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.evaluate import finish_plan, with_bound
from scheduler.evaluation.memory import check_memory
from scheduler.evaluation.timeline import stage_makespan
from scheduler.generation import Generation, follow, prefill_splits
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.solution import Solution
from scheduler.tensor_parallel.operator_splits import split_graph
from scheduler.tensor_parallel.split_rules import Splits

Solve = Callable[[Problem], Solution]


def prefill_problem(decode: Problem, generation: Generation, splits: Splits) -> Problem:
    """Where the prefill could run, its weights split as the decode step's are."""
    graph = split_graph(generation.prefill, prefill_splits(generation, splits))
    return replace(
        decode,
        graph=graph,
        costs=cost_table(graph, decode.cluster),
        objective="latency",
        latency_bound_s=None,
        pins={},
        forbidden={},
        colocated=(),
    )


def plan_prefill(decode: Problem, plan: Plan, prefill: Problem) -> Plan:
    """The prefill where a decode step's plan runs; its memory is what both phases need at most.

    Raises:
        InfeasibleError: it does not fit there, or lacks a link.
    """
    placement = follow(decode.graph, prefill, plan.placement)
    made = finish_plan(prefill, plan.algorithm, placement, time.perf_counter(), 0.0)
    memory = dict(made.memory)
    for device, need in plan.memory.items():
        own = memory.get(device, need)
        memory[device] = replace(
            need,
            param_bytes=max(own.param_bytes, need.param_bytes),
            activation_bytes=max(own.activation_bytes, need.activation_bytes),
        )
    check_memory(memory)
    return replace(made, memory=memory)


def over_answer(decode: Problem, plan: Plan, prefill: Problem, generation: Generation) -> Plan:
    """A plan of the decode step, valued over the whole answer.

    Raises:
        InfeasibleError: the prefill does not fit, or the answer is later than `latency_bound_s`.
    """
    first = plan_prefill(decode, plan, prefill)
    num_steps = generation.new_tokens - 1
    first_value = first.value
    if decode.objective == "cost":
        first_value = usd_per_1k(decode, first.value)
        _check_latency(decode, plan, first.value, num_steps)
    return replace(
        plan,
        value=first_value + num_steps * plan.value,
        prefill_value=first_value,
        num_steps=num_steps,
        memory=first.memory,
    )


def _check_latency(decode: Problem, plan: Plan, prefill_s: float, num_steps: int) -> None:
    step_s = stage_makespan(decode, plan.stages)
    seconds, bound_s = prefill_s + num_steps * step_s, decode.latency_bound_s
    if bound_s is not None and seconds > bound_s * (1 + 1e-9):
        raise InfeasibleError(
            f"the whole answer takes {format_seconds(seconds)}, "
            f"latency_bound_s is {format_seconds(bound_s)}"
        )


def solve_answer(
    decode: Problem, found: Solution, generation: Generation, solve: Solve | None = None
) -> Solution:
    """Choose a generation's plan by its whole answer, among plans of the decode step and prefill.

    value = value of the prefill + (new_tokens - 1) * value of a decode step; the bound likewise.

    Args:
        decode: the problem of the decode step, with operators split as in `found`.
        found: its plans.
        generation: both graphs, unsplit.
        solve: plans the prefill, where its plans are to be tried, too.

    Raises:
        InfeasibleError: no plan holds both phases, or none is within `latency_bound_s`.
    """
    prefill = prefill_problem(decode, generation, found.best.splits)
    plans, refusals = list(found.plans), dict(found.refusals)
    bound_s, by = named_bound(prefill)
    if solve is not None:
        try:
            alone = solve(prefill)
            bound_s, by = alone.best.lower_bound, alone.best.bound_by
            plans += _from_prefill(decode, prefill, alone, plans)
        except InfeasibleError as refusal:
            refusals["prefill"] = str(refusal)
    if decode.objective == "cost":
        bound_s = usd_per_1k(decode, bound_s)
    bound = bound_s + (generation.new_tokens - 1) * found.best.lower_bound
    named = f"{found.best.bound_by} of the decode step and {by} of the prefill"
    whole = []
    for plan in plans:
        try:
            one = over_answer(decode, plan, prefill, generation)
            whole.append(with_bound(one, bound, named))
        except InfeasibleError as refusal:
            refusals[plan.algorithm] = str(refusal)
    if not whole:
        why = "; ".join(dict.fromkeys(refusals.values()))
        raise InfeasibleError(f"no plan for both phases of '{decode.graph.name}': {why}")
    whole.sort(key=lambda plan: (plan.value, len(plan.devices), len(plan.stages)))
    return replace(found, best=whole[0], plans=tuple(whole), refusals=refusals)


def _from_prefill(
    decode: Problem, prefill: Problem, alone: Solution, known: list[Plan]
) -> list[Plan]:
    """Plans of the decode step that run where plans of the prefill do, those not yet known."""
    made: list[Plan] = []
    seen = [dict(plan.placement) for plan in known]
    for plan in alone.plans:
        placement = follow(prefill.graph, decode, plan.placement)
        if placement in seen:
            continue
        seen.append(placement)
        with suppress(InfeasibleError):
            name = f"{plan.algorithm} of the prefill"
            plan = finish_plan(decode, name, placement, time.perf_counter(), 0.0)
            made.append(replace(plan, splits=known[0].splits))
    return made
