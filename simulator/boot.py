"""How long a replica takes from being asked for until it serves: boot, then load the model."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hardware.clouds import find_boot_times
from hardware.documents import STRICT
from hardware.units import format_bytes
from simulator.arrivals import positive


@dataclass(frozen=True)
class Boot:
    """What a new replica goes through before it serves.

    Attributes:
        cloud: whose measured boot times are drawn; None: that of the hardware.
        software: in the machine's `image`, or `installed` while it boots.
        seconds: a boot time in place of a cloud's.
        load_bytes_per_s: at which the model arrives; None: the slower of the instance's network
            and the link to its accelerators.
    """

    __pydantic_config__ = STRICT
    cloud: str | None = None
    software: Literal["image", "installed"] = "image"
    seconds: float | None = None
    load_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse negative times, rates that load nothing, and two boot times."""
        if self.seconds is not None and not 0 <= self.seconds < float("inf"):
            raise ValueError(f"serving.boot: seconds must not be negative, got {self.seconds}")
        positive("serving.boot", load_bytes_per_s=self.load_bytes_per_s)
        if self.seconds is not None and self.cloud is not None:
            raise ValueError("serving.boot: either cloud or seconds, not both")
        if self.cloud is not None:
            find_boot_times(self.cloud)


@dataclass(frozen=True)
class StartUp:
    """Seconds until a machine runs, as quantiles, and the seconds that loading the model adds.

    Attributes:
        quantiles_s: (share of the machines, seconds), ascending.
    """

    quantiles_s: tuple[tuple[float, float], ...]
    load_s: float = 0.0
    provenance: str = ""

    def draw(self, rng: np.random.Generator) -> float:
        """Seconds from the call until the replica serves.

        The logarithm is linear between quantiles; beyond the outermost, these stand.
        """
        shares, seconds = zip(*self.quantiles_s, strict=True)
        u = float(rng.random())
        if len(seconds) == 1:
            return float(seconds[0]) + self.load_s
        return float(np.exp(np.interp(u, shares, np.log(seconds)))) + self.load_s


AT_ONCE = StartUp(((0.5, 0.0),), 0.0, "replicas start at once")


def start_up(boot: Boot, cloud: str | None, load_bytes: float, rate: float | None) -> StartUp:
    """What a replica's boot means on a cloud, for a model of some bytes.

    Args:
        boot: as the scenario has it.
        cloud: of the hardware; None where it is not rented.
        load_bytes: of the model.
        rate: bytes per second at which the hardware loads them, if known.

    Raises:
        ValueError: neither the cloud nor seconds are known, or no rate is.
    """
    rate = boot.load_bytes_per_s or rate
    if not load_bytes:
        rate = math.inf
    if rate is None:
        raise ValueError(
            "serving.boot: how fast the model loads is not known; set load_bytes_per_s"
        )
    load_s = load_bytes / rate
    speed = f"model of {format_bytes(load_bytes)} at {format_bytes(rate)}/s"
    loading = speed if load_bytes else "nothing to load"
    if boot.seconds is not None:
        return StartUp(((0.5, boot.seconds),), load_s, f"{boot.seconds:g} s given; {loading}")
    name = boot.cloud or cloud
    if name is None:
        raise ValueError("serving.boot: the hardware is no cloud's; set cloud: aws, or seconds")
    times = find_boot_times(name)
    drawn = times.running_s if boot.software == "image" else times.installed_s
    origin = f"boot times of {times.n} machines of {name} ({times.source}); {loading}"
    return StartUp(tuple(sorted(drawn.items())), load_s, origin)
