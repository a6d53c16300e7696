from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import make_chain, make_cluster, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_list_scheduling import problems

from scheduler.bounds.load_bound import load_bound
from scheduler.bounds.lower_bound import lower_bound
from scheduler.bounds.media_bound import media_bound


def least_load(problem):
    """By every placement; classes stay together."""
    arrays = problem.arrays
    placements = product(range(arrays.num_devices), repeat=arrays.num_units)
    return min(arrays.loads(np.array(device)[arrays.unit]).max() for device in placements)


@settings(max_examples=60, deadline=None)
@given(problems(most=6), st.booleans())
def test_no_placement_is_below_the_bound(problem, alike):
    problem = replace(problem, objective="throughput")
    if alike and len(problem.costs.devices) == 3:  # two devices of a kind
        seconds = problem.costs.seconds[:, [0, 0, 2]]
        problem = replace(
            problem, costs=replace(problem.costs, seconds=seconds, low_s=seconds, high_s=seconds)
        )
    bound_s = media_bound(problem)
    assert bound_s <= least_load(problem) * (1 + 1e-9)
    assert lower_bound(problem) >= bound_s


@pytest.mark.parametrize(("bytes_per_s", "bound_s", "least_s"), [(1e9, 4, 4), (0.1, 40 / 7, 8)])
def test_what_suits_another_device_stays_where_the_link_is_slow(bytes_per_s, bound_s, least_s):
    """Of a chain, every second operator suits b. Sent for free, each device works 4 s.

    Where nothing can be sent all is on a (8 s) or on b (20 s); the bound is a mixture of the two.
    """
    seconds = np.array([[1.0, 4.0], [1.0, 1.0]] * 4)
    problem = make_problem(make_chain(8), seconds, make_cluster(bytes_per_s=bytes_per_s))
    assert load_bound(problem) == pytest.approx(4.0)
    assert media_bound(problem) == pytest.approx(bound_s, rel=2e-2)
    assert least_load(problem) == pytest.approx(least_s)
