from dataclasses import replace
from itertools import product

import numpy as np
from conftest import make_cluster, make_graph, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError
from scheduler.bounds import lower_bound
from scheduler.evaluate import finish_plan


@st.composite
def problems(draw, objectives=("throughput", "latency"), most=5):
    """Short of memory, with shared weights, states, pins, forbidden devices and colocation."""
    n, names = draw(st.integers(1, most)), "abc"[: draw(st.integers(2, 3))]
    parents = {
        f"o{i}": [f"o{j}" for j in range(i) if draw(st.integers(0, 2)) == 0] for i in range(n)
    }
    graph = make_graph(parents, out_bytes=draw(st.sampled_from([4, 400])))
    trains = draw(st.booleans())
    ops = []
    for op in graph.ops:
        used = draw(st.lists(st.sampled_from("uvwxyz"), max_size=2, unique=True))
        size = {w: 400 * (1 + "uvwxyz".index(w)) for w in used}
        is_read = any(op.name in above for above in parents.values())
        last = trains and ops and not is_read and draw(st.booleans())
        phase = "optimizer" if last else "forward"
        ops.append(
            replace(op, weights=size, state_bytes=draw(st.sampled_from([0, 300])), phase=phase)
        )
    graph = replace(graph, ops=tuple(ops), mode="training" if trains else graph.mode)
    medium = draw(st.sampled_from(["", "bus"]))
    cluster = make_cluster(names, draw(st.sampled_from([1e2, 1e4])), 0.01, 10**4, medium)
    limits = st.sampled_from([1000, 2000, 3000, 10**4])
    kinds = st.sampled_from(["gpu", "cpu"])
    devices = {
        name: replace(device, kind=draw(kinds), memory_bytes=draw(limits))
        for name, device in cluster.devices.items()
    }
    figure = st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0])
    same = draw(st.booleans())
    rows = [[draw(figure)] * len(names) if same else [draw(figure) for _ in names] for _ in ops]
    some, other = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    return make_problem(
        graph, rows, replace(cluster, devices=devices),
        objective=draw(st.sampled_from(objectives)),
        communication=draw(st.sampled_from(["overlapped", "serialised"])),
        pins={f"o{some}": names[-1]} if draw(st.booleans()) else {},
        forbidden={f"o{other}": ("a",)} if draw(st.booleans()) else {},
        colocated=((f"o{some}", f"o{other}"),) if some != other and draw(st.booleans()) else (),
        num_micro_batches=draw(st.sampled_from([1, 2])), memory_headroom=0.0,
    )  # fmt: skip


def least_value(problem):
    """The least value of any placement, its operators in the given order."""
    best, names = np.inf, problem.costs.devices
    for device in product(names, repeat=int(problem.unit.max()) + 1):
        placed = {op.name: device[u] for op, u in zip(problem.graph.ops, problem.unit, strict=True)}
        try:
            best = min(best, finish_plan(problem, "all", placed, 0.0, 0.0).value)
        except InfeasibleError:
            continue
    return best


@settings(max_examples=40, deadline=None)
@given(problems())
def test_bounds_hold_where_memory_is_short(problem):
    best = least_value(problem)
    try:
        assert lower_bound(problem) <= best * (1 + 1e-9)
    except InfeasibleError:
        assert best == np.inf
