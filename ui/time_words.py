"""Times and rates for people; published instances name no unit, theirs is the file's."""

from hardware.units import format_seconds
from scheduler.problem import Problem

PRODUCT = {"training": "samples", "decode": "tokens"}
"""What the modes that are no inference give."""


def has_own_unit(problem: Problem) -> bool:
    """Whether times are in a unit that only the author of a placement instance knows."""
    return bool(problem.costs.transfers)


def time_words(problem: Problem, seconds: float) -> str:
    """'4.2 ms', or '4.2 (file's unit)'."""
    return f"{seconds:.6g} (file's unit)" if has_own_unit(problem) else format_seconds(seconds)


def product(problem: Problem) -> str:
    """What is made: inferences, the samples of training, or tokens."""
    return PRODUCT.get(problem.graph.mode, "inferences")


def rate_words(problem: Problem, per_s: float) -> str:
    """'1582 inferences/s', or per the file's unit."""
    per = " per unit of time of the file" if has_own_unit(problem) else "/s"
    return f"{per_s:.4g} {product(problem)}{per}"


def gap_words(gap: float) -> str:
    """What a gap to the lower bound says of the optimum."""
    return "proven optimal" if gap < 1e-9 else f"the optimum is at most {gap:.1%} less"
