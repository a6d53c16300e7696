"""Seconds of a step, compiled: `StepTimes.step` in the same order of operations."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.fast_state import (
    CHUNKS,
    CONTEXT,
    LONGEST,
    PAST_LIST,
    SIZE_LIST,
    STEP_DECODES,
    allocating,
    compiled,
    compiled_inline,
)
from simulator.generations import Fleet

LINES = ("tokens", "token_s", "sequences", "sequence_s", "padded_tokens", "decodes")
AXES = ("chunk", "past", "decodes", "context")


class Tables(NamedTuple):
    """Step times of the kinds of server in a fleet, each padded to the largest.

    Attributes:
        kind: (num_servers,) which of them a server has.
        by_tokens, by_sequences: (num_kinds, ...) work of a step, looked up once.
        rows: (num_kinds, decodes, context) attention of steps without prompt chunks.
        axes, lengths: (num_kinds, 4, ...) axes of the attention grid and their lengths.
        grid: (num_kinds, chunk, past, decodes, context).
        skew, step_s: (num_kinds,).
    """

    kind: Any
    by_tokens: Any
    by_sequences: Any
    rows: Any
    axes: Any
    lengths: Any
    grid: Any
    skew: Any
    step_s: Any


def tables_of(fleet: Fleet) -> Tables:
    """The tables of a fleet as arrays."""
    kinds = list({id(server.times): server.times for server in fleet.servers}.values())
    number = {id(times): n for n, times in enumerate(kinds)}
    budget = max(server.limits.token_budget for server in fleet.servers)
    most = max(server.limits.max_sequences for server in fleet.servers)
    axes = [[getattr(times, name) for name in AXES] for times in kinds]
    tables = [
        _look_up(
            *(np.asarray(getattr(times, name), np.float64) for name in LINES),
            np.ascontiguousarray(times.attention_s[0, 0]),
            budget,
            most,
        )
        for times in kinds
    ]
    by_tokens, by_sequences, rows = (list(column) for column in zip(*tables, strict=True))
    return Tables(
        np.array([number[id(server.times)] for server in fleet.servers], np.int64),
        np.stack(by_tokens),
        np.stack(by_sequences),
        _stack(rows),
        _stack([_stack([np.asarray(axis, np.float64) for axis in four]) for four in axes]),
        np.array([[len(axis) for axis in four] for four in axes], np.int64),
        _stack([np.asarray(times.attention_s, np.float64) for times in kinds]),
        np.array([times.skew for times in kinds], np.float64),
        np.array([times.step_s for times in kinds], np.float64),
    )


def _stack(arrays: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Arrays of one number of dimensions, padded with NaN to the largest."""
    shape = np.max([array.shape for array in arrays], axis=0)
    stacked = np.full((len(arrays), *shape), np.nan)
    for number, array in enumerate(arrays):
        stacked[number][tuple(map(slice, array.shape))] = array
    return stacked


@compiled_inline
def _blend(low, high, share):
    return low + (high - low) * share


@compiled
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


@compiled_inline
def _bracket(axis, value):
    i = min(_above(axis, value), len(axis) - 1) - 1
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])


@compiled_inline
def _line(axis, table, value):
    i = min(max(_above(axis, value), 1), len(axis) - 1) - 1
    share = max(0.0, (value - axis[i]) / (axis[i + 1] - axis[i]))
    return _blend(table[i], table[i + 1], share)


@allocating
def _look_up(
    tokens, token_s, sequences, sequence_s, padded, counts, first, budget, most
):  # (decodes, context)
    """Work by tokens and by sequences, and decode attention (decodes, context)."""
    by_tokens, by_sequences = np.empty(budget + 1), np.empty(2 * most + 2)
    for n in range(budget + 1):
        size = float(n)
        if len(padded) and size <= padded[-1]:
            i = _above(padded, size)
            if not (i and padded[i - 1] == size):
                size = padded[i]
        by_tokens[n] = _line(tokens, token_s, size)
    for n in range(len(by_sequences)):
        by_sequences[n] = _line(sequences, sequence_s, float(n))
    rows = np.empty((most + 1, first.shape[1]))
    for n in range(most + 1):
        k, w = _bracket(counts, float(n))
        for m in range(first.shape[1]):
            rows[n, m] = _blend(first[k, m], first[k + 1, m], w)
    return by_tokens, by_sequences, rows


@compiled
def _plane(grid, i, j, k, m, u, v, w):
    """The attention grid at one context: blended over chunk, past and decodes."""
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


@compiled
def _grid(t, kind, size, past, decodes, context):
    axes, lengths, grid = t.axes[kind], t.lengths[kind], t.grid[kind]
    i, u = _bracket(axes[0, : lengths[0]], size)
    j, v = _bracket(axes[1, : lengths[1]], past)
    k, w = _bracket(axes[2, : lengths[2]], decodes)
    m, x = _bracket(axes[3, : lengths[3]], context)
    low = _plane(grid, i, j, k, m, u, v, w)
    return _blend(low, _plane(grid, i, j, k, m + 1, u, v, w), x)


@compiled_inline
def decode_attention(contexts, row, skew, mean, longest):
    """Attention of a step without prompt chunks; `row` is that of its decodes."""
    m, x = _bracket(contexts, mean)
    even_s = _blend(row[m], row[m + 1], x)
    if skew == 0.0:
        return even_s
    m, x = _bracket(contexts, float(longest))
    return even_s + skew * (_blend(row[m], row[m + 1], x) - even_s)


@compiled
def _skewed(t, kind, size, past, decodes, mean, longest):
    even_s = _grid(t, kind, size, past, float(decodes), mean)
    skew = t.skew[kind]
    if decodes == 0 or skew == 0.0:
        return even_s
    longest_s = _grid(t, kind, size, past, float(decodes), float(longest))
    return even_s + skew * (longest_s - even_s)


@compiled
def _attention(t, kind, step, listed):
    """Attention of a step with prompt chunks."""
    chunks, decodes, longest = step[CHUNKS], step[STEP_DECODES], step[LONGEST]
    sizes, pasts = listed[SIZE_LIST], listed[PAST_LIST]
    mean = step[CONTEXT] / decodes if decodes else 0.0
    size = 0
    work = 0.0
    for c in range(chunks):
        size += sizes[c]
        work += sizes[c] * (0.5 * sizes[c] + pasts[c])
    past_of_one = work / size - 0.5 * size
    if past_of_one >= 0:
        return _skewed(t, kind, float(size), past_of_one, decodes, mean, longest)
    alone_s = 0.0
    for c in range(chunks):
        alone_s += _grid(t, kind, float(sizes[c]), float(pasts[c]), 0.0, 0.0)
    if decodes == 0:
        return alone_s
    mixed_s = _skewed(t, kind, float(size), 0.0, decodes, mean, longest)
    return alone_s + (mixed_s - _grid(t, kind, float(size), 0.0, 0.0, 0.0))


@compiled_inline
def step_seconds(t, kind, step, listed):
    """Seconds of a step, `StepTimes.step`."""
    chunks, decodes = step[CHUNKS], step[STEP_DECODES]
    num_tokens = decodes
    if chunks == 0:
        contexts = t.axes[kind, 3, : t.lengths[kind, 3]]
        mean = step[CONTEXT] / decodes
        row = t.rows[kind, decodes]
        attention_s = decode_attention(contexts, row, t.skew[kind], mean, step[LONGEST])
    else:
        for c in range(chunks):
            num_tokens += listed[SIZE_LIST, c]
        attention_s = _attention(t, kind, step, listed)
    work_s = t.by_tokens[kind, num_tokens] + t.by_sequences[kind, decodes + chunks]
    return work_s + attention_s + t.step_s[kind]
