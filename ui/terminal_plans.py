"""Plans and the memory that they need, in the terminal."""

from collections.abc import Mapping
from dataclasses import replace

from hardware.units import format_bytes, format_seconds, format_usd
from scheduler.ir.instance_contents import NO_LIMIT_BYTES
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.report import MemoryUse, Moment
from scheduler.training.micro_batches import bubble
from ui.prepare import Prepared
from ui.replication import device_words, replication_lines
from ui.terminal import out, table
from ui.time_words import has_own_unit


def objective_value(plan: Plan, problem: Problem) -> str:
    """The plan's value with its unit; published instances name none, theirs is the file's."""
    if plan.objective == "cost":
        return f"{format_usd(plan.value)}/1k"
    per = "/batch" if plan.objective == "throughput" else ""
    if has_own_unit(problem):
        return f"{plan.value:.6g}{per} (file's unit)"
    return f"{format_seconds(plan.value)}{per}"


def phase_values(plan: Plan, problem: Problem) -> list[str]:
    """What the prefill and a decode step of a generation contribute to the plan's value."""
    each = (plan.prefill_value, plan.step_value)
    return [objective_value(replace(plan, value=value), problem) for value in each]


SERVED = (
    "Chosen is the first: what servers give decides. Served alone: seconds of the traffic's mean "
    "answer on an idle server; full server: seconds of a full one that an answer takes. Plans "
    "without them serve as one above, for servers put all on the devices with the cache.\n"
)


def served_values(prepared: Prepared, plan: Plan) -> list[str]:
    """What servers that run the plan give; empty where they are like another plan's."""
    found = [one for one in prepared.served if one.plan is plan]
    return [format_seconds(s) for one in found for s in (one.alone_s, one.full_s)] or ["", ""]


def value_unit(problem: Problem) -> str:
    """The unit of a plan's value and bound."""
    if problem.objective == "cost":
        as_second = ", the file's unit of time being a second" if has_own_unit(problem) else ""
        answered = "answers" if problem.graph.mode == "decode" else "inferences"
        return f"USD per 1,000 {answered}{as_second}"
    unit = "the file's unit of time" if has_own_unit(problem) else "s"
    return f"{unit} per batch" if problem.objective == "throughput" else unit


def show_plans(prepared: Prepared) -> None:
    """All algorithms beside each other, the chosen one first, and the memory it needs."""
    if prepared.solution is None:
        return
    decodes = prepared.graph.mode == "decode"
    rows = [
        [
            p.algorithm,
            objective_value(p, prepared.problem),
            f"{p.gap:.1%}",
            *(phase_values(p, prepared.problem) if decodes else []),
            *(served_values(prepared, p) if prepared.served else []),
            str(len(p.stages)),
            device_words(p),
        ]
        for p in prepared.solution.plans
    ]
    phases = ["prefill", "decode step"] if decodes else []
    phases += ["served alone", "full server"] if prepared.served else []
    columns = ["algorithm", "value", "gap", *phases, "stages", "devices"]
    rows += [
        [name, reason, *[""] * (len(columns) - 2)]
        for name, reason in prepared.solution.refusals.items()
    ]
    objective = prepared.scenario.objective
    by = prepared.solution.best.bound_by
    title = f"Plans for {objective}, the best first (gap: to a bound that no plan beats, by {by})"
    table(title, columns, rows)
    if prepared.served:
        out.print(SERVED)
    if prepared.solution.best.splits and prepared.unsplit:
        out.print(splits_text(prepared.solution.best, prepared.unsplit, prepared.problem))
    best = prepared.solution.best
    for words in replication_lines(prepared.problem, best):
        out.print(f"{words}\n")
    unused = [d for d in prepared.problem.costs.devices if d not in best.devices]
    if unused:
        out.print(f"Left out: {', '.join(unused)}; no plan found with more devices is better.\n")
    show_memory(best)
    if prepared.graph.mode == "training":
        show_pipeline(prepared, best)


def show_pipeline(prepared: Prepared, best: Plan) -> None:
    """How idle the devices of a training step are, and what other micro-batches would give."""
    m, samples = best.num_micro_batches, prepared.graph.samples
    out.print(
        f"{m} micro-batches of {samples} samples: the plan's devices are idle "
        f"{bubble(prepared.problem, best):.0%} of a step, on average.\n"
    )
    problem = prepared.problem
    rows = [
        [
            f"{one.num_micro_batches} x {one.samples}",
            "" if one.value is None else objective_value(replace(best, value=one.value), problem),
            "" if one.lower_bound is None else f"{one.lower_bound:.4g}",
            "" if one.bubble is None else f"{one.bubble:.0%}",
            str(len(one.memory_bytes) or ""),
            format_bytes(max(one.memory_bytes.values())) if one.memory_bytes else one.reason,
        ]
        for one in prepared.tried
    ]
    if rows:
        columns = ["micro-batches", "step", "bound", "idle", "devices", "peak memory"]
        table("Micro-batches tried (the plan's bound holds for all of them)", columns, rows)


def splits_text(best: Plan, unsplit: Plan, problem: Problem) -> str:
    """How many operators are split into how many parts, and what the plan is worth without."""
    parts = ", ".join(map(str, sorted({split.parts for split in best.splits.values()})))
    worse = unsplit.value / best.value - 1
    return (
        f"{len(best.splits)} operators are split into {parts} parts each; "
        f"without splits the best plan is {objective_value(unsplit, problem)}, {worse:.0%} more.\n"
    )


def show_memory(plan: Plan) -> None:
    """Memory by device."""
    rows = [
        [
            device,
            format_bytes(need.param_bytes),
            format_bytes(need.activation_bytes),
            format_bytes(need.gradient_bytes),
            format_bytes(need.state_bytes),
            "none" if need.limit_bytes >= NO_LIMIT_BYTES else format_bytes(need.limit_bytes),
        ]
        for device, need in plan.memory.items()
    ]
    table("Memory", ["device", "parameters", "activations", "gradients", "states", "limit"], rows)


def show_memory_use(memory: Mapping[str, MemoryUse]) -> None:
    """The peak of every device's memory over the time of a replay, and what runs out."""
    rows = [
        [
            device,
            format_bytes(use.peak.num_bytes),
            format_bytes(use.limit_bytes),
            format_seconds(use.peak.at_s),
            format_bytes(use.constant_bytes),
            held_words(use.peak),
        ]
        for device, use in memory.items()
    ]
    columns = ["device", "peak", "limit", "at", "weights, states", "largest activations then"]
    table("Memory over time", columns, rows)


def held_words(moment: Moment, most: int = 3) -> str:
    """'t_conv1 x 4 12 MiB, ...': the largest activations of a moment."""
    return ", ".join(
        f"{held.tensor} x {held.micro_batches} {format_bytes(held.num_bytes)}"
        for held in moment.held[:most]
    )


def overflow_words(device: str, use: MemoryUse) -> str:
    """Say when a device runs out of memory, by how much, and what holds it."""
    assert use.overflow is not None
    return (
        f"device '{device}' runs out of memory at {format_seconds(use.overflow.at_s)}: it holds "
        f"{format_bytes(use.overflow.num_bytes)} ({format_bytes(use.constant_bytes)} weights, "
        f"gradients and states; activations {held_words(use.overflow, 8)}), the limit is "
        f"{format_bytes(use.limit_bytes)}; its peak is {format_bytes(use.peak.num_bytes)}"
    )
