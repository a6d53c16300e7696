"""From a placement problem to arrays."""

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints, csr
from scheduler.problem import Problem


def lower(problem: Problem) -> Arrays:
    """Write a problem as arrays. O(operators + tensor uses)."""
    graph, costs = problem.graph, problem.costs
    num_devices = len(costs.devices)
    row = problem.op_index
    tensors = list(problem.tensor_index)
    start, reader = csr([[row[c] for c in graph.consumers[name]] for name in tensors])
    latency_s, s_per_byte, medium = _links(problem)
    table = [costs.transfers[name] for name in tensors if name in costs.transfers]
    if 0 < len(table) < len(tensors):
        raise ValueError("literal transfer times must be given for all tensors or for none")
    num_bytes = np.array([graph.tensors[name].num_bytes for name in tensors], dtype=float)
    if costs.ends:
        ends_s = np.array([costs.ends[name] for name in tensors]).reshape(-1, num_devices)
    elif problem.communication == "serialised":
        ends_s = _ends(problem, num_bytes)
    else:
        ends_s = np.zeros((0, num_devices))
    op_bytes, least_bytes = _op_bytes(problem)
    return Arrays(
        seconds=problem.seconds,
        producer=np.array([row[graph.producer[name]] for name in tensors], dtype=np.int64),
        start=start,
        reader=reader,
        num_bytes=num_bytes,
        latency_s=latency_s,
        s_per_byte=s_per_byte,
        table_s=np.array(table, dtype=float).reshape(-1, num_devices, num_devices),
        ends_s=ends_s,
        medium=medium,
        unit=problem.unit,
        op_bytes=op_bytes,
        least_bytes=least_bytes,
        limit_bytes=np.array([problem.memory_limit_bytes(d) for d in costs.devices]),
    )


def _op_bytes(problem: Problem) -> tuple[Floats, Floats]:
    """(num_ops,) parameters, states and gradients, each once in a colocation class.

    Then the same, with what several classes use shared out among them.
    """
    graph, unit = problem.graph, problem.unit.tolist()
    first: dict[tuple[str, str], dict[int, int]] = {}
    size: dict[tuple[str, str], int] = {}
    for i, op in enumerate(graph.ops):
        held = {("weight", name): num_bytes for name, num_bytes in op.weights.items()}
        if op.phase == "optimizer":
            held |= {("gradient", name): graph.tensors[name].num_bytes for name in op.inputs}
        for key in held:
            first.setdefault(key, {}).setdefault(unit[i], i)
        size |= held
    op_bytes = np.array([op.state_bytes for op in graph.ops], dtype=float)
    least_bytes = op_bytes.copy()
    for key, users in first.items():
        for i in users.values():
            op_bytes[i] += size[key]
            least_bytes[i] += size[key] / len(users)
    return op_bytes, least_bytes


def _links(problem: Problem) -> tuple[Floats, Floats, Ints]:
    """Latency, seconds per byte and medium of the link between each two devices."""
    num_devices = len(problem.costs.devices)
    shape = (num_devices, num_devices)
    latency_s, s_per_byte = np.full(shape, np.inf), np.full(shape, np.inf)
    medium = np.full(shape, -1, dtype=np.int64)
    if not problem.cluster.links and problem.media:
        medium[~np.eye(num_devices, dtype=bool)] = list(problem.media.values())
    for link in problem.cluster.links:
        at = problem.device_index[link.src], problem.device_index[link.dst]
        latency_s[at], s_per_byte[at] = link.latency_s, 1 / link.bytes_per_s
        medium[at] = problem.media[link.shared_medium]
    for matrix in (latency_s, s_per_byte):
        np.fill_diagonal(matrix, 0.0)
    return latency_s, s_per_byte, medium


def _ends(problem: Problem, num_bytes: Floats) -> Floats:
    """(num_tensors, num_devices) seconds on each device's fastest link; CPUs pay nothing."""
    ends_s = np.zeros((len(num_bytes), len(problem.costs.devices)))
    for name, j in problem.device_index.items():
        if problem.cluster.devices[name].kind != "cpu":
            mine = [link for link in problem.cluster.links if name in (link.src, link.dst)]
            best = min(mine, key=lambda link: -link.bytes_per_s, default=None)
            if best:
                ends_s[:, j] = best.latency_s + num_bytes / best.bytes_per_s
    return ends_s
