"""Seconds of one step of a generation engine, from what is in the step.

A step computes prompt chunks and one token for every decoding sequence. Its time is a sum: work per
token (projections, MLP, norms, embedding), work per sequence (LM head, sampler), attention (from a
grid over chunk, past, decoding sequences and their context), and a constant.

Source of the form: the layer profiles of LLMServingSim (Cho et al., IISWC 2024), whose grids are
linear in each axis between their points.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Chunk = tuple[int, int]
"""Prompt tokens computed in a step, and tokens of the same sequence computed before."""


@dataclass(frozen=True)
class StepTimes:
    """Tables of step times; linear between their points and beyond the last one.

    Attributes:
        tokens, token_s: (num_points,) seconds of all work per token by tokens in the step.
        sequences, sequence_s: (num_points,) seconds of all work per sequence by sequences.
        chunk, past, decodes, context: axes of the attention grid, each from 0.
        attention_s: (chunk, past, decodes, context) seconds of attention of all layers.
        skew: share of the way from sequences of mean context to all of the longest context.
        padded_tokens: sizes that a step's tokens are padded to (captured graphs), ascending.
        step_s: seconds added to every step.
        provenance: where the tables come from.
    """

    tokens: Array
    token_s: Array
    sequences: Array
    sequence_s: Array
    chunk: Array
    past: Array
    decodes: Array
    context: Array
    attention_s: Array
    skew: float = 0.0
    padded_tokens: Array = field(default_factory=lambda: np.zeros(0))
    step_s: float = 0.0
    provenance: str = ""

    def __post_init__(self) -> None:
        """Refuse tables whose axes do not ascend, do not match, or hold no time."""
        axes = ("tokens", "sequences", "chunk", "past", "decodes", "context")
        for name in axes:
            axis = getattr(self, name)
            if len(axis) < 2 or not (np.diff(axis) > 0).all():
                raise ValueError(f"step times: axis {name} must ascend over at least two points")
        for axis, table in (("tokens", "token_s"), ("sequences", "sequence_s")):
            if len(getattr(self, axis)) != len(getattr(self, table)):
                raise ValueError(f"step times: {table} must have one value for each of {axis}")
        shape = tuple(len(getattr(self, name)) for name in axes[2:])
        if self.attention_s.shape != shape:
            raise ValueError(
                f"step times: attention_s must have shape {shape}, got {self.attention_s.shape}"
            )
        for table in ("token_s", "sequence_s", "attention_s"):
            values = getattr(self, table)
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"step times: {table} must hold finite seconds from 0")

    @cached_property
    def _tables(self) -> tuple[list[float], ...]:
        names = ("tokens", "token_s", "sequences", "sequence_s", "padded_tokens")
        return tuple(getattr(self, name).tolist() for name in names)

    @cached_property
    def _known_work(self) -> dict[tuple[int, int], float]:
        return {}

    @cached_property
    def _decode_rows(self) -> dict[int, list[float]]:
        return {}

    @cached_property
    def _axes(self) -> tuple[list[float], ...]:
        return tuple(a.tolist() for a in (self.chunk, self.past, self.decodes, self.context))

    def scaled(self, factor: float) -> "StepTimes":
        """All times by a factor."""
        return replace(
            self,
            token_s=self.token_s * factor,
            sequence_s=self.sequence_s * factor,
            attention_s=self.attention_s * factor,
            step_s=self.step_s * factor,
        )

    def step(self, chunks: Sequence[Chunk], decodes: int, context: int, longest: int) -> float:
        """Seconds of a step.

        Args:
            chunks: the prompt chunks.
            decodes: sequences that decode one token.
            context: tokens of context over all of them together.
            longest: the longest context of one of them.
        """
        num_tokens = decodes + sum(size for size, _ in chunks)
        work_s = self._work(num_tokens, decodes + len(chunks))
        return work_s + self._attention(chunks, decodes, context, longest) + self.step_s

    def decode_steps(self, decodes: int, context: int, longest: int) -> Iterator[float]:
        """Seconds of the steps that follow one of this context while nothing but decoding happens.

        Each step decodes a token of each sequence; the seconds are those of `step`.
        """
        row, axis = self._decode_row(decodes), self._axes[3]
        work_s, step_s, skew = self._work(decodes, decodes), self.step_s, self.skew
        m, far = _cell(axis, context / decodes), _cell(axis, float(longest))
        last = len(axis) - 2
        while True:
            context += decodes
            mean = context / decodes
            while m < last and axis[m + 1] <= mean:
                m += 1
            low, share = row[m], (mean - axis[m]) / (axis[m + 1] - axis[m])
            even_s = low + (row[m + 1] - low) * share
            if skew:
                longest += 1
                while far < last and axis[far + 1] <= longest:
                    far += 1
                share = (longest - axis[far]) / (axis[far + 1] - axis[far])
                even_s += skew * (_blend(row[far], row[far + 1], share) - even_s)
            yield work_s + even_s + step_s

    def _work(self, num_tokens: int, num_sequences: int) -> float:
        key = (num_tokens, num_sequences)
        if key not in self._known_work:
            tokens, token_s, sequences, sequence_s, padded = self._tables
            size = float(num_tokens)
            if padded and size <= padded[-1]:
                size = padded[bisect_left(padded, size)]
            self._known_work[key] = _line(tokens, token_s, size) + _line(
                sequences, sequence_s, float(num_sequences)
            )
        return self._known_work[key]

    def _attention(
        self, chunks: Sequence[Chunk], decodes: int, context: int, longest: int
    ) -> float:
        mean = context / decodes if decodes else 0.0
        if not chunks:
            return self._decode_attention(decodes, mean, longest)
        size = 0
        work = 0.0
        for tokens, past in chunks:
            size += tokens
            work += tokens * (0.5 * tokens + past)
        past_of_one = work / size - 0.5 * size
        if past_of_one >= 0:
            return self._skewed(float(size), past_of_one, decodes, mean, longest)
        alone_s = 0.0
        for tokens, past in chunks:
            alone_s += self._grid(float(tokens), float(past), 0.0, 0.0)
        if not decodes:
            return alone_s
        mixed_s = self._skewed(float(size), 0.0, decodes, mean, longest)
        return alone_s + (mixed_s - self._grid(float(size), 0.0, 0.0, 0.0))

    def _skewed(self, size: float, past: float, decodes: int, mean: float, longest: int) -> float:
        even_s = self._grid(size, past, float(decodes), mean)
        if not decodes or self.skew == 0.0:
            return even_s
        longest_s = self._grid(size, past, float(decodes), float(longest))
        return even_s + self.skew * (longest_s - even_s)

    def _decode_row(self, decodes: int) -> list[float]:
        """Attention of `decodes` sequences without prompt chunks, by their mean context."""
        row = self._decode_rows.get(decodes)
        if row is None:
            k, w = _bracket(self._axes[2], float(decodes))
            few, many = self.attention_s[0, 0, k : k + 2].tolist()
            row = [_blend(low, high, w) for low, high in zip(few, many, strict=True)]
            self._decode_rows[decodes] = row
        return row

    def _decode_attention(self, decodes: int, mean: float, longest: int) -> float:
        contexts = self._axes[3]
        row = self._decode_row(decodes)
        m, x = _bracket(contexts, mean)
        even_s = _blend(row[m], row[m + 1], x)
        if self.skew == 0.0:
            return even_s
        m, x = _bracket(contexts, float(longest))
        return even_s + self.skew * (_blend(row[m], row[m + 1], x) - even_s)

    def _grid(self, size: float, past: float, decodes: float, context: float) -> float:
        sizes, pasts, counts, contexts = self._axes
        i, u = _bracket(sizes, size)
        j, v = _bracket(pasts, past)
        k, w = _bracket(counts, decodes)
        m, x = _bracket(contexts, context)
        cell = self.attention_s[i : i + 2, j : j + 2, k : k + 2, m : m + 2].ravel().tolist()
        for share in (u, v, w, x):
            half = len(cell) // 2
            cell = [_blend(cell[n], cell[n + half], share) for n in range(half)]
        value: float = cell[0]
        return value


def _blend(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _cell(axis: list[float], value: float) -> int:
    """Index of the cell that holds a value; the last one holds all beyond."""
    return min(bisect_right(axis, value), len(axis) - 1) - 1


def _bracket(axis: list[float], value: float) -> tuple[int, float]:
    """Index of the cell that holds a value, and how far in it the value lies."""
    i = _cell(axis, value)
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])


def _line(axis: list[float], table: list[float], value: float) -> float:
    i = min(max(bisect_right(axis, value), 1), len(axis) - 1) - 1
    share = max(0.0, (value - axis[i]) / (axis[i + 1] - axis[i]))
    return _blend(table[i], table[i + 1], share)


def least_squares_skew(mean_s: Array, longest_s: Array, measured_s: Array) -> float:
    """The skew that fits measured batches of unequal contexts best.

    measured = mean + skew (longest - mean): the batch as if all had the mean context, or the
    longest. All arrays (num_batches,), in one unit.
    """
    spread = longest_s - mean_s
    total = float(spread @ spread)
    return float(spread @ (measured_s - mean_s)) / total if math.isfinite(total) and total else 0.0
