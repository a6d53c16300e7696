"""The compiled dynamic programme over chains of ideals; `ideals.py` says what it computes."""

from typing import NamedTuple

import numba
import numpy as np

from scheduler.arrays import Arrays, Floats, Ints, csr, kinds
from scheduler.throughput.ideal_sets import Bits, incidence_of, members
from scheduler.throughput.orders import hyperedges

CHUNK = 4096
"""Ideals whose members are spelled out at once."""


class Chain(NamedTuple):
    """c ideals of n units by rising `work`, the empty one first; k kinds of devices; t tensors.

    Attributes:
        bits: (c, words) members.
        work: (c,) seconds of the members, each on its fastest kind.
        least, unit_s: (n,) and (n, k) seconds of each unit: on its fastest kind, on each.
        seconds, never: (c, k) seconds of the members, and how many cannot run there.
        num_bytes, limit_bytes: (c,) of the members, (k,) of each device.
        open_start, opened: tensors with ends inside and outside of each ideal.
        open_s: (c, k) seconds that they cost a device.
        pin_start, pin: units that make or read each tensor.
        ends_s: (t, k) seconds that a tensor costs a device that holds some of its units.
        carried: (k, k, c) seconds of the link between two kinds for what is open.
    """

    bits: np.ndarray
    work: Floats
    least: Floats
    unit_s: Floats
    seconds: Floats
    never: Floats
    num_bytes: Floats
    limit_bytes: Floats
    open_start: Ints
    opened: Ints
    open_s: Floats
    pin_start: Ints
    pin: Ints
    ends_s: Floats
    carried: Floats
    serialised: bool


def chain_of(arrays: Arrays, sets: Bits) -> Chain:
    """Sort ideals by their least possible work, and sum times, bytes and what is open."""
    n, groups = arrays.num_ops, kinds(arrays)
    first = [group[0] for group in groups]
    unit_s = arrays.seconds[:, first]
    never = ~np.isfinite(unit_s)
    least = unit_s.min(axis=1)
    unit_s = np.where(never, 0.0, unit_s)
    pins = hyperedges(arrays)[0]
    incidence, size = incidence_of(pins, n), np.array([len(p) for p in pins])
    figures = np.column_stack([least, np.ones(n), unit_s, never, arrays.op_bytes])
    sums, owner, opened = np.empty((len(sets), figures.shape[1])), [], []
    for a in range(0, len(sets), CHUNK):
        inside = members(sets[a : a + CHUNK], n)
        sums[a : a + CHUNK] = inside @ figures
        count = inside @ incidence
        at, tensor = np.nonzero((count > 0) & (count < size))
        owner.append(at + a)
        opened.append(tensor)
    rank = np.lexsort((sums[:, 1], np.round(sums[:, 0] / (least.sum() or 1.0), 12)))
    place = np.empty(len(sets), dtype=np.int64)
    place[rank] = np.arange(len(sets))
    holder, tensor = place[np.concatenate(owner)], np.concatenate(opened)
    by_set = np.argsort(holder, kind="stable")
    holder, tensor = holder[by_set], tensor[by_set]
    open_start = np.searchsorted(holder, np.arange(len(sets) + 1)).astype(np.int64)
    ends_s = np.zeros((len(pins), len(groups)))
    if arrays.serialised:
        ends_s = np.ascontiguousarray(arrays.ends_s[:, first])
    open_s = np.zeros((len(sets), len(groups)))
    np.add.at(open_s, holder, ends_s[tensor])
    work, _, *rest = np.ascontiguousarray(sums[rank].T)
    k = len(groups)
    return Chain(
        np.ascontiguousarray(sets[rank]), np.maximum.accumulate(work), least, unit_s,
        np.ascontiguousarray(np.array(rest[:k]).T), np.ascontiguousarray(np.array(rest[k:-1]).T),
        rest[-1], arrays.limit_bytes[first].astype(float), open_start, tensor, open_s,
        *csr(pins), ends_s, _carried(arrays, groups, holder, tensor, len(sets)), arrays.serialised,
    )  # fmt: skip


def _carried(
    arrays: Arrays, groups: list[list[int]], owner: Ints, opened: Ints, num_sets: int
) -> Floats:
    """(kinds, kinds, c) seconds of the link for all that is open; zero where devices pay."""
    carried = np.zeros((len(groups), len(groups), num_sets))
    for a, src in enumerate(groups):
        for b, dst in enumerate(groups):
            p = src[0]
            q = next((q for q in reversed(dst) if q != p), p)
            if p == q:
                continue
            if arrays.medium[p, q] < 0:
                carried[a, b] = np.inf
            elif not arrays.serialised:
                moved = arrays.transfer_s(np.arange(arrays.num_tensors), p, q)
                carried[a, b] = np.bincount(owner, moved[opened], num_sets)
    return carried


def best_chain(chain: Chain, groups: list[list[int]], value: float) -> Ints | None:
    """(n,) device of each unit under the best chain with a load below `value`; None if none."""
    counts = np.array([len(group) for group in groups])
    stride = np.concatenate([[1], np.cumprod(counts + 1)])
    used = (np.arange(stride[-1])[:, None] // stride[:-1]) % (counts + 1)
    reach, from_set, from_state = run(
        chain, counts, stride[:-1], used, value * (1 - 1e-12), _room(chain, value)
    )
    last = len(chain.bits) - 1
    end = reach[last]
    if not np.isfinite(end).any():
        return None
    s, e = np.unravel_index(np.lexsort((np.repeat(used.sum(axis=1), len(counts)), end.ravel()))[0],
                            end.shape)  # fmt: skip
    device = np.zeros(len(chain.least), dtype=np.int64)
    i, state, kind = last, int(s), int(e)
    while i > 0:
        j, state_before = int(from_set[i, state, kind]), int(from_state[i, state, kind])
        gained = chain.bits[i] & ~chain.bits[j]
        inside = np.unpackbits(gained.view(np.uint8), bitorder="little")[: len(device)]
        device[inside.astype(bool)] = groups[kind][used[state][kind] - 1]
        i, state, kind = j, *divmod(state_before, len(counts))
    return device


def _room(chain: Chain, value: float) -> Floats:
    """(k,) most work (s on the fastest kind) that a device of each kind takes within a load.

    Fractional knapsack: the units whose time there is nearest to their least come first.
    """
    room = np.empty(chain.unit_s.shape[1])
    for g in range(len(room)):
        able = np.isfinite(chain.least)
        seconds = chain.unit_s[able, g]
        ratio = np.where(seconds > 0, chain.least[able] / np.where(seconds > 0, seconds, 1.0), 1.0)
        order = np.argsort(-ratio, kind="stable")
        spent = np.minimum(seconds[order].cumsum(), value)
        room[g] = (np.diff(spent, prepend=0.0) * ratio[order]).sum() * (1 + 1e-9)
        room[g] = min(room[g], value) if np.isfinite(value) else np.inf
    return room


@numba.njit(cache=True)
def run(
    chain: Chain, counts: Ints, stride: Ints, used: Ints, value: float, room: Floats
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Extend chains set by set; returns (c, states, kinds) values, and where each came from."""
    c, words = chain.bits.shape
    num_states, k = used.shape
    reach = np.full((c, num_states, k), np.inf)
    from_set = np.full((c, num_states, k), -1, dtype=np.int32)
    from_state = np.full((c, num_states, k), -1, dtype=np.int32)
    reach[0, 0, 0] = 0.0
    need = np.zeros(num_states)
    for s in range(num_states):
        spare = 0.0
        for g in range(k):
            if counts[g] > used[s, g]:
                spare += (counts[g] - used[s, g]) * room[g]
        need[s] = chain.work[c - 1] * (1 - 1e-9) - spare
    widest = room.max()
    active, num_active = np.empty((num_states * k, 2), dtype=np.int64), 0
    rest = np.empty(len(chain.pin), dtype=np.int64)
    rest_start = np.zeros(len(chain.pin_start) + 1, dtype=np.int64)
    tensor = np.empty(len(chain.pin_start), dtype=np.int64)
    load = np.empty(k)
    shift = np.empty(k)
    for j in range(len(chain.bits) - 1):
        num_active, low = 0, np.inf
        for s in range(num_states):
            for e in range(k):
                if reach[j, s, e] < value and chain.work[j] >= need[s]:
                    active[num_active, 0], active[num_active, 1] = s, e
                    num_active += 1
                    for g in range(k):
                        if used[s, g] < counts[g]:
                            low = min(low, need[s + stride[g]])
        if num_active == 0:
            continue
        num_rest = 0
        for x in range(chain.open_start[j], chain.open_start[j + 1]):
            t = chain.opened[x]
            y = x - chain.open_start[j]
            tensor[y] = t
            rest_start[y] = num_rest
            for z in range(chain.pin_start[t], chain.pin_start[t + 1]):
                u = chain.pin[z]
                if not (chain.bits[j, u >> 6] >> np.uint64(u & 63)) & np.uint64(1):
                    rest[num_rest] = u
                    num_rest += 1
            rest_start[y + 1] = num_rest
        num_open = chain.open_start[j + 1] - chain.open_start[j]
        start = max(j + 1, int(np.searchsorted(chain.work, low * (1 - 1e-9) if low > 0 else low)))
        for i in range(start, c):
            if chain.work[i] - chain.work[j] > widest:
                break
            holds = True
            for w in range(words):
                if chain.bits[j, w] & ~chain.bits[i, w]:
                    holds = False
                    break
            if not holds:
                continue
            some = False
            for g in range(k):
                load[g] = chain.seconds[i, g] - chain.seconds[j, g]
                held = chain.num_bytes[i] - chain.num_bytes[j]
                if chain.never[i, g] > chain.never[j, g] or held > chain.limit_bytes[g]:
                    load[g] = np.inf
                some = some or load[g] < value
            if not some:
                continue
            if chain.serialised:
                shift[:] = chain.open_s[i]
                for y in range(num_open):
                    inside, outside = 0, 0
                    for z in range(rest_start[y], rest_start[y + 1]):
                        u = rest[z]
                        if (chain.bits[i, u >> 6] >> np.uint64(u & 63)) & np.uint64(1):
                            inside += 1
                        else:
                            outside += 1
                    if inside == 0:
                        for g in range(k):
                            shift[g] -= chain.ends_s[tensor[y], g]
                    elif outside == 0:
                        for g in range(k):
                            shift[g] += chain.ends_s[tensor[y], g]
                for g in range(k):
                    load[g] += shift[g]
            for a in range(num_active):
                s, e = active[a, 0], active[a, 1]
                so_far = reach[j, s, e]
                for g in range(k):
                    if used[s, g] == counts[g]:
                        continue
                    t = s + stride[g]
                    new = max(so_far, load[g])
                    if s > 0:
                        new = max(new, chain.carried[e, g, j])
                    if new < value and new < reach[i, t, g] and chain.work[i] >= need[t]:
                        reach[i, t, g] = new
                        from_set[i, t, g] = j
                        from_state[i, t, g] = s * k + e
                        if i == c - 1:
                            value = new
    return reach, from_set, from_state
