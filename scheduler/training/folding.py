"""The backward pass of a training step folded onto its forward pass: layers to be split."""

import numpy as np

from scheduler.arrays import Floats
from scheduler.problem import Problem
from scheduler.training.accumulation import ADDS


def folded(problem: Problem, last: bool = False) -> Floats:
    """(num_ops,) places in an order that lays the backward pass beside the forward pass.

    What must share a device stands with its first (or last) forward operator; what only serves an
    optimizer, or the sum of its gradients, stands with that. Another backward operator stands where
    the last forward operator stands that it reads from, or else with the first of those whose
    gradients it reads.
    """
    graph, row, unit = problem.graph, problem.op_index, problem.unit.tolist()
    forward = [i for i, op in enumerate(graph.ops) if op.phase == "forward"]
    home = {unit[i]: float(i) for i in (forward if last else reversed(forward))}
    place = np.array([home.get(u, np.nan) for u in unit])
    serves = np.array([op.phase == "optimizer" or op.target == ADDS for op in graph.ops])
    late = np.flatnonzero(np.isnan(place) | serves).tolist()
    for i in reversed(late):
        readers = [row[c] for t in graph.ops[i].outputs for c in graph.consumers.get(t.name, ())]
        if np.isnan(place[i]) and readers and serves[readers].all():
            serves[i], place[i] = True, place[readers].min()
    for i in late:
        if np.isnan(place[i]):
            made_by = [row[graph.producer[t]] for t in graph.ops[i].inputs if t in graph.producer]
            saved = [place[j] for j in made_by if graph.ops[j].phase == "forward"]
            others = [place[j] for j in made_by]
            place[i] = max(saved) if saved else min(others, default=float(forward[-1]))
    return place
