from dataclasses import replace

import numpy as np
import pytest
from conftest import make_cluster, make_op, make_problem

from hardware.cluster import Cluster
from scheduler.cpop import cpop_schedule
from scheduler.graph import Graph, Tensor
from scheduler.heft import by_rank, heft_schedule, upward_ranks
from scheduler.peft import optimistic_costs
from scheduler.tasks import tasks_of

# Topcuoglu, Hariri, Wu 2002, figure 2: computation costs and communication costs of ten tasks.
HEFT_W = [
    [14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10],
    [13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16],
]  # fmt: skip
HEFT_C = {
    (0, 1): 18, (0, 2): 12, (0, 3): 9, (0, 4): 11, (0, 5): 14, (1, 7): 19, (1, 8): 16, (2, 6): 23,
    (3, 7): 27, (3, 8): 23, (4, 8): 13, (5, 7): 15, (6, 9): 17, (7, 9): 11, (8, 9): 13,
}  # fmt: skip


def literal(w, c, **changes):
    """A problem with literal transfer times: a tensor of its own for every edge."""
    ops = []
    for i in range(len(w)):
        op = make_op(f"o{i}", [f"t{j}_{k}" for j, k in c if k == i] or ["x"])
        made = [f"t{j}_{k}" for j, k in c if j == i] or [f"t{i}"]
        ops.append(replace(op, outputs=tuple(Tensor(t, (1,), "float32") for t in made)))
    last = tuple(f"t{i}" for i in range(len(w)) if all(j != i for j, _ in c))
    graph = Graph("test", tuple(ops), (Tensor("x", (1,), "float32"),), last)
    names = "abcdefgh"[: len(w[0])]
    cluster = Cluster("no links", make_cluster(names).devices)
    problem = make_problem(graph, w, cluster, objective="latency", **changes)
    away = 1 - np.eye(len(names))
    moves = {f"t{i}_{j}": seconds * away for (i, j), seconds in c.items()}
    return replace(problem, costs=replace(problem.costs, transfers=moves))


def makespan_of(tasks, schedule):
    device, start = schedule(tasks)
    return max(start + tasks.w[np.arange(len(start)), device])


def test_heft_ranks_and_order_of_the_paper():
    tasks = tasks_of(literal(HEFT_W, HEFT_C))
    rank = upward_ranks(tasks)
    assert rank.round(3).tolist() == [108, 77, 80, 80, 69, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert by_rank(tasks, rank).tolist() == [0, 2, 3, 1, 4, 5, 8, 6, 7, 9]


@pytest.mark.parametrize(
    ("w", "c", "schedule", "makespan"),
    [
        (HEFT_W, HEFT_C, heft_schedule, 80),
        (HEFT_W, HEFT_C, cpop_schedule, 86),
    ],
)
def test_makespans_of_the_papers(w, c, schedule, makespan):
    assert makespan_of(tasks_of(literal(w, c)), schedule) == makespan


def test_optimistic_costs_are_the_recursion_of_the_paper():
    tasks = tasks_of(literal(HEFT_W, HEFT_C))
    w, after = np.array(HEFT_W), {i: [j for k, j in HEFT_C if k == i] for i in range(10)}

    def oct_s(i, p):
        return max(
            (
                min(oct_s(j, q) + w[j, q] + HEFT_C[i, j] * (p != q) for q in range(3))
                for j in after[i]
            ),
            default=0,
        )

    expected = [[oct_s(i, p) for p in range(3)] for i in range(10)]
    assert optimistic_costs(tasks).tolist() == expected
