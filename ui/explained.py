"""The explanation of a plan as lines and tables: in the terminal, the report page and the app."""

from dataclasses import replace

from scheduler.explanation.explain import Elsewhere, Explanation
from scheduler.plan import Plan
from scheduler.problem import Problem
from ui import terminal
from ui.terminal_generations import Table
from ui.terminal_plans import objective_value
from ui.time_words import time_words


def show_explanation(problem: Problem, plan: Plan, found: Explanation) -> None:
    """What binds, what would help, devices left out, and the alternatives of the heaviest."""
    for line in explanation_lines(problem, found):
        terminal.out.print(line)
    for table in explanation_tables(problem, plan, found):
        terminal.table(*table)


def explanation_lines(problem: Problem, found: Explanation) -> list[str]:
    """What binds, what is full, and whether alternatives were left untried."""
    where = "of the critical path" if problem.objective == "latency" else "of work"
    lines = []
    if found.binds:
        lines.append(
            f"Binds: {found.binds}, {time_words(problem, found.busy_s[found.binds])} {where}."
        )
    lines += [f"Memory of {device} is {used:.0%} full." for device, used in found.full.items()]
    if found.valued < found.possible:
        lines.append(
            f"Tried {found.valued:,} of {found.possible:,} alternatives, the likeliest first: "
            f"each values a plan of {len(problem.graph.ops):,} operators."
        )
    return lines


def explanation_tables(problem: Problem, plan: Plan, found: Explanation) -> list[Table]:
    """Loads, what more of the hardware would give, devices left out, and the heaviest operators."""
    helps = [
        [r.change, _value(problem, plan, r.value), _change(found, r.value), r.how]
        for r in found.reliefs
    ]
    unused = [[e.device, _worded(problem, plan, found, e)] for e in found.left_out]
    tables: list[Table] = [
        _loads(problem, found),
        ("What would help", ["change", "value", "against this plan", "how"], helps),
        ("Devices left out", ["device", "best value found that uses it"], unused),
        _seats(problem, plan, found),
    ]
    return [table for table in tables if table[2]]


def _loads(problem: Problem, found: Explanation) -> Table:
    """How long every device and medium works, the busiest first."""
    is_latency = problem.objective == "latency"
    whole = sum(found.busy_s.values()) if is_latency else found.busy_s.get(found.binds, 0.0)
    rows = [
        [name, time_words(problem, busy_s), f"{busy_s / whole:.0%}" if whole else ""]
        for name, busy_s in sorted(found.busy_s.items(), key=lambda item: -item[1])
    ]
    if is_latency:
        title, of = "The critical path", "share of the path"
    else:
        title, of = "Load of devices and links, per micro-batch", "of the busiest"
    return title, ["device or link", "time", of], rows


def _seats(problem: Problem, plan: Plan, found: Explanation) -> Table:
    rows = [
        [
            seat.op + (f" and {seat.num_colocated} colocated" if seat.num_colocated else ""),
            f"{seat.device} ({time_words(problem, seat.seconds)})",
            "; ".join(f"{e.device}: {_worded(problem, plan, found, e)}" for e in seat.alternatives),
        ]
        for seat in found.seats
    ]
    return "The heaviest operators", ["operator", "sits on", "elsewhere"], rows


def _value(problem: Problem, plan: Plan, value: float) -> str:
    return objective_value(replace(plan, value=value), problem)


def _change(found: Explanation, value: float) -> str:
    return f"{value / found.value - 1:+.1%}" if found.value > 0 else ""


def _worded(problem: Problem, plan: Plan, found: Explanation, other: Elsewhere) -> str:
    if other.value is None:
        return other.reason
    return f"{_value(problem, plan, other.value)} ({_change(found, other.value)})"
