"""Generation requests, the servers that answer them, and what they meet."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hardware.documents import STRICT
from simulator.step_times import Array, StepTimes
from simulator.tariff import Tariff

if TYPE_CHECKING:
    from simulator.served import Rental

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]
Routing = Literal["round_robin", "shortest_queue", "fastest"]


@dataclass(frozen=True)
class ContinuousBatching:
    """Limits of one server.

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

    def blocks_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True)
class Continuous:
    """The limits that a scenario sets; `ContinuousBatching` says what they mean.

    Attributes:
        num_blocks: what the memory has room for unless given.
    """

    __pydantic_config__ = STRICT
    token_budget: int = 2048
    max_sequences: int = 256
    block_tokens: int = 16
    prefix_caching: bool = True
    steps_ahead: int = 1
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that let nothing run."""
        self.limits(1)

    def limits(self, room: int) -> ContinuousBatching:
        """The limits of a server whose memory has room for so many blocks."""
        return ContinuousBatching(
            room if self.num_blocks is None else self.num_blocks,
            self.token_budget,
            self.max_sequences,
            self.block_tokens,
            self.prefix_caching,
            self.steps_ahead,
        )


@dataclass(frozen=True)
class Server:
    """One replica: its limits, the times of its steps, and what it is charged for."""

    limits: ContinuousBatching
    times: StepTimes
    name: str = ""
    tariff: Tariff | None = None


@dataclass(frozen=True)
class Fleet:
    """Servers, equal or not, and how requests find one.

    Attributes:
        routing: `round_robin`; `shortest_queue`: fewest requests waiting or running; `fastest`: the
            earliest predicted finish, from the prompts that wait and the requests on a server.
        max_queue: requests that may wait at a server; further ones are rejected.
        timeout_s: a request that has waited so long for its first step leaves.
        retries: how often a request is sent again whose server is lost.
    """

    servers: tuple[Server, ...]
    routing: Routing = "round_robin"
    max_queue: int | None = None
    timeout_s: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        """Refuse a fleet of none."""
        if not self.servers:
            raise ValueError("serving: replicas must be at least 1, got 0")


@dataclass(frozen=True)
class Generations:
    """Requests for generation by arrival: (num_requests,) each.

    Attributes:
        ready_tokens: prompt tokens whose keys and values arrive with the request.
    """

    arrival_s: Array
    prompt_tokens: Counts
    output_tokens: Counts
    ready_tokens: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        """Refuse arrivals out of order and requests without tokens."""
        if not len(self.ready_tokens):
            object.__setattr__(self, "ready_tokens", np.zeros(len(self.arrival_s), np.int64))
        columns = (self.prompt_tokens, self.output_tokens, self.ready_tokens)
        if any(len(column) != len(self.arrival_s) for column in columns):
            raise ValueError("generations: the columns must be equally long")
        if not (np.isfinite(self.arrival_s).all() and (np.diff(self.arrival_s) >= 0).all()):
            raise ValueError("generations: arrival_s must be finite and in order")
        for name in ("prompt_tokens", "output_tokens"):
            if len(self.arrival_s) and getattr(self, name).min() < 1:
                row = int(getattr(self, name).argmin())
                raise ValueError(
                    f"generations: {name} must be at least 1, got {getattr(self, name)[row]} "
                    f"in row {row}"
                )
        if (self.ready_tokens >= self.prompt_tokens).any():
            raise ValueError("generations: the last token of a prompt cannot be ready")


WAITING, RUNNING, BLOCKS = range(3)
"""Columns of samples: requests that wait, sequences that run, pages of KV cache in use."""


@dataclass(frozen=True)
class Turnover:
    """Servers that came and went, in order, and what that did to requests.

    Attributes:
        up_s: (num_servers, 2) from when each took requests until it was gone.
        rentals: machines in the order in which they were rented.
        rejected: (num_requests,) turned away, or lost too often.
        retries: requests that were sent again because their server was lost.
        present: requests that waited or ran at the end.
    """

    servers: tuple[Server, ...]
    up_s: Array
    rentals: "tuple[Rental, ...]"
    rejected: Flags
    retries: int
    present: int


@dataclass(frozen=True)
class GenerationTimes:
    """What requests met, (num_requests,) each, and what servers did, (num_servers,) each.

    Attributes:
        scheduled_s, first_token_s, last_token_s: NaN where it did not happen.
        server: that took the request; -1 where it was rejected.
        timed_out: requests that left before their first step.
        preemptions, steps, busy_s: of each server.
        sample_s: clock (num_samples,) of the samples.
        samples: (num_samples, num_servers, 3) `WAITING`, `RUNNING`, `BLOCKS` at the end of the step
            that went on then.
        until_s: where the user stopped the run.
        turnover: None where every server was there from the start to the end.
    """

    scheduled_s: Array
    first_token_s: Array
    last_token_s: Array
    server: Counts
    timed_out: Flags
    preemptions: Counts
    steps: Counts
    busy_s: Array
    sample_s: Array
    samples: Counts
    until_s: float = np.inf
    turnover: Turnover | None = None


def clock_of(arrival_s: Array) -> list[float]:
    """Arrivals on the clock of a simulation: sums of differences, as SimPy's timeouts give them."""
    clock, now_s = [], 0.0
    for at_s in arrival_s.tolist():
        if at_s > now_s:
            now_s = now_s + (at_s - now_s)
        clock.append(now_s)
    return clock


def predicted_ns(fleet: Fleet, requests: Generations) -> tuple[Counts, Counts]:
    """What routing expects of each server, in nanoseconds.

    Returns:
        (num_servers,) per prompt token, in full steps of them; (num_servers, max_sequences + 1) of
        an answer beside others, by how many decode. Context and answer are the mean ones, which
        alone are known before an answer is given.
    """
    most = max(server.limits.max_sequences for server in fleet.servers)
    prompt_ns = np.zeros(len(fleet.servers), np.int64)
    answer_ns = np.zeros((len(fleet.servers), most + 1), np.int64)
    prompt, output = (
        float(tokens.mean()) if len(tokens) else 1.0
        for tokens in (requests.prompt_tokens, requests.output_tokens)
    )
    context = max(1, round(prompt + output / 2))
    for k, (limits, times) in enumerate((s.limits, s.times) for s in fleet.servers):
        prompt_s = times.step([(limits.token_budget, 0)], 0, 0, 0) / limits.token_budget
        prompt_ns[k] = round(prompt_s * 1e9)
        for n in range(1, limits.max_sequences + 1):
            answer_ns[k, n] = round(times.step([], n, n * context, context) * output * 1e9)
    return prompt_ns, answer_ns
