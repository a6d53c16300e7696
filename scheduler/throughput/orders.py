"""Linear orders of a (contracted) problem's operators: what contiguous splits cut."""

import heapq

import numpy as np

from scheduler.arrays import Arrays, Ints


def late(arrays: Arrays) -> Ints:
    """The given order with every operator moved to just before the first that reads it.

    Weights and constants then stand beside their users. O(edges + n log n).
    """
    n = arrays.num_ops
    src, dst = arrays.edges
    readers: list[list[int]] = [[] for _ in range(n)]
    for a, b in zip(src.tolist(), dst.tolist(), strict=True):
        if a < b:
            readers[a].append(b)
    key: list[tuple[float, int]] = [(float(i), 0) for i in range(n)]
    for i in reversed(range(n)):
        if readers[i]:
            at, depth = min((key[j][0], -key[j][1]) for j in readers[i])
            key[i] = (at, 1 - depth)
    return np.array(sorted(range(n), key=lambda i: (key[i][0], -key[i][1], i)), dtype=np.int64)


def narrow(arrays: Arrays) -> Ints:
    """Greedy order in which few tensors are open at any place (a path decomposition).

    A tensor is open from the first to the last of the operators that make or read it. The next
    operator is the one, among those of open tensors, that leaves the fewest open.
    """
    pins, nets = hyperedges(arrays)
    n = arrays.num_ops
    left = [len(members) for members in pins]
    opened = [False] * len(pins)
    done = [False] * n
    queued: set[int] = set()

    def growth(u: int) -> int:
        return sum((left[e] > 1) - opened[e] for e in nets[u])

    order: list[int] = []
    starts = sorted(range(n), key=lambda u: (len(nets[u]), u), reverse=True)
    heap: list[tuple[int, int]] = []
    while len(order) < n:
        while heap:
            cost, u = heapq.heappop(heap)
            if not done[u]:
                current = growth(u)
                if current <= cost:
                    break
                heapq.heappush(heap, (current, u))
        else:
            while done[starts[-1]]:
                starts.pop()
            u = starts.pop()
        done[u] = True
        order.append(u)
        for e in nets[u]:
            left[e] -= 1
            touched = not opened[e] or left[e] == 1
            opened[e] = left[e] > 0
            if touched:
                for v in pins[e]:
                    if not done[v]:
                        queued.add(v)
        for v in queued:
            heapq.heappush(heap, (growth(v), v))
        queued.clear()
    return np.array(order, dtype=np.int64)


def hyperedges(arrays: Arrays) -> tuple[list[list[int]], list[list[int]]]:
    """The operators of each tensor (its producer first), and the tensors of each operator."""
    reader, start = arrays.reader.tolist(), arrays.start.tolist()
    pins = [[p, *reader[start[t] : start[t + 1]]] for t, p in enumerate(arrays.producer.tolist())]
    nets: list[list[int]] = [[] for _ in range(arrays.num_ops)]
    for t, members in enumerate(pins):
        for u in members:
            nets[u].append(t)
    return pins, nets
