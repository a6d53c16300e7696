"""The scenario: the one file that a user writes and shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hardware.documents import STRICT, parse, read_raw, to_plain
from hardware.prices import Market
from scheduler.ir.grouping import Grain
from scheduler.problem import Communication, Objective, Pipeline
from simulator.arrivals import Traffic, positive
from simulator.layer_profile import LayerTimes
from simulator.replay import ReplayChoice
from simulator.serving import Serving
from ui.model_spec import ModelSpec


@dataclass(frozen=True)
class Network:
    """What joins rented instances, each way."""

    __pydantic_config__ = STRICT
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Rented:
    """Instances of the catalog, used together over a network.

    Attributes:
        network: name of a link of the catalog, or figures; None: the slowest of the instances' own.
    """

    __pydantic_config__ = STRICT
    instances: tuple[str, ...]
    network: Network | str | None = None

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        if not self.instances:
            raise ValueError("instances must name at least one instance")


@dataclass(frozen=True)
class FleetPart:
    """Replicas of the same model on other hardware, which share the traffic.

    Attributes:
        layer_times: as the scenario's, of this hardware.
    """

    __pydantic_config__ = STRICT
    hardware: Rented | str
    replicas: int = 1
    layer_times: LayerTimes | None = None

    def __post_init__(self) -> None:
        """Refuse a part of none."""
        positive("fleet", replicas=self.replicas)


@dataclass(frozen=True)
class PrefillPart:
    """Servers that compute prompts only, and send keys and values to the others, which decode.

    Attributes:
        network: name of a link of the catalog, or figures; None: the slowest of the instances' own.
        layer_times: as the scenario's, of this hardware.
    """

    __pydantic_config__ = STRICT
    hardware: Rented | str
    replicas: int = 1
    network: Network | str | None = None
    layer_times: LayerTimes | None = None

    def __post_init__(self) -> None:
        """Refuse a part of none."""
        positive("prefill", replicas=self.replicas)


@dataclass(frozen=True)
class Constraints:
    """What a plan must keep: places of operators, memory, latency.

    Attributes:
        pin: operator or module to the device that it must run on.
        forbid: operator or module to devices that it must not run on.
        colocate: groups of operators that must share a device.
        memory_headroom: share of memory that stays free; by default 0.1, and nothing of the
            limits that a placement instance gives.
        latency_bound_s: with objective `cost`, seconds that a batch may take.
        replicate: whether `algorithm: auto` may put a stage on several devices, which take
            micro-batches in turn; by default it does where that pays, `true` insists that it can.
    """

    __pydantic_config__ = STRICT
    pin: dict[str, str] = field(default_factory=dict)
    forbid: dict[str, tuple[str, ...]] = field(default_factory=dict)
    colocate: tuple[tuple[str, ...], ...] = ()
    memory_headroom: float | None = None
    latency_bound_s: float | None = None
    replicate: bool | None = None

    def headroom(self, usual: float = 0.1) -> float:
        """Share of memory that stays free: what is given, or the usual share."""
        return usual if self.memory_headroom is None else self.memory_headroom


@dataclass(frozen=True)
class PriceChoice:
    """Which prices apply: those taken by `as_of` (ISO date), in a market and region.

    Attributes:
        usd_per_hour: of hardware that the catalog has no such price of, and of this machine.
        internet_bytes: of every request and its answer, those that leave the cloud.
        zone_bytes: those that go from one zone to another.
        usd_per_kwh: of energy that is not in the rent.
        g_per_kwh: carbon of the grid, in place of the region's.
        pue: energy of the data centre over that of its machines, in place of the cloud's.
    """

    __pydantic_config__ = STRICT
    as_of: str | None = None
    market: Market = "on_demand"
    region: str | None = None
    usd_per_hour: float | None = None
    internet_bytes: float = 0.0
    zone_bytes: float = 0.0
    usd_per_kwh: float = 0.0
    g_per_kwh: float | None = None
    pue: float | None = None

    def __post_init__(self) -> None:
        """Refuse negative figures, and a PUE below 1."""
        positive("prices", usd_per_hour=self.usd_per_hour)
        for key in ("internet_bytes", "zone_bytes", "usd_per_kwh", "g_per_kwh"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"prices: {key} must not be negative, got {value}")
        if self.pue is not None and self.pue < 1:
            raise ValueError(f"prices: pue must be at least 1, got {self.pue}")


@dataclass(frozen=True)
class Scenario:
    """A model, the hardware, what is asked for, and the traffic.

    Attributes:
        hardware: 'local', the path of a cluster file, or instances of the catalog.
        grain: what is placed together: operators, chains, layers, blocks, or the number of groups.
        algorithm: name of a placement algorithm, or 'auto' for the best of all.
        num_micro_batches: parts that a batch is cut into; 'auto' chooses.
        pipeline: order of forward and backward passes in a training step of several
            micro-batches: `1f1b`, or `gpipe` (all forward passes first).
        communication: whether transfers are `overlapped` with compute, or `serialised` with it at
            both ends.
        replay: how links that share a medium share it, and the engine.
        fleet: further replicas on other hardware, beside `serving.replicas` on `hardware`.
        prefill: of generations, other servers for the prompts.
        layer_times: of generations, layers as measured on `hardware`, from which traffic is served.
    """

    __pydantic_config__ = STRICT
    model: ModelSpec
    hardware: Rented | str = "local"
    objective: Objective = "throughput"
    grain: Grain | int = "operators"
    algorithm: str = "auto"
    num_micro_batches: int | Literal["auto"] = "auto"
    pipeline: Pipeline = "1f1b"
    communication: Communication = "overlapped"
    replay: ReplayChoice = field(default_factory=ReplayChoice)
    constraints: Constraints = field(default_factory=Constraints)
    traffic: Traffic | None = None
    serving: Serving = field(default_factory=Serving)
    fleet: tuple[FleetPart, ...] = ()
    prefill: PrefillPart | None = None
    layer_times: LayerTimes | None = None
    prices: PriceChoice = field(default_factory=PriceChoice)
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse servers for prompts where there are none, and replicas where there can be none."""
        if self.prefill and self.model.mode != "generation":
            raise ValueError(f"prefill needs model.mode generation, got {self.model.mode}")
        given = self.layer_times or any(part.layer_times for part in self.fleet)
        if given and self.model.mode != "generation":
            raise ValueError(f"layer_times needs model.mode generation, got {self.model.mode}")
        if given and self.traffic is None:
            raise ValueError("layer_times needs traffic, which alone is served from it")
        if self.constraints.replicate is False and self.algorithm == "replicated":
            raise ValueError("algorithm replicated: constraints.replicate is false; leave it out")
        if self.constraints.replicate and (reason := self._why_no_replicas):
            raise ValueError(f"constraints.replicate: true, but {reason}, or leave replicate out")

    @property
    def _why_no_replicas(self) -> str:
        """Why no stage can be replicated, with a way out; empty where it can."""
        if self.objective == "latency":
            return (
                "replicas take batches in turn, and one batch alone gets no faster "
                "(objective latency); set objective: throughput"
            )
        if self.model.mode == "generation":
            return "in mode generation each step needs the one before; set mode: inference"
        cut = self.num_micro_batches
        if self.model.mode == "training" and (cut == 1 or self.model.batch == 1):
            return (
                f"a training step of one micro-batch (model.batch {self.model.batch}, "
                f"num_micro_batches {cut}) has none to share; set a batch and num_micro_batches "
                "of 2 or more"
            )
        return ""


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file; its name is the file's unless it gives one.

    Raises:
        ValueError: missing file, unknown key, or a value that is not accepted.
    """
    return parse_scenario(read_raw(path), str(path), path.stem)


def parse_scenario(raw: Any, where: str, name: str) -> Scenario:
    """Check a scenario that was read from `where`.

    Raises:
        ValueError: an unknown key or a value that is not accepted.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: a scenario maps keys to values, got {type(raw).__name__}")
    prices = raw.get("prices")
    if isinstance(prices, dict) and prices.get("as_of") is not None:
        raw = {**raw, "prices": {**prices, "as_of": str(prices["as_of"])}}
    scenario = parse(raw, Scenario, where)
    return scenario if scenario.name else replace(scenario, name=name)


def vary(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """The scenario with dotted keys changed together, then checked again.

    Raises:
        ValueError: a key does not exist or a value is not accepted.
    """
    raw = to_plain(scenario)
    for key, value in changes.items():
        place = raw
        *path, last = key.split(".")
        for part in path:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[last] = value
    return parse_scenario(raw, f"--vary {', '.join(changes)}", scenario.name)
