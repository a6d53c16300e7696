"""How loops that make no arrays are compiled, and the clock that they look at."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def lean(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a short function that runs millions of times and makes no arrays.

    It counts no references to the arrays that it is given: that takes longer than it does.
    """
    compiled = numba.njit(cache=True, _nrt=False)  # type: ignore[call-overload]
    return cast(Callable[P, R], compiled(function))


@numba.njit(cache=True)
def clock_s() -> float:
    """Seconds of `time.perf_counter()`; a look takes some 3 us."""
    with numba.objmode(now_s="float64"):
        now_s = time.perf_counter()
    return now_s  # noqa: RET504
