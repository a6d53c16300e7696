"""The explanation of a plan as tables in the terminal."""

from dataclasses import replace

from hardware.units import format_seconds
from scheduler.explain import Elsewhere, Explanation
from scheduler.plan import Plan
from scheduler.problem import Problem
from ui import terminal


def show_explanation(problem: Problem, plan: Plan, found: Explanation) -> None:
    """What binds, what would help, devices left out, and the alternatives of the heaviest."""
    share = found.busy_s[found.binds]
    terminal.out.print(f"Binds: {found.binds}, {format_seconds(share)} of work.")
    for device, used in found.full.items():
        terminal.out.print(f"Memory of {device} is {used:.0%} full.")
    rows = [
        [r.change, _value(problem, plan, r.value), _change(plan, r.value), r.how]
        for r in found.reliefs
    ]
    terminal.table("What would help", ["change", "value", "", "how"], rows)
    rows = [[e.device, _worded(problem, plan, e)] for e in found.left_out]
    if rows:
        terminal.table("Devices left out: best value found that uses one", ["device", ""], rows)
    rows = [
        [
            seat.op + (f" and {seat.num_colocated} colocated" if seat.num_colocated else ""),
            f"{seat.device} ({format_seconds(seat.seconds)})",
            "; ".join(f"{e.device}: {_worded(problem, plan, e)}" for e in seat.alternatives),
        ]
        for seat in found.seats
    ]
    terminal.table("The heaviest operators", ["operator", "sits on", "elsewhere"], rows)


def _value(problem: Problem, plan: Plan, value: float) -> str:
    return terminal.objective_value(replace(plan, value=value), problem)


def _change(plan: Plan, value: float) -> str:
    return f"{value / plan.value - 1:+.1%}" if plan.value > 0 else ""


def _worded(problem: Problem, plan: Plan, found: Elsewhere) -> str:
    if found.value is None:
        return found.reason
    return f"{_value(problem, plan, found.value)} ({_change(plan, found.value)})"
