"""Summing the gradients of replicas: a ring, once a batch.

r replicas with W bytes of gradients send 2 (r - 1) / r W bytes each to the next of the ring, in
2 (r - 1) steps. What a backward pass has made is summed while the rest of it runs:

    backward  ..############|       what is left at its end, and the ring's latency, is waited for
    ring          ggg ggggggg ggg|

Sources: PipeDream (Narayanan et al., SOSP 2019, section 3.1, doi:10.1145/3341301.3359646): a stage
takes the longer of computing and 2 (r - 1) / r |w| / B; Thakur, Rabenseifner and Gropp,
"Optimization of collective communication operations in MPICH", IJHPCA 19(1), 2005,
doi:10.1177/1094342005051521: steps of a ring and their latency.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from hardware.errors import InfeasibleError
from scheduler.arrays import Floats
from scheduler.ir.graph import Graph
from scheduler.problem import Problem

Ring = tuple[float, float]
"""Seconds of latency, and seconds per byte of gradients."""


def gradients(graph: Graph, ops: Iterable[str]) -> dict[str, int]:
    """Bytes by tensor of the gradients that the optimizers among the operators read."""
    return {
        tensor: graph.tensors[tensor].num_bytes
        for name in ops
        if graph.by_name[name].phase == "optimizer"
        for tensor in graph.by_name[name].inputs
    }


def rings(problem: Problem, teams: Sequence[Sequence[str]]) -> list[Ring]:
    """The ring of each team of devices, over its slowest link.

    Links of one medium, whichever team's, share its bandwidth. In serialised communication a
    device pays for what it sends and for what it receives.

    Raises:
        InfeasibleError: no link joins two neighbours, or transfers are literal times.
    """
    if problem.costs.transfers or problem.costs.ends:
        raise InfeasibleError("literal transfer times do not say how long summing gradients takes")
    laid = [[(a, b) for a, b in zip(team, [*team[1:], team[0]], strict=True)] for team in teams]
    users = Counter(problem.medium(*ends) for ring in laid for ends in ring)
    found = []
    for ring in laid:
        steps = 2 * (len(ring) - 1)
        links = [problem.links[ends] for ends in ring]
        latency_s = steps * max(link.latency_s for link in links)
        slowest = max(users[link.shared_medium] / link.bytes_per_s for link in links)
        if problem.arrays.serialised:
            slowest = 2 * max(1 / link.bytes_per_s for link in links)
        found.append((latency_s, steps / len(ring) * slowest))
    return found


def left_s(ring: Ring, made_s: Floats, num_bytes: Floats, overlaps: bool) -> float:
    """Seconds from the end of the last backward pass until all gradients are summed.

    `made_s` (n,): when each gradient is there, counted from that end, so at most 0. They are
    summed as they come; `overlaps` False: all of them after the end.
    """
    latency_s, s_per_byte = ring
    order = np.argsort(made_s if overlaps else np.zeros(len(made_s)), kind="stable")
    after_s = num_bytes[order][::-1].cumsum()[::-1] * s_per_byte
    begun_s = made_s[order] if overlaps else np.zeros(len(made_s))
    return latency_s + max(0.0, float((begun_s + after_s).max(initial=0.0)))
