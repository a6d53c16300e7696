"""The split of a linear order over a sequence of devices whose largest load is least.

A probe gives each device, in turn, as many of the next operators as it does within a load; the load
is bisected.

Source: Pinar, Aykanat, "Fast optimal load balancing algorithms for 1D partitioning", J. Parallel
and Distributed Computing 64(8), 2004, doi:10.1016/j.jpdc.2004.05.003.
"""

from itertools import pairwise

import numpy as np

from scheduler.arrays import Arrays, Floats, Ints

MOST_SEQUENCES = 12
BISECTIONS = 40


def crossing(arrays: Arrays, amount: Floats) -> Floats:
    """(num_ops + 1,) sum of the amounts (t,) of the tensors that cross a cut before each place."""
    n, readers = arrays.num_ops, arrays.start[:-1]
    if not arrays.num_tensors:
        return np.zeros(n + 1)
    first = np.minimum(arrays.producer, np.minimum.reduceat(arrays.reader, readers))
    last = np.maximum(arrays.producer, np.maximum.reduceat(arrays.reader, readers))
    change = np.bincount(first + 1, amount, n + 2) - np.bincount(last + 1, amount, n + 2)
    return np.asarray(change.cumsum()[: n + 1])


def sequences(arrays: Arrays) -> list[Ints]:
    """Orders of devices to try: as given, without the slower ones, and the fastest first."""
    total_s = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0).sum(axis=0)
    runs = np.isfinite(arrays.seconds).any(axis=0)
    given = np.flatnonzero(runs)
    speeds = np.unique(total_s[runs])
    found = [given[total_s[given] <= slowest] for slowest in speeds]
    found.append(given[np.argsort(total_s[given], kind="stable")])
    distinct = {
        tuple(sequence.tolist()): sequence for sequence in (*found, *(f[::-1] for f in found))
    }
    return list(distinct.values())[-MOST_SEQUENCES:]


def split_evenly(arrays: Arrays, sequence: Ints) -> Ints | None:
    """The devices of the split of the order over a sequence of devices with the least load.

    A probe gives each device, in turn, as many of the next operators as it does within a load;
    the load is bisected. None where no load makes a split.
    """
    stages = _Stages(arrays, sequence)
    high = float(np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0).sum())
    best = stages.probe(np.inf)
    if best is None:
        return None
    low, high = 0.0, float(arrays.loads(best).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = stages.probe(middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


class _Stages:
    """Prefix sums over the order, from which a probe reads loads."""

    def __init__(self, arrays: Arrays, sequence: Ints) -> None:
        n = arrays.num_ops
        self.arrays, self.sequence = arrays, sequence
        finite = np.isfinite(arrays.seconds)
        zero = np.zeros((1, arrays.num_devices))
        work = np.vstack([zero, np.where(finite, arrays.seconds, 0.0).cumsum(axis=0)])
        self.work = np.ascontiguousarray(work.T)
        self.never = np.ascontiguousarray(np.vstack([zero, (~finite).cumsum(axis=0)]).T)
        self.held = np.append(0.0, arrays.op_bytes.cumsum())
        self.ends = [
            crossing(arrays, arrays.ends_s[:, d]) if arrays.serialised else np.zeros(n + 1)
            for d in range(arrays.num_devices)
        ]
        self.carried: dict[tuple[float, ...], Floats] = {}

    def moved(self, p: int, q: int) -> Floats:
        """(num_ops + 1,) seconds of the link from p to q for all that crosses each cut."""
        arrays, joined = self.arrays, self.arrays.medium[p, q] >= 0
        link: tuple[float, ...] = (joined, arrays.latency_s[p, q], arrays.s_per_byte[p, q])
        if len(arrays.table_s):
            link = (p, q)
        if link not in self.carried:
            if not joined:
                crosses = crossing(arrays, np.ones(arrays.num_tensors)) > 0
                carried = np.where(crosses, np.inf, 0.0)
            elif arrays.serialised:
                carried = np.zeros(arrays.num_ops + 1)
            else:
                all_tensors = np.arange(arrays.num_tensors)
                carried = crossing(arrays, arrays.transfer_s(all_tensors, p, q))
            carried[0] = carried[-1] = 0.0
            self.carried[link] = carried
        return self.carried[link]

    def probe(self, load_s: float) -> Ints | None:
        """A split with no load above `load_s`, as far as a greedy fill finds one."""
        arrays, n = self.arrays, self.arrays.num_ops
        device = np.empty(n, dtype=np.int64)
        i = 0
        following = dict(pairwise(self.sequence.tolist()))
        for p in self.sequence.tolist():
            most_s = self.work[p, i] + load_s * (1 + 1e-9)
            end = min(
                np.searchsorted(self.work[p], most_s, side="right"),
                np.searchsorted(self.never[p], self.never[p, i], side="right"),
            )
            reach = slice(i, max(i + 1, int(end)))  # beyond it a device does too much
            work = self.work[p, reach] - self.work[p, i] + self.ends[p][i] + self.ends[p][reach]
            fits = (work <= load_s) & (self.held[reach] - self.held[i] <= arrays.limit_bytes[p])
            if p in following:
                fits &= self.moved(p, following[p])[reach] <= load_s
            else:
                fits[: n - i] = False
            taken = np.flatnonzero(fits)
            j = i + int(taken[-1]) if len(taken) else i
            device[i:j] = p
            i = j
            if i == n:
                return device
        return None
