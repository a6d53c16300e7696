"""Sets of operators that a device can hold, and the weights that make them cover the least.

The linear programme of Gilmore and Gomory, `set_bound.py`, over the sets known so far. Weights may
be shared by many operators: with few of them it needs few sets.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, hstack, vstack

from scheduler.arrays import Floats, Ints


class Parts(NamedTuple):
    """Operators whose weights keep their proportions.

    Attributes:
        label: (num_ops,) part of each operator.
        base: (num_ops,) its weight where the largest of its part is 1.
    """

    label: Ints
    base: Floats


class Pool:
    """Different sets of `num_ops` operators, each with a kind of device and its load there."""

    def __init__(self, num_ops: int) -> None:
        """Start empty."""
        self.num_ops = num_ops
        self.kinds: list[int] = []
        self.loads: list[float] = []
        self._members: list[Ints] = []
        self._seen: set[tuple[int, bytes]] = set()
        self._rows: Any = csr_array((0, num_ops))

    def __len__(self) -> int:
        """Sets."""
        return len(self.kinds)

    def add(self, kind: int, inside: NDArray[np.bool_], load: float) -> None:
        """Add a set, unless it is known."""
        key = (kind, inside.tobytes())
        if key not in self._seen:
            self._seen.add(key)
            self.kinds.append(kind)
            self.loads.append(load)
            self._members.append(np.flatnonzero(inside))

    @property
    def rows(self) -> Any:
        """(sets, num_ops) 1 where a set holds an operator, sparse."""
        if self._rows.shape[0] < len(self):
            start = np.cumsum([0, *map(len, self._members)])
            member = np.concatenate(self._members)
            shape = len(self), self.num_ops
            self._rows = csr_array((np.ones(len(member)), member, start), shape=shape)
        return self._rows

    def heaviest(self, weights: Floats) -> float:
        """The largest weight of a set, without its sign."""
        return float(np.abs(self.rows @ weights).max(initial=0.0))

    def cover(
        self, counts: Ints, target: float, parts: Parts, signed: bool
    ) -> tuple[float, Floats]:
        """Devices (as a share of those there are) that sets within a load need to hold all.

        Also the operators' weights w, each its base times the y of its part, from the dual

            max sum w  s.t.  w(S) <= alpha_kind for every set, |y| <= 1, alpha >= 0,
                             sum counts alpha <= 1,   y >= 0 unless signed.

        The primal is solved: it has few rows where there are few parts. Of the sets of one operator
        only those whose base is 1 say anything.
        """
        from scipy.optimize import linprog

        label, base = parts
        num_parts, num_kinds = int(label.max()) + 1, len(counts)
        share = csr_array((base, (np.arange(self.num_ops), label)), shape=(self.num_ops, num_parts))
        idle = (np.diff(self.rows.indptr) == 1) & (self.rows @ base < 1)
        known = np.flatnonzero((np.array(self.loads) <= target) & ~idle)
        held, number = (self.rows[known] @ share).T, np.arange(len(known))
        kind = np.array(self.kinds, dtype=np.int64)[known]
        alpha = csr_array((-np.ones(len(known)), (kind, number)), shape=(num_kinds, len(known)))
        needs = np.append(share.sum(axis=0), np.zeros(num_kinds))
        devices = np.append(np.zeros(num_parts), counts)[:, None]
        slack = eye_array(len(needs), format="csr")
        columns = [vstack([held, alpha]), csr_array(devices), slack]
        if signed:
            columns.append(-slack[:, :num_parts])
        cost = np.append(np.zeros(len(known)), np.ones(1 + len(needs) + signed * num_parts))
        rows = -hstack(columns, format="csc")
        solved = linprog(cost, rows, -needs, method="highs", options={"presolve": False})
        if not solved.success:
            return 0.0, base
        weights = -solved.ineqlin.marginals[:num_parts][label] * base
        return float(solved.fun), weights / max(weights.sum(), 1e-300)
