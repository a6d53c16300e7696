"""A problem of a few operators, to compile every loop before the clock of a real one starts."""

import numpy as np

from hardware.cluster import Cluster, Link
from hardware.profile import DeviceProfile
from hardware.provenance import Provenance
from scheduler.cost_model.costs import CostTable
from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.problem import Problem

LITERAL = Provenance("literal", "smallest problem")


def smallest(problem: Problem) -> Problem:
    """A diamond of operators on two unequal devices, with the problem's objective and links."""
    parents = {"a": ("x",), "b": ("t_a",), "c": ("t_a",), "d": ("t_b", "t_c"), "e": ("t_d",)}
    ops = tuple(
        Op(name, "other", 0, 0, 0, "float32", read, (Tensor(f"t_{name}", (9,), "float32"),))
        for name, read in parents.items()
    )
    graph = Graph("smallest", ops, (Tensor("x", (1,), "float32"),), ("t_e",))
    device = DeviceProfile("device", "gpu", {"float32": 1.0}, 10**9, 1.0, LITERAL)
    links = (Link("p", "q", 100.0, 0.1, LITERAL), Link("q", "p", 100.0, 0.1, LITERAL))
    cluster = Cluster("smallest", {"p": device, "q": device}, links)
    seconds = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 3.0], [1.0, 1.5], [1.0, 1.0]])
    return Problem(
        graph,
        cluster,
        CostTable(("p", "q"), seconds, dict.fromkeys(("p", "q"), LITERAL)),
        problem.objective,
        usd_per_hour=1.0,
        communication=problem.communication,
    )
