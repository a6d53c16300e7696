"""Smaller problems with the same optimum: colocated operators and those that belong together."""

from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scheduler.arrays import Arrays, Floats, Ints


def contract(arrays: Arrays, unit: Ints) -> Arrays:
    """Make one operator of each unit: times and bytes add up, tensors inside vanish.

    `unit` (num_ops,): 0 to num_units - 1. The result's operators need not be in topological
    order. With serialised transfers, tensors with the same ends become one.
    """
    num_units = int(unit.max(initial=-1)) + 1
    producer = unit[arrays.producer]
    key = np.unique(arrays.edge_tensor * num_units + unit[arrays.reader])
    tensor, reader = np.divmod(key, max(num_units, 1))
    outside = reader != producer[tensor]
    tensor, reader = tensor[outside], reader[outside]
    alike = _alike(producer, tensor, reader, merge=arrays.serialised)
    kept, first = np.unique(alike[tensor], return_index=True)
    kept_tensor = tensor[first]
    new = np.full(len(producer), -1)
    new[kept_tensor] = np.arange(len(kept))
    seconds = np.zeros((num_units, arrays.num_devices))
    np.add.at(seconds, unit, arrays.seconds)
    ends_s = np.zeros((len(kept) if arrays.serialised else 0, arrays.num_devices))
    if arrays.serialised:
        crossing = np.unique(tensor)
        np.add.at(ends_s, new[alike[crossing]], arrays.ends_s[crossing])
    mine = new[tensor] >= 0
    start = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(np.bincount(new[tensor[mine]], minlength=len(kept)), out=start[1:])
    by_tensor = np.argsort(new[tensor[mine]], kind="stable")
    return replace(
        arrays,
        seconds=seconds,
        producer=producer[kept_tensor],
        start=start,
        reader=reader[mine][by_tensor],
        num_bytes=arrays.num_bytes[kept_tensor],
        table_s=arrays.table_s[kept_tensor] if len(arrays.table_s) else arrays.table_s,
        ends_s=ends_s,
        unit=np.arange(num_units),
        op_bytes=np.bincount(unit, arrays.op_bytes, num_units).astype(np.float64),
        least_bytes=np.bincount(unit, arrays.least_bytes, num_units).astype(np.float64),
    )


def _alike(producer: Ints, tensor: Ints, reader: Ints, merge: bool) -> Ints:
    """For each tensor the first one with the same producer and readers (itself, unless merging)."""
    same = np.arange(len(producer))
    if not merge or not len(tensor):
        return same
    rng = np.random.default_rng(0)
    mark = rng.integers(1, 2**62, size=(2, int(max(producer.max(), reader.max())) + 1))
    marks = np.zeros((2, len(producer)), dtype=np.int64)
    for row in (0, 1):
        np.add.at(marks[row], tensor, mark[row, reader])
    _, first, inverse = np.unique(
        np.stack([producer, *marks]), axis=1, return_index=True, return_inverse=True
    )
    return first[inverse.ravel()]


def together(arrays: Arrays, value: float) -> Ints:
    """(num_ops,) units that every plan better than `value` keeps on one device.

    Two rules, applied until neither finds more: (1) a tensor that no two devices can exchange
    within `value` keeps its ends together; (2) an operator whose only output goes to (whose
    only input comes from) one other operator joins that one where this tensor costs each device at
    least as much as the operator itself and its other tensors, and so does one that takes no time
    and only reads (unless memory may bind).
    """
    unit = arrays.unit
    while True:
        small = contract(arrays, unit)
        label = _uncuttable(small, value)
        if label.max(initial=-1) + 1 == small.num_ops:
            label = _dominated(small)
        if label.max(initial=-1) + 1 == small.num_ops:
            return unit
        unit = label[unit]


def _uncuttable(arrays: Arrays, value: float) -> Ints:
    """(num_ops,) labels, alike where exchanging a tensor makes a load above `value` at best."""
    src, dst = arrays.edges
    cheapest = np.full(len(src), np.inf)
    d = arrays.num_devices
    for p in range(d):
        for q in range(d):
            if p != q and arrays.medium[p, q] >= 0:
                load = _exchange_s(arrays, src, dst, p, q)
                cheapest = np.minimum(cheapest, load)
    apart = cheapest > value
    n = arrays.num_ops
    joined = coo_array((np.ones(apart.sum()), (src[apart], dst[apart])), shape=(n, n))
    return np.asarray(connected_components(joined, directed=False)[1], dtype=np.int64)


def _exchange_s(arrays: Arrays, src: Ints, dst: Ints, p: int, q: int) -> Floats:
    """(e,) least load that each edge causes when it goes from device p to q."""
    tensor = arrays.edge_tensor
    here, there = arrays.seconds[src, p], arrays.seconds[dst, q]
    if arrays.serialised:
        load = np.maximum(here + arrays.ends_s[tensor, p], there + arrays.ends_s[tensor, q])
    else:
        load = np.maximum(np.maximum(here, there), arrays.transfer_s(tensor, p, q))
    return np.asarray(load)


def _dominated(arrays: Arrays) -> Ints:
    """Labels that join each operator of rule 2 to the other end of its tensor."""
    n, label = arrays.num_ops, np.arange(arrays.num_ops)
    if not arrays.serialised:
        return label
    (src, dst), tensor = arrays.edges, arrays.edge_tensor
    made, read = np.zeros((2, n, arrays.num_devices))
    np.add.at(made, arrays.producer, arrays.ends_s)
    np.add.at(read, dst, arrays.ends_s[tensor])
    pair = np.diff(arrays.start)[tensor] == 1
    sends_it_only = pair & (np.bincount(arrays.producer, minlength=n)[src] == 1)
    reads_it_only = pair & (np.bincount(dst, minlength=n)[dst] == 1)
    light = (arrays.op_bytes == 0) | (arrays.op_bytes.sum() <= arrays.limit_bytes.min())
    taken = np.zeros(n, dtype=bool)
    makes_none = np.bincount(arrays.producer, minlength=n)[dst] == 0
    idle_leaf = makes_none & (np.bincount(dst, minlength=n)[dst] == 1)
    for mine, other, fits, others_s, ends_s in (
        (src, dst, sends_it_only, read[src], arrays.ends_s[tensor]),
        (dst, src, reads_it_only, made[dst], arrays.ends_s[tensor]),
        (dst, src, idle_leaf, made[dst], np.zeros_like(arrays.ends_s[tensor])),
    ):
        mine_s = arrays.seconds[mine]
        able = np.isfinite(arrays.seconds[other])
        gains = np.where(able, mine_s + others_s <= ends_s, others_s <= mine_s + ends_s)
        for e in np.flatnonzero(fits & light[mine] & gains.all(axis=1)):
            if not taken[mine[e]] and not taken[other[e]]:
                label[mine[e]] = label[other[e]]
                taken[mine[e]] = True
    return np.unique(label, return_inverse=True)[1].astype(np.int64)
