"""Serving generations once: by one fleet, or with prefill and decode on servers of their own.

    prefill server:  | prompt, first token |
    network:                               | keys and values |
    decode server:                                           | second token | third | ...

Source of the split: Zhong et al., "DistServe", OSDI 2024; Patel et al., "Splitwise", ISCA 2024.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import simpy

from simulator.generations import Flags, Fleet, Generations, GenerationTimes
from simulator.served import FINISHED, IN_FLIGHT, REJECTED, STATES, TIMED_OUT
from simulator.step_times import Array

Engine = Literal["auto", "simpy", "fast"]
Actor = Callable[[Any], Generator[simpy.Event, object, None]]
"""Something that adds, drains or loses servers while requests are served."""

COMPILED_FROM = 5_000
"""Requests from which `auto` takes the compiled engine, whose first use compiles for a minute."""


@dataclass(frozen=True)
class Transfer:
    """What carries keys and values from a prefill server: one prompt after another from each."""

    bytes_per_token: float
    bytes_per_s: float
    latency_s: float
    name: str = ""


@dataclass(frozen=True)
class Deployment:
    """A fleet; with `prefill`, another one that computes the prompts for it.

    Attributes:
        actors: what adds, drains and loses servers of the fleet, drawing from `rng`.
    """

    fleet: Fleet
    prefill: Fleet | None = None
    transfer: Transfer | None = None
    actors: Sequence[Actor] = ()
    rng: np.random.Generator | None = None

    @property
    def pools(self) -> tuple[Fleet, ...]:
        """The fleets, in the order in which requests meet them."""
        return (self.fleet,) if self.prefill is None else (self.prefill, self.fleet)


@dataclass(frozen=True)
class Answers:
    """One run: what requests met, (num_requests,) each.

    Attributes:
        scheduled_s, first_token_s, last_token_s: NaN where it did not happen.
        state: as of `duration_s`: IN_FLIGHT, FINISHED, REJECTED or TIMED_OUT.
        pools: what the servers of each fleet did.
        until_s: where the user stopped the run.
    """

    requests: Generations
    scheduled_s: Array
    first_token_s: Array
    last_token_s: Array
    state: np.ndarray
    duration_s: float
    pools: tuple[GenerationTimes, ...]
    until_s: float = np.inf
    counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Count the requests; none may vanish."""
        arrived = self.requests.arrival_s <= self.duration_s
        counted = np.bincount(self.state[arrived], minlength=len(STATES)).tolist()
        counts = {"arrived": int(arrived.sum()), **dict(zip(STATES, counted, strict=True))}
        if counts["arrived"] != sum(counted):
            raise AssertionError(f"requests vanished: {counts}")
        object.__setattr__(self, "counts", dict(sorted(counts.items())))


def engine_of(
    engine: Engine, num_requests: int
) -> Callable[[Generations, Fleet, Sequence[float]], GenerationTimes]:
    """The engine asked for; `auto` is the compiled one where there are many requests."""
    if engine == "simpy" or (engine == "auto" and num_requests < COMPILED_FROM):
        from simulator.continuous import generate

        return generate
    from simulator.fast_continuous import generate_fast

    return generate_fast


def answer(
    requests: Generations,
    deployment: Deployment,
    duration_s: float,
    engine: Engine = "auto",
    sample_s: Sequence[float] = (),
) -> Answers:
    """Serve requests until all are answered; states are those at `duration_s`.

    Where servers come and go the run ends then.
    """
    run = engine_of(engine, len(requests.arrival_s))
    end_s = (duration_s, deployment.pools[0].timeout_s)
    if deployment.actors:
        return _answer_while(requests, deployment, duration_s, sample_s)
    if deployment.prefill is None:
        met = run(requests, deployment.fleet, sample_s)
        gone = met.server < 0
        times = (met.scheduled_s, met.first_token_s, met.last_token_s)
        return _settled(requests, times, (gone, met.timed_out), end_s, (met,))
    assert deployment.transfer is not None
    ones = np.ones_like(requests.output_tokens)
    first = run(replace(requests, output_tokens=ones), deployment.prefill, sample_s)
    last_token_s = first.last_token_s.copy()
    going = np.flatnonzero((requests.output_tokens > 1) & np.isfinite(first.last_token_s))
    ready_s = arrivals_by(deployment.transfer, first, requests)[going]
    order = np.argsort(ready_s, kind="stable")
    going, ready_s = going[order], ready_s[order]
    prompt = requests.prompt_tokens[going]
    decoding = Generations(ready_s, prompt + 1, requests.output_tokens[going] - 1, prompt)
    second = run(decoding, deployment.fleet, sample_s)
    last_token_s[going] = second.last_token_s
    gone = first.server < 0
    gone[going] |= second.server < 0
    times = (first.scheduled_s, first.first_token_s, last_token_s)
    return _settled(requests, times, (gone, first.timed_out), end_s, (first, second))


def _answer_while(
    requests: Generations, deployment: Deployment, duration_s: float, sample_s: Sequence[float]
) -> Answers:
    """Serve requests while servers come and go."""
    from simulator.continuous import generate_while

    rng = deployment.rng or np.random.default_rng(0)
    fleet = deployment.fleet
    met = generate_while(requests, fleet, sample_s, deployment.actors, (duration_s, rng))
    assert met.turnover is not None
    times = (met.scheduled_s, met.first_token_s, met.last_token_s)
    ended = (met.turnover.rejected, met.timed_out)
    return _settled(requests, times, ended, (duration_s, fleet.timeout_s), (met,))


def arrivals_by(transfer: Transfer, first: GenerationTimes, requests: Generations) -> Array:
    """When the keys and values of each prompt are where it is decoded; NaN where they never are.

    Each server sends one after another: e_j = max(done_j, e_(j-1)) + bytes_j / bytes_per_s.
    """
    seconds = requests.prompt_tokens * (transfer.bytes_per_token / transfer.bytes_per_s)
    there_s = np.full(len(seconds), np.nan)
    for k in range(len(first.steps)):
        mine = np.flatnonzero((first.server == k) & np.isfinite(first.last_token_s))
        mine = mine[np.argsort(first.last_token_s[mine], kind="stable")]
        sent = np.cumsum(seconds[mine])
        begun = np.maximum.accumulate(first.last_token_s[mine] - (sent - seconds[mine]))
        there_s[mine] = begun + sent + transfer.latency_s
    return there_s


def _settled(
    requests: Generations,
    times: tuple[Array, Array, Array],
    left: tuple[Flags, Flags],
    end_s: tuple[float, float | None],
    pools: tuple[GenerationTimes, ...],
) -> Answers:
    """States at the end of the traffic, or where the user stopped; `left`: rejected, timed out."""
    until_s = min(pool.until_s for pool in pools)
    duration_s, timeout_s = min(end_s[0], until_s), end_s[1] or 0.0
    ended = np.isfinite(times[2]) | left[0] | left[1]
    turnover = pools[0].turnover
    open_ones = int((~ended & (requests.arrival_s <= duration_s)).sum())
    present = turnover.present if turnover else open_ones if np.isfinite(until_s) else 0
    if present != open_ones:
        raise AssertionError(f"requests vanished: {open_ones} open, {present} at the servers")
    state = np.full(len(requests.arrival_s), IN_FLIGHT, np.int64)
    state[times[2] <= duration_s] = FINISHED
    state[left[0] & (requests.arrival_s <= duration_s)] = REJECTED
    state[left[1] & (requests.arrival_s + timeout_s <= duration_s)] = TIMED_OUT
    return Answers(requests, *times, state, duration_s, pools, until_s)
