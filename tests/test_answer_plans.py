from dataclasses import replace
from itertools import product

import pytest
from conftest import make_chain, make_cluster, make_graph, make_profile
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError
from scheduler.answer_plans import over_answer, prefill_problem, solve_answer
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.check import check_plan
from scheduler.evaluation.evaluate import finish_plan
from scheduler.generation import Generation
from scheduler.portfolio import solve
from scheduler.problem import Problem


def generation_of(graph, new_tokens, factors):
    """A decode step and a prefill of the same operators with `factors` times the work."""
    ops = tuple(
        replace(op, weights={f"w_{op.name}": 100}, dims={"batch": 1, "m": 1, "n": 10, "k": 10})
        for op in graph.ops
    )
    first = tuple(replace(op, flops=op.flops * f) for op, f in zip(ops, factors, strict=True))
    decode = replace(graph, ops=ops, mode="decode")
    return Generation(replace(graph, ops=first, mode="prefill"), decode, 8, new_tokens)


def two_devices(**link):
    """`a` starts at once and computes slowly; `b` takes a tenth of a second to start."""
    cluster = make_cluster(**link)
    devices = {
        "a": make_profile("slow", 10.0, launch_overhead_s=0.0),
        "b": make_profile("fast", 1e3, launch_overhead_s=0.1),
    }
    return replace(cluster, devices=devices)


def decode_problem(generation, cluster, **rules):
    graph = generation.decode
    return Problem(graph, cluster, cost_table(graph, cluster), **{"objective": "latency", **rules})


def both(problem, generation):
    return solve_answer(problem, solve(problem), generation, solve)


@pytest.mark.parametrize(("new_tokens", "device"), [(2, "b"), (10_000, "a")])
def test_the_phase_that_takes_longest_decides(new_tokens, device):
    generation = generation_of(make_chain(3), new_tokens, [100.0] * 3)
    problem = decode_problem(generation, two_devices())
    assert solve(problem).best.devices == ["a"]
    best = both(problem, generation).best
    assert best.devices == [device]
    assert best.value == pytest.approx(best.prefill_value + best.num_steps * best.step_value)
    assert best.num_steps == new_tokens - 1


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_values_and_bounds_hold_for_every_placement(data):
    n = data.draw(st.integers(1, 4))
    parents = {f"o{i}": [f"o{j}" for j in range(i) if data.draw(st.booleans())] for i in range(n)}
    factors = [data.draw(st.sampled_from([1.0, 30.0, 1000.0])) for _ in range(n)]
    generation = generation_of(make_graph(parents), data.draw(st.integers(1, 200)), factors)
    objective = data.draw(st.sampled_from(["latency", "cost"]))
    problem = decode_problem(
        generation,
        two_devices(bytes_per_s=data.draw(st.sampled_from([80.0, 8e3]))),
        objective=objective,
        usd_per_hour=3.0,
        pins={"o0": "a"} if data.draw(st.booleans()) else {},
    )
    found = both(problem, generation)
    prefill = prefill_problem(problem, generation, {})
    values = []
    for devices in product("ab", repeat=n):
        try:
            plan = finish_plan(problem, "any", dict(zip(parents, devices, strict=True)), 0.0, 0.0)
            values.append(over_answer(problem, plan, prefill, generation).value)
        except InfeasibleError:
            continue
    assert found.best.lower_bound <= min(values) * (1 + 1e-9)
    assert min(values) <= found.best.value * (1 + 1e-9)
    for plan in found.plans:
        assert not check_plan(problem, plan)


def test_the_answer_is_held_to_the_latency_bound():
    generation = generation_of(make_chain(3), 10, [100.0] * 3)
    usual = decode_problem(generation, two_devices(), objective="cost", usd_per_hour=1.0)
    seconds = both(decode_problem(generation, two_devices()), generation).best.value
    assert both(replace(usual, latency_bound_s=1.01 * seconds), generation).best.devices
    with pytest.raises(InfeasibleError, match="the whole answer takes"):
        both(replace(usual, latency_bound_s=0.5 * seconds), generation)
