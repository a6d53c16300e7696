"""How loops that make no arrays are compiled, when that takes time, and the clock they look at."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import ParamSpec, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import event, types
from numba.extending import intrinsic

P = ParamSpec("P")
R = TypeVar("R")


def lean(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a short function that runs millions of times and makes no arrays.

    It counts no references to the arrays that it is given: that takes longer than it does.
    """
    compiled = numba.njit(cache=True, _nrt=False)  # type: ignore[call-overload]
    return cast(Callable[P, R], compiled(function))


class _Compiling(event.Listener):
    """Hears of the loops that a thread compiles, each with those that it calls."""

    def __init__(self, tell: Callable[[bool], object]) -> None:
        self.tell, self.thread, self.depth = tell, get_ident(), 0

    def on_start(self, _: event.Event) -> None:
        if get_ident() == self.thread:
            self.depth += 1
            if self.depth == 1:
                self.tell(True)

    def on_end(self, _: event.Event) -> None:
        if get_ident() == self.thread:
            self.depth -= 1
            if self.depth == 0:
                self.tell(False)


@contextmanager
def compiling(tell: Callable[[bool], object]) -> Iterator[None]:
    """Tell when this thread starts to compile a loop that is not in the cache, and when it ends."""
    with event.install_listener("numba:compile", _Compiling(tell)):
        yield


@intrinsic
def _monotonic_s(_):  # type: ignore[no-untyped-def]
    """Seconds of the C library's `clock_gettime(CLOCK_MONOTONIC)`."""

    def call(_context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        whole = ir.IntType(64)
        with builder.goto_entry_block():  # so that a loop takes no more and more of the stack
            timespec = builder.alloca(ir.ArrayType(whole, 2))
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), timespec.type])
        known, name = builder.module.globals, "clock_gettime"
        clock = known[name] if name in known else ir.Function(builder.module, kind, name)
        builder.call(clock, [ir.IntType(32)(time.CLOCK_MONOTONIC), timespec])
        parts = [builder.extract_value(builder.load(timespec), k) for k in range(2)]
        seconds, ns = (builder.sitofp(part, ir.DoubleType()) for part in parts)
        return builder.fadd(seconds, builder.fmul(ns, ir.DoubleType()(1e-9)))

    return types.float64(), call


if (
    time.get_clock_info("perf_counter").implementation == "clock_gettime(CLOCK_MONOTONIC)"
    and sys.maxsize > 2**32
):

    @numba.njit(cache=True)
    def clock_s() -> float:
        """Seconds of `time.perf_counter()`; a look takes some 0.1 us."""
        return _monotonic_s()  # type: ignore[call-arg]

else:

    @numba.njit(cache=True)
    def clock_s() -> float:
        """Seconds of `time.perf_counter()`; a look takes some 3 us."""
        with numba.objmode(now_s="float64"):
            now_s = time.perf_counter()
        return now_s  # noqa: RET504
