"""Servers of generations as a scenario describes them: models on hardware, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hardware.provenance import ERROR_BAND
from simulator.answers import Actor, Deployment, Transfer
from simulator.generations import Fleet, Server
from simulator.layer_profile import LayerTimes
from simulator.modelled_steps import ServerModel, kv_blocks, model_step_times, relative_band
from simulator.serving import Serving
from simulator.step_times import StepTimes
from simulator.tariff import Tariff

End = Literal["low", "predicted", "high"]


@dataclass(frozen=True)
class ServerKind:
    """Equal servers.

    Attributes:
        usd_per_hour: of each.
        provenance: of the price.
        room: KV cache as a multiple of what the memory has room for.
        tariff: what one that comes and goes is charged for.
        layer_times: measured, in place of the cost model's.
    """

    name: str
    model: ServerModel
    replicas: int
    usd_per_hour: float | None = None
    provenance: str = ""
    room: float = 1.0
    tariff: Tariff | None = None
    layer_times: LayerTimes | None = None

    def step_times(self, token_budget: int, max_sequences: int) -> StepTimes:
        """Times of its steps: measured, or as the cost model predicts them.

        Raises:
            ValueError: a device does not support the dtype, or no times are in the folder.
        """
        if self.layer_times is not None:
            return self.layer_times.step_times()
        return model_step_times(self.model, token_budget, max_sequences)

    @property
    def band(self) -> tuple[float, float]:
        """Factors (low, high) that 90 % of step times over predicted ones lie between."""
        return ERROR_BAND["measured"] if self.layer_times else relative_band(self.model)


@dataclass(frozen=True)
class GenerationFleet:
    """Kinds of servers that answer; with `prefill`, further ones that compute prompts for them.

    Attributes:
        end: step times as predicted, or at an end of their 90 % interval.
        actors: what adds, drains and loses servers; none where all stay.
    """

    kinds: tuple[ServerKind, ...]
    serving: Serving
    prefill: tuple[ServerKind, ...] = ()
    transfer: Transfer | None = None
    end: End = "predicted"
    actors: tuple[Actor, ...] = ()
    known: dict[tuple[int, int, int], tuple[ServerModel, StepTimes]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse rules that servers which batch by themselves do not have."""
        if self.serving.routing == "shared_queue":
            raise ValueError(
                "serving: routing shared_queue is not for generations, whose servers have queues "
                "of their own; use shortest_queue, round_robin or fastest"
            )
        if self.serving.limits.predicted_s is not None:
            raise ValueError("serving.limits: predicted_s is not for generations; use queue")
        if self.actors and self.prefill:
            raise ValueError(
                "prefill: servers that compute prompts apart are always up; leave out prefill, "
                "or failures, spot and autoscaling"
            )
        if self.actors and self.serving.engine == "fast":
            raise ValueError(
                "serving: engine fast has no servers that come and go; set engine: auto or simpy"
            )

    @property
    def pools(self) -> tuple[tuple[ServerKind, ...], ...]:
        """Kinds by fleet, in the order in which requests meet them."""
        return (self.prefill, self.kinds) if self.prefill else (self.kinds,)

    @property
    def usd_per_hour(self) -> list[list[float | None]]:
        """Rent by fleet and server."""
        return [[kind.usd_per_hour for kind in pool for _ in range(kind.replicas)]
                for pool in self.pools]  # fmt: skip

    def deployment(self) -> Deployment:
        """The servers, ready to be simulated.

        Raises:
            InfeasibleError: a server has no room for keys and values.
            ValueError: a device does not support the dtype.
        """
        assert self.serving.routing != "shared_queue"
        bounds = self.serving.limits
        limits = (bounds.queue, bounds.timeout_s, bounds.retries)
        own = Fleet(self._servers(self.kinds), self.serving.routing, *limits)
        if not self.prefill:
            return Deployment(own, actors=self.actors)
        first = Fleet(self._servers(self.prefill), self.serving.routing, *limits)
        return Deployment(replace(own, max_queue=None, timeout_s=None), first, self.transfer)

    def _servers(self, kinds: Sequence[ServerKind]) -> tuple[Server, ...]:
        return tuple(s for kind in kinds for s in [self._server(kind)] * kind.replicas)

    def _server(self, kind: ServerKind) -> Server:
        wanted = self.serving.continuous
        limits = wanted.limits(kv_blocks(kind.model, wanted.token_budget, wanted.block_tokens))
        limits = replace(limits, num_blocks=max(1, int(limits.num_blocks * kind.room)))
        key = (id(kind.model), limits.token_budget, limits.max_sequences)
        if key not in self.known:
            times = kind.step_times(limits.token_budget, limits.max_sequences)
            self.known[key] = (kind.model, times)
        times = self.known[key][1]
        if self.end != "predicted":
            low, high = kind.band
            times = times.scaled(low if self.end == "low" else high)
        return Server(limits, times, kind.name, kind.tariff)
