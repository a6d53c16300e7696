"""Generation requests, the limits of a server that answers them, and what they meet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.documents import STRICT
from simulator.step_times import Array

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ContinuousBatching:
    """Limits of one replica.

    Attributes:
        token_budget: tokens that one step computes at most.
        max_sequences: sequences that run at once at most.
        num_blocks: pages of KV cache.
        block_tokens: tokens that a page holds.
        prefix_caching: a preempted sequence finds its pages again where nobody took them.
        steps_ahead: steps decided before the one that computes is done, 0 or 1.
    """

    __pydantic_config__ = STRICT
    num_blocks: int
    token_budget: int = 2048
    max_sequences: int = 256
    block_tokens: int = 16
    prefix_caching: bool = True
    steps_ahead: int = 1

    def __post_init__(self) -> None:
        """Refuse limits that let nothing run."""
        for key in ("num_blocks", "token_budget", "max_sequences", "block_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"serving: {key} must be at least 1, got {getattr(self, key)}")
        if self.steps_ahead not in (0, 1):
            raise ValueError(f"serving: steps_ahead must be 0 or 1, got {self.steps_ahead}")
        if self.max_sequences > self.token_budget:
            raise ValueError(
                f"serving: max_sequences ({self.max_sequences}) must not exceed token_budget "
                f"({self.token_budget}): every running sequence decodes a token in each step"
            )


@dataclass(frozen=True)
class Generations:
    """Requests for generation by arrival: (num_requests,) each."""

    arrival_s: Array
    prompt_tokens: Counts
    output_tokens: Counts

    def __post_init__(self) -> None:
        """Refuse arrivals out of order and requests without tokens."""
        if not len(self.arrival_s) == len(self.prompt_tokens) == len(self.output_tokens):
            raise ValueError("generations: the three columns must be equally long")
        if not (np.isfinite(self.arrival_s).all() and (np.diff(self.arrival_s) >= 0).all()):
            raise ValueError("generations: arrival_s must be finite and in order")
        for name in ("prompt_tokens", "output_tokens"):
            if len(self.arrival_s) and getattr(self, name).min() < 1:
                row = int(getattr(self, name).argmin())
                raise ValueError(
                    f"generations: {name} must be at least 1, got {getattr(self, name)[row]} "
                    f"in row {row}"
                )


@dataclass(frozen=True)
class GenerationTimes:
    """What requests met: (num_requests,) each; NaN for a request that no replica can hold."""

    scheduled_s: Array
    first_token_s: Array
    last_token_s: Array
    preemptions: int
    steps: int
