"""The explanation of a plan as lines and tables: in the terminal, the report page and the app."""

from dataclasses import replace

from hardware.units import format_seconds
from scheduler.explanation.explain import Elsewhere, Explanation
from scheduler.plan import Plan
from scheduler.problem import Problem
from ui import terminal
from ui.terminal_generations import Table
from ui.terminal_plans import objective_value


def show_explanation(problem: Problem, plan: Plan, found: Explanation) -> None:
    """What binds, what would help, devices left out, and the alternatives of the heaviest."""
    for line in explanation_lines(problem, found):
        terminal.out.print(line)
    for table in [*short_tables(problem, plan, found), _seats(problem, plan, found)]:
        terminal.table(*table)


def explanation_lines(problem: Problem, found: Explanation) -> list[str]:
    """What binds, what is full, and whether alternatives were left untried."""
    where = "of the critical path" if problem.objective == "latency" else "of work"
    lines = []
    if found.binds:
        lines.append(f"Binds: {found.binds}, {format_seconds(found.busy_s[found.binds])} {where}.")
    lines += [f"Memory of {device} is {used:.0%} full." for device, used in found.full.items()]
    if found.valued < found.possible:
        lines.append(
            f"Tried {found.valued:,} of {found.possible:,} alternatives, the likeliest first: "
            f"each values a plan of {len(problem.graph.ops):,} operators."
        )
    return lines


def short_tables(problem: Problem, plan: Plan, found: Explanation) -> list[Table]:
    """What more of the hardware would give, and the devices left out, where there are any."""
    helps = [
        [r.change, _value(problem, plan, r.value), _change(found, r.value), r.how]
        for r in found.reliefs
    ]
    unused = [[e.device, _worded(problem, plan, found, e)] for e in found.left_out]
    tables: list[Table] = [
        ("What would help", ["change", "value", "against this plan", "how"], helps),
        ("Devices left out", ["device", "best value found that uses it"], unused),
    ]
    return [table for table in tables if table[2]]


def _seats(problem: Problem, plan: Plan, found: Explanation) -> Table:
    rows = [
        [
            seat.op + (f" and {seat.num_colocated} colocated" if seat.num_colocated else ""),
            f"{seat.device} ({format_seconds(seat.seconds)})",
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
