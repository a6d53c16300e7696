"""Non-contiguous splits by an integer programme, over all devices or over a few of them.

Variables: x[u, d] operator u on device d; cut[t, d] tensor t has ends both on d and elsewhere, for
serialised transfers. Minimise the largest load; warm-started from a placement.

Source: the integer programme for throughput of Tarnawski et al., "Efficient algorithms for device
placement of DNN graph operators", NeurIPS 2020, section 5.1, arXiv:2006.16423; solved by CP-SAT.
"""

from typing import Any

import numpy as np

from scheduler.arrays import Arrays, Ints
from scheduler.orders import hyperedges

TICKS = 1_000_000
"""Whole numbers that the present largest load is cut into."""
WORKERS = 2


def reassign(arrays: Arrays, device: Ints, among: list[int], limit_s: float) -> tuple[Ints, str]:
    """Place the operators that stand on the devices `among` anew, on these devices.

    Serialised transfers only: tensors to other devices cost what they cost there whoever sends.
    Returns the placement (the given one if none is better) and what the solver says; `missing`
    where it is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return device, "missing"
    free = np.isin(device, among)
    loads = arrays.loads(device)
    value = float(loads[among].max())
    tick = TICKS / value
    model = cp_model.CpModel()
    x = {
        (u, d): model.new_bool_var("")
        for u in np.flatnonzero(free).tolist()
        for d in among
        if np.isfinite(arrays.seconds[u, d])
    }
    for u in np.flatnonzero(free).tolist():
        model.add_exactly_one(x[u, d] for d in among if (u, d) in x)
    terms: dict[int, list[tuple[int, Any]]] = {d: [] for d in among}
    for (u, d), taken in x.items():
        model.add_hint(taken, device[u] == d)
        terms[d].append((int(np.ceil(arrays.seconds[u, d] * tick)), taken))
    for t, pins in enumerate(hyperedges(arrays)[0]):
        inside = [u for u in pins if free[u]]
        for d in among if inside else []:
            cost = int(np.ceil(arrays.ends_s[t, d] * tick))
            if cost:
                cut = model.new_bool_var("")
                mine = [x[u, d] for u in inside if (u, d) in x]
                if len(mine) < len(pins):
                    model.add_bool_and([~taken for taken in mine]).only_enforce_if(~cut)
                else:
                    for one, other in zip(mine, mine[1:] + mine[:1], strict=True):
                        model.add_bool_or([~one, other, cut])
                terms[d].append((cost, cut))
    largest = model.new_int_var(0, int(TICKS * (1 + 1e-3)), "")
    for d in among:
        model.add(sum(cost * taken for cost, taken in terms[d]) <= largest)
        if np.isfinite(arrays.limit_bytes[d]) and arrays.limit_bytes[d] < arrays.op_bytes.sum():
            held = [int(arrays.op_bytes[u]) * taken for (u, e), taken in x.items() if e == d]
            model.add(sum(held) <= int(arrays.limit_bytes[d]))
    model.minimize(largest)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(limit_s, 0.01)
    solver.parameters.num_workers = WORKERS
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return device, solver.status_name(status).lower()
    new = device.copy()
    for (op, chosen), taken in x.items():
        if solver.value(taken):
            new[op] = chosen
    better = arrays.loads(new)[among].max() < value
    return (new if better else device), solver.status_name(status).lower()
