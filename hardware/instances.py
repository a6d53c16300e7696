"""Instances: what can be rented as one machine."""

from dataclasses import dataclass

from hardware.documents import STRICT


@dataclass(frozen=True)
class Instance:
    """What can be rented as one machine.

    Attributes:
        host: profile of one core of its CPU.
        accelerator: profile of its accelerators; None for a CPU instance.
        host_link: name of the link between the host and each accelerator.
        accelerators_per_host_link: how many accelerators share one link to the host.
        peer_link: name of the link between accelerators; without one they go through the host.
        peer_group: number of neighbours that the peer link joins; None: all.
        network: name of the link to other machines.
        is_common: what-ifs that name no instance take it.
    """

    __pydantic_config__ = STRICT

    name: str
    host: str
    num_cores: int
    host_memory_bytes: int
    accelerator: str | None = None
    num_accelerators: int = 0
    host_link: str | None = None
    accelerators_per_host_link: int = 1
    peer_link: str | None = None
    peer_group: int | None = None
    network: str | None = None
    is_common: bool = False

    def __post_init__(self) -> None:
        """Refuse an instance without cores, or accelerators without a link."""
        for key in ("num_cores", "host_memory_bytes", "accelerators_per_host_link"):
            if getattr(self, key) <= 0:
                raise ValueError(f"instance '{self.name}': {key} must be positive")
        if self.accelerator and (self.num_accelerators < 1 or self.host_link is None):
            raise ValueError(
                f"instance '{self.name}': accelerator '{self.accelerator}' needs "
                "num_accelerators from 1 and a host_link"
            )
        if self.peer_group is not None and (self.peer_group < 2 or self.peer_link is None):
            raise ValueError(
                f"instance '{self.name}': peer_group needs a peer_link and at least 2, "
                f"got {self.peer_group}"
            )
