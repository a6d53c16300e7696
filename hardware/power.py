"""What a machine draws: idle power, and what each device adds while it computes."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from hardware.catalog import load_profiles
from hardware.profile import DeviceProfile


@dataclass(frozen=True)
class Power:
    """Power of a machine, and where the figures come from.

    Attributes:
        idle_w: when it is on and computes nothing.
        busy_w: while it computes as it does under load.
    """

    idle_w: float
    busy_w: float
    notes: tuple[str, ...] = ()


def machine_power(
    devices: Mapping[str, DeviceProfile], utilization: Mapping[str, float]
) -> Power | str:
    """Power of the devices of a machine together, or why it is not known.

    A device draws idle + utilization * (full - idle), as in Fan, Weber, Barroso, "Power
    provisioning for a warehouse-sized computer", ISCA 2007, doi:10.1145/1250662.1250665. What else
    a machine draws (memory, fans, network) is not counted.

    Args:
        devices: all of the machine, used or not.
        utilization: share of the time that a device computes under load; 0 where it is not named.
    """
    idle_w = busy_w = 0.0
    notes: list[str] = []
    for name, profile in devices.items():
        if profile.power_w is None:
            return f"the power of {profile.name} ({name}) is not known"
        resting_w = profile.idle_power_w
        if resting_w is None:
            share, origin = idle_share(profile.kind)
            resting_w = profile.power_w * share
            notes.append(f"idle power of {profile.name} taken as {share:.0%} of its full: {origin}")
        idle_w += resting_w
        busy_w += resting_w + utilization.get(name, 0.0) * (profile.power_w - resting_w)
    return Power(idle_w, busy_w, tuple(dict.fromkeys(notes)))


def idle_share(kind: str) -> tuple[float, str]:
    """Idle over full power of a kind of device, and what it was derived from.

    The median of the catalog's devices of the kind that have both figures; of every kind where
    none of this one has.
    """
    both = [
        (profile.kind, profile.idle_power_w / profile.power_w)
        for profile in load_profiles().values()
        if profile.idle_power_w and profile.power_w
    ]
    own = [ratio for its, ratio in both if its == kind]
    ratios = own or [ratio for _, ratio in both]
    of = f"kind {kind}" if own else "any kind"
    return statistics.median(ratios), f"median of {len(ratios)} devices of {of}"
