"""Non-contiguous splits by an integer programme, over all devices or over a few of them.

Variables: x[u, d] operator u on device d; for serialised transfers cut[t, d] tensor t has ends both
on d and elsewhere, for overlapped ones sent[t, p, q] tensor t goes from p to q. Minimise the
largest load of a device or medium, within memory; warm-started from a placement.

Source: the integer programme for throughput of Tarnawski et al., "Efficient algorithms for device
placement of DNN graph operators", NeurIPS 2020, section 5.1, arXiv:2006.16423; solved by CP-SAT.
"""

from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints
from scheduler.throughput.orders import hyperedges

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

TICKS = 10_000_000
"""Whole numbers that the present largest load is cut into, rounding down: bounds stay bounds."""
WORKERS = 2
MOST_VARIABLES = 300_000

Variables = dict[tuple[int, int], Any]
Terms = dict[int, list[tuple[int, Any]]]
"""Whole numbers and the variables that cause them, by resource."""


class Reassigned(NamedTuple):
    """A placement, no worse than the given one, a bound on its largest load, the solver's word.

    `status`: `missing` where the solver is not installed, `large` where the programme would be too
    large, else what the solver says: `optimal`, `feasible`, `unknown`, ... `bound`: over all
    placements of the operators that were free.
    """

    device: Ints
    bound: float
    status: str


def reassign(arrays: Arrays, device: Ints, among: list[int], limit_s: float) -> Reassigned:
    """Place the operators that stand on the devices `among` anew, on these devices.

    With serialised transfers, tensors to other devices cost what they cost there whoever sends;
    overlapped ones need all devices in `among`.
    """
    free = np.flatnonzero(np.isin(device, among))
    loads = arrays.loads(device)
    value = float(loads[among].max() if arrays.serialised else loads.max())
    pairs = 1 if arrays.serialised else len(among)
    if (len(free) + arrays.num_tensors * pairs) * len(among) > MOST_VARIABLES:
        return Reassigned(device, 0.0, "large")
    if not 0 < value < np.inf:
        return Reassigned(device, 0.0, "unknown")
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return Reassigned(device, 0.0, "missing")
    model, x = _programme(cp_model.CpModel(), arrays, device, among, TICKS / value)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(limit_s, 0.01)
    solver.parameters.catch_sigint_signal = False  # it would take Ctrl-C from Python for good
    solver.parameters.num_workers = WORKERS
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Reassigned(device, 0.0, solver.status_name(status).lower())
    new = device.copy()
    for (u, d), taken in x.items():
        if solver.value(taken):
            new[u] = d
    bound = min(max(solver.best_objective_bound, 0.0) / TICKS, 1.0) * value
    better = arrays.loads(new).max() <= loads.max()
    return Reassigned(new if better else device, bound, solver.status_name(status).lower())


def _programme(
    model: "cp_model.CpModel", arrays: Arrays, device: Ints, among: list[int], tick: float
) -> tuple["cp_model.CpModel", Variables]:
    """Fill a model; `tick`: whole numbers in a second."""
    free = np.flatnonzero(np.isin(device, among)).tolist()
    x = {
        (u, d): model.new_bool_var("")
        for u in free
        for d in among
        if np.isfinite(arrays.seconds[u, d])
    }
    terms: Terms = {d: [] for d in range(arrays.num_resources)}
    for u in free:
        model.add_exactly_one(x[u, d] for d in among if (u, d) in x)
    for (u, d), taken in x.items():
        model.add_hint(taken, device[u] == d)
        terms[d].append((int(arrays.seconds[u, d] * tick), taken))
    for t, pins in enumerate(hyperedges(arrays)[0]):
        if arrays.serialised:
            _add_ends(model, (arrays.ends_s[t] * tick, device), pins, x, terms)
        else:
            _add_moves(model, (arrays, t, tick), pins, x, terms)
    whole = len(among) == arrays.num_devices  # only then its bound is one on all plans
    op_bytes = arrays.least_bytes if whole else arrays.op_bytes
    largest = model.new_int_var(0, TICKS, "")
    for d, mine in terms.items():
        if mine:
            model.add(sum(cost * taken for cost, taken in mine) <= largest)
        held = [int(op_bytes[u]) * taken for (u, e), taken in x.items() if e == d]
        if held and arrays.limit_bytes[d] < op_bytes.sum():
            model.add(sum(held) <= int(arrays.limit_bytes[d]))
    model.minimize(largest)
    return model, x


def _add_ends(
    model: "cp_model.CpModel",
    paid: tuple[Floats, Ints],
    pins: list[int],
    x: Variables,
    terms: Terms,
) -> None:
    """Charge a serialised tensor (ticks by device) to every device that holds some of its ends."""
    ticks, device = paid
    for d in np.flatnonzero(ticks >= 1).tolist():
        mine = [x[u, d] for u in pins if (u, d) in x]
        if not mine:
            continue
        cut = model.new_bool_var("")
        held = [bool(device[u] == d) for u in pins]
        model.add_hint(cut, any(held) and not all(held))
        if len(mine) < len(pins):
            model.add_bool_and([~taken for taken in mine]).only_enforce_if(~cut)
        else:
            for one, other in zip(mine, mine[1:] + mine[:1], strict=True):
                model.add_bool_or([~one, other, cut])
        terms[d].append((int(ticks[d]), cut))


def _add_moves(
    model: "cp_model.CpModel",
    tensor: tuple[Arrays, int, float],
    pins: list[int],
    x: Variables,
    terms: Terms,
) -> None:
    """Charge an overlapped tensor to the medium of each two devices that make and read it."""
    arrays, t, tick = tensor
    for p, q in permutations(range(arrays.num_devices), 2):
        made = x.get((pins[0], p))
        reads = [x[u, q] for u in pins[1:] if (u, q) in x]
        if made is None or not reads:
            continue
        moved = int(min(float(arrays.transfer_s(t, p, q)) * tick, 2 * TICKS))
        medium = int(arrays.medium[p, q])
        sent = model.new_bool_var("") if medium >= 0 else None
        for read in reads:
            model.add_bool_or([~made, ~read] + ([] if sent is None else [sent]))
        if sent is not None and moved:
            terms[medium].append((moved, sent))
