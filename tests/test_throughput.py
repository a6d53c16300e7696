import itertools
import sys
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.arrays import Arrays, csr
from scheduler.throughput.contiguous import best_order_split, split_order
from scheduler.throughput.contract import contract, together
from scheduler.throughput.device_sets import layers_of, least_loads, members, steps_of
from scheduler.throughput.exchange import exchange
from scheduler.throughput.integer_programme import reassign
from scheduler.throughput.local_search import anneal, net, state
from scheduler.throughput.orders import late, narrow
from scheduler.throughput.portfolio import SEARCHES, improve, start
from scheduler.throughput.set_bound import SetBound, tighten


def make_arrays(seconds, readers, ends=None, limit=np.inf, op_bytes=None, num_bytes=1.0):
    """`readers`: {producer: [readers]}; `ends`: seconds by tensor and device, None: overlapped."""
    seconds = np.array(seconds, dtype=float)
    n, d = seconds.shape
    t = len(readers)
    indptr, reader = csr(list(readers.values()))
    medium = d + np.arange(d * d).reshape(d, d)
    return Arrays(
        seconds=seconds,
        producer=np.array(list(readers), dtype=np.int64),
        start=indptr,
        reader=reader,
        num_bytes=np.full(t, num_bytes),
        latency_s=np.zeros((d, d)),
        s_per_byte=1.0 - np.eye(d),
        table_s=np.zeros((0, d, d)),
        ends_s=np.zeros((0, d)) if ends is None else np.array(ends, dtype=float).reshape(t, d),
        medium=medium,
        unit=np.arange(n),
        op_bytes=np.ones(n) if op_bytes is None else np.array(op_bytes, dtype=float),
        least_bytes=np.ones(n) if op_bytes is None else np.array(op_bytes, dtype=float),
        limit_bytes=np.full(d, float(limit)),
    )


def far():
    """A deadline for what ends by itself, loops that have yet to be compiled included."""
    return time.perf_counter() + 300


def brute_force(arrays):
    best = np.inf
    for device in itertools.product(range(arrays.num_devices), repeat=arrays.num_units):
        device = np.array(device)[arrays.unit]
        if (arrays.held_bytes(device) <= arrays.limit_bytes).all():
            best = min(best, float(arrays.loads(device).max()))
    return best


@st.composite
def arrays(draw, most=6):
    """Equal or unequal devices, pins, memory limits, colocation, tolls or shared media."""
    n, d = draw(st.integers(1, most)), draw(st.integers(1, 3))
    figure = st.integers(0, 20)
    same = draw(st.booleans())
    rows = [[draw(figure)] * d if same else [draw(figure) for _ in range(d)] for _ in range(n)]
    for row in rows:
        if draw(st.integers(0, 5)) == 0:
            pin = draw(st.integers(0, d - 1))
            row[:] = [seconds if j == pin else np.inf for j, seconds in enumerate(row)]
    readers = {
        i: mine
        for i in range(n)
        if (mine := [j for j in range(i + 1, n) if draw(st.integers(0, 2)) == 0])
    }
    toll = st.integers(0, 6)
    tolls = [[draw(toll)] * d if same else [draw(toll) for _ in range(d)] for _ in readers]
    serialised = draw(st.booleans())
    limit = draw(st.sampled_from([np.inf, (n + 1) // 2 + 1]))
    made = make_arrays(rows, readers, tolls if serialised else None, limit)
    medium = d + np.array([draw(st.integers(0, 2)) for _ in range(d * d)]).reshape(d, d)
    shared = medium if draw(st.booleans()) else made.medium
    joined = np.arange(n)
    if draw(st.integers(0, 2)) == 0:
        joined[draw(st.integers(0, n - 1))] = joined[draw(st.integers(0, n - 1))]
    _, first, unit = np.unique(joined, return_index=True, return_inverse=True)
    return replace(made, medium=shared, unit=first.argsort().argsort()[unit])


@settings(max_examples=30, deadline=None)
@given(arrays())
def test_plans_and_bounds_enclose_the_brute_force_optimum(problem):
    best = brute_force(problem)
    found = start(problem, 0.0)
    if best < np.inf and found.load < np.inf:
        improve(problem, found, time.perf_counter() + 0.05, lambda load, low: None)
        assert found.load >= best * (1 - 1e-9)
        assert found.load == pytest.approx(problem.loads(found.device).max())
        assert found.bound <= best * (1 + 1e-6) + 1e-9
        assert (problem.held_bytes(found.device) <= problem.limit_bytes).all()
    if best == np.inf:
        assert found.load == np.inf


@settings(max_examples=40, deadline=None)
@given(arrays())
def test_merging_and_contracting_keep_the_optimum(problem):
    best = brute_force(problem)
    if best < np.inf:
        unit = together(problem, best * 1.1 + 0.1)
        small = contract(problem, unit)
        assert brute_force(small) == pytest.approx(best)
        device = np.arange(small.num_ops) % small.num_devices
        assert small.loads(device) == pytest.approx(problem.loads(device[unit]))


@settings(max_examples=30, deadline=None)
@given(arrays(), st.integers(1, 3))
def test_weights_shared_by_stretches_bound_and_are_refined(problem, num_parts):
    best = brute_force(problem)
    if not 0 < best < np.inf:
        return
    sets = SetBound(contract(problem, problem.unit), best * 1.5, num_parts=num_parts)
    label, base = sets.parts()
    assert label.max() < (sets.arrays.num_ops if sets.fine else num_parts)
    assert all(base[label == part].max() in (0, 1) for part in set(label.tolist()))
    found = tighten(sets, time.perf_counter() + 0.05)
    assert found <= best * (1 + 1e-6) + 1e-9
    assert sets.num_parts >= num_parts


@settings(max_examples=40, deadline=None)
@given(arrays(), st.data())
def test_least_loads_are_those_of_all_sets(problem, data):
    n = problem.num_ops
    weight = np.array([data.draw(st.integers(-3, 9)) for _ in range(n)], dtype=np.int64)
    steps = steps_of(problem, 0, narrow(problem))
    layers = layers_of(steps.num_states, 120)
    costs = steps.costs(problem.seconds[:, 0], weight, 1e3)
    got = least_loads(steps, costs, layers, 30)
    want = np.full(120, np.inf)
    for chosen in itertools.product((0, 1), repeat=n):
        inside = np.array(chosen, dtype=bool)
        load = problem.seconds[inside, 0].sum()
        if problem.serialised:
            for t in range(problem.num_tensors):
                ends = [
                    problem.producer[t],
                    *problem.reader[problem.start[t] : problem.start[t + 1]],
                ]
                load += problem.ends_s[t, 0] * (0 < inside[ends].sum() < len(ends))
        level = 30 + int(weight[inside].sum())
        want[level] = min(want[level], load)
    assert got == pytest.approx(want, rel=1e-5)
    level = int(np.flatnonzero(np.isfinite(got))[-1])
    assert weight[members(steps, costs, level, layers)].sum() == level - 30


@settings(max_examples=40, deadline=None)
@given(arrays(most=5), st.randoms())
def test_split_order_is_the_best_contiguous_split(problem, random):
    if not problem.serialised:
        return
    order = list(range(problem.num_ops))
    random.shuffle(order)
    order = np.array(order)
    best = np.inf
    n, d = problem.num_ops, problem.num_devices
    for num in range(1, d + 1):
        for devices in itertools.permutations(range(d), num):
            for cuts in itertools.combinations_with_replacement(range(n + 1), num - 1):
                device = np.empty(n, dtype=np.int64)
                for k, (a, b) in enumerate(itertools.pairwise([0, *cuts, n])):
                    device[order[a:b]] = devices[k]
                if (problem.held_bytes(device) <= problem.limit_bytes).all():
                    best = min(best, float(problem.loads(device).max()))
    if best < np.inf:
        assert problem.loads(split_order(problem, order)).max() == pytest.approx(best)


def test_orders_are_permutations_and_weights_stand_beside_their_users():
    problem = make_arrays(np.ones((5, 2)), {0: [4], 1: [2], 2: [3], 3: [4]}, np.ones((4, 2)))
    assert late(problem).tolist() == [1, 2, 0, 3, 4]
    assert sorted(narrow(problem).tolist()) == [0, 1, 2, 3, 4]


def test_annealing_keeps_its_books():
    rng = np.random.default_rng(0)
    readers = {i: sorted({i + 1, int(rng.integers(i + 1, 40))}) for i in range(39)}
    problem = make_arrays(rng.random((40, 3)), readers, rng.random((39, 3)) * 0.1)
    device = rng.integers(0, 3, 40)
    at, best = state(problem, device), device.copy()
    lowest = anneal(net(problem), at, best, (0.02, 0.001, 5000), 1)
    assert at.load == pytest.approx(problem.loads(at.device))
    assert at.held == pytest.approx(problem.held_bytes(at.device))
    assert lowest == pytest.approx(problem.loads(best).max())
    assert lowest < problem.loads(device).max()


def test_a_cut_that_costs_more_than_a_device_is_never_made():
    problem = make_arrays(np.ones((4, 2)), {0: [1], 1: [2], 2: [3]}, [[9, 9], [0.1, 0.1], [9, 9]])
    assert together(problem, 3.0).tolist() == [0, 0, 1, 1]
    found = start(problem, 0.0)
    assert found.load == pytest.approx(2.1)
    sets = SetBound(contract(problem, together(problem, found.load)), found.load)
    assert tighten(sets, far()) == pytest.approx(2.1)


def test_isolated_operators_and_one_operator():
    even = make_arrays(np.ones((1000, 4)), {}, np.zeros((0, 4)))
    assert even.loads(best_order_split(even)).max() == pytest.approx(250, abs=1)
    one = make_arrays([[3.0, 2.0]], {})
    assert start(one, 0.0).load == 2.0


@settings(max_examples=30, deadline=None)
@given(arrays(most=5))
def test_integer_programme_over_all_devices_is_the_optimum(problem):
    problem = contract(problem, problem.unit)
    best = brute_force(problem)
    device = np.zeros(problem.num_ops, dtype=np.int64)
    fits = (problem.held_bytes(device) <= problem.limit_bytes).all()
    if best < np.inf and fits and problem.loads(device).max() > 0:
        found = reassign(problem, device, list(range(problem.num_devices)), 5.0)
        assert found.bound <= best * (1 + 1e-9)
        if found.status == "optimal":
            assert problem.loads(found.device).max() == pytest.approx(best, rel=1e-5, abs=1e-5)
            assert found.bound == pytest.approx(best, rel=1e-5, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(arrays(), st.integers(0, 2**20))
def test_an_exchange_is_the_best_split_of_two_devices(problem, seed):
    if not problem.serialised or problem.num_devices < 2:
        return
    problem = contract(problem, problem.unit)
    device = np.random.default_rng(seed).integers(0, problem.num_devices, problem.num_ops)
    mine = np.flatnonzero(device < 2)
    best = np.inf
    for chosen in itertools.product((0, 1), repeat=len(mine)):
        other = device.copy()
        other[mine] = chosen
        best = min(best, problem.loads(other)[:2].max())
    new = exchange(problem, device, (0, 1), narrow(problem))
    assert (new[device > 1] == device[device > 1]).all()
    if best < problem.loads(device)[:2].max() < np.inf:
        assert problem.loads(new)[:2].max() == pytest.approx(best, rel=2e-3)


def test_two_empty_devices_have_nothing_to_exchange():
    problem = make_arrays(np.ones((2, 3)), {0: [1]}, np.ones((1, 3)))
    device = np.array([2, 2])
    assert (exchange(problem, device, (0, 1), narrow(problem)) == device).all()


def test_a_missing_solver_leaves_the_plan_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    problem = make_arrays(np.ones((4, 2)), {0: [1], 1: [2], 2: [3]}, np.full((3, 2), 0.5))
    found = start(problem, 0.0)
    before = found.load
    with pytest.warns(UserWarning, match="ortools is not installed"):
        improve(problem, found, far(), lambda load, low: None, "integer_programme")
    assert found.load == before


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("serialised", [True, False])
def test_every_search_finds_an_even_split(name, serialised):
    ends = np.full((7, 2), 0.1) if serialised else None
    problem = make_arrays(np.ones((8, 2)), {i: [i + 1] for i in range(7)}, ends)
    found = start(problem, 0.0)
    found.device, found.load = np.zeros(8, dtype=np.int64), 8.0
    even, told = pytest.approx(4.1 if serialised else 4.0), []

    def until_even(load, bound):
        told.append(load)
        if load == even or len(told) > 100:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        improve(problem, found, far(), until_even, name)
    assert found.load == even
