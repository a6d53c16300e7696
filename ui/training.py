"""A training step in a scenario: its graph for every number of micro-batches, and the best of them.

Two captures give the graphs of all numbers; that of the number chosen is captured, too.
"""

from collections.abc import Callable

from scheduler.ir.graph import Graph
from scheduler.problem import Problem
from scheduler.training.affine import affine
from scheduler.training.micro_batches import Tried, divisors, try_micro_batches

BATCH_NORM = "native_batch_norm"
WHOLE = (
    "the model normalises over the batch, which in micro-batches gives other figures; set "
    "num_micro_batches to cut the batch even so"
)


def tried_micro_batches(
    batch: int,
    captured: Callable[[int], Graph],
    state: Callable[[Graph, int], Problem],
    tell: Callable[[float], None],
) -> tuple[Tried, ...]:
    """What every number of micro-batches gives; batch normalisation leaves the batch whole.

    `captured` captures the graph of one of m micro-batches, `state` states its problem.
    """
    whole = captured(1)
    numbers = divisors(batch)
    if any(BATCH_NORM in op.target for op in whole.ops):
        refused = (Tried(m, batch // m, reason=WHOLE) for m in numbers[1:])
        return (*try_micro_batches(batch, lambda _: state(whole, 1), numbers[:1]), *refused)

    def graph(m: int) -> Graph:
        if m in numbers[:2]:
            return captured(m)
        try:
            return affine(whole, captured(numbers[1]), batch // m)
        except ValueError:
            return captured(m)

    tried = list[Tried]()
    for one in try_micro_batches(batch, lambda m: state(graph(m), m), numbers):
        tried.append(one)
        tell(len(tried) / len(numbers))
    return tuple(tried)
