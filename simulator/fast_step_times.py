"""Seconds of a step, compiled: `StepTimes.step` in the same order of operations."""

import numpy as np
from numba import njit

from simulator.step_times import StepTimes


def tables_of(times: StepTimes) -> tuple[object, ...]:
    """The tables as arrays, in the order that compiled code expects."""
    names = ("tokens", "token_s", "sequences", "sequence_s", "chunk", "past", "decodes", "context")
    arrays = tuple(np.ascontiguousarray(getattr(times, name), np.float64) for name in names)
    grid = np.ascontiguousarray(times.attention_s, np.float64)
    padded = np.ascontiguousarray(times.padded_tokens, np.float64)
    return (*arrays, grid, padded, float(times.skew), float(times.step_s))


@njit(cache=True, inline="always")
def _blend(low, high, share):
    return low + (high - low) * share


@njit(cache=True)
def _above(axis, value):
    """Number of points of an ascending axis that are at most `value`."""
    low, high = 0, len(axis)
    while low < high:
        middle = (low + high) // 2
        if value < axis[middle]:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True)
def _bracket(axis, value):
    i = min(_above(axis, value), len(axis) - 1) - 1
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])


@njit(cache=True)
def _line(axis, table, value):
    i = min(max(_above(axis, value), 1), len(axis) - 1) - 1
    share = max(0.0, (value - axis[i]) / (axis[i + 1] - axis[i]))
    return _blend(table[i], table[i + 1], share)


@njit(cache=True)
def prepare(tables, budget, max_running):
    """Work by tokens and by sequences, and decode attention (decodes, context), looked up once."""
    padded = tables[9]
    by_tokens, by_sequences = np.empty(budget + 1), np.empty(2 * max_running + 2)
    for n in range(budget + 1):
        size = float(n)
        if len(padded) and size <= padded[-1]:
            i = _above(padded, size)
            if not (i and padded[i - 1] == size):
                size = padded[i]
        by_tokens[n] = _line(tables[0], tables[1], size)
    for n in range(len(by_sequences)):
        by_sequences[n] = _line(tables[2], tables[3], float(n))
    rows = np.empty((max_running + 1, len(tables[7])))
    for n in range(max_running + 1):
        k, w = _bracket(tables[6], float(n))
        for m in range(len(tables[7])):
            rows[n, m] = _blend(tables[8][0, 0, k, m], tables[8][0, 0, k + 1, m], w)
    return by_tokens, by_sequences, rows


@njit(cache=True)
def _plane(tables, i, j, k, m, u, v, w):
    """The attention grid between two contexts: blended over chunk, past and decodes, at m."""
    grid = tables[8]
    few = _blend(
        _blend(grid[i, j, k, m], grid[i + 1, j, k, m], u),
        _blend(grid[i, j + 1, k, m], grid[i + 1, j + 1, k, m], u),
        v,
    )
    many = _blend(
        _blend(grid[i, j, k + 1, m], grid[i + 1, j, k + 1, m], u),
        _blend(grid[i, j + 1, k + 1, m], grid[i + 1, j + 1, k + 1, m], u),
        v,
    )
    return _blend(few, many, w)


@njit(cache=True)
def _grid(tables, size, past, decodes, context):
    i, u = _bracket(tables[4], size)
    j, v = _bracket(tables[5], past)
    k, w = _bracket(tables[6], decodes)
    m, x = _bracket(tables[7], context)
    low = _plane(tables, i, j, k, m, u, v, w)
    return _blend(low, _plane(tables, i, j, k, m + 1, u, v, w), x)


@njit(cache=True, inline="always")
def decode_attention(contexts, row, skew, mean, longest):
    """Attention of a step without prompt chunks; `row` is that of its decodes."""
    m, x = _bracket(contexts, mean)
    even_s = _blend(row[m], row[m + 1], x)
    if skew == 0.0:
        return even_s
    m, x = _bracket(contexts, float(longest))
    return even_s + skew * (_blend(row[m], row[m + 1], x) - even_s)


@njit(cache=True)
def _skewed(tables, size, past, decodes, mean, longest):
    even_s = _grid(tables, size, past, float(decodes), mean)
    skew = tables[10]
    if decodes == 0 or skew == 0.0:
        return even_s
    longest_s = _grid(tables, size, past, float(decodes), float(longest))
    return even_s + skew * (longest_s - even_s)


@njit(cache=True)
def attention(tables, sizes, pasts, num_chunks, decodes, context, longest):
    """Attention of a step with prompt chunks."""
    mean = context / decodes if decodes else 0.0
    size = 0
    work = 0.0
    for c in range(num_chunks):
        size += sizes[c]
        work += sizes[c] * (0.5 * sizes[c] + pasts[c])
    past_of_one = work / size - 0.5 * size
    if past_of_one >= 0:
        return _skewed(tables, float(size), past_of_one, decodes, mean, longest)
    alone_s = 0.0
    for c in range(num_chunks):
        alone_s += _grid(tables, float(sizes[c]), float(pasts[c]), 0.0, 0.0)
    if decodes == 0:
        return alone_s
    mixed_s = _skewed(tables, float(size), 0.0, decodes, mean, longest)
    return alone_s + (mixed_s - _grid(tables, float(size), 0.0, 0.0, 0.0))
