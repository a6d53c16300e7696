"""Ctrl-C in a search for latency, which keeps what it has found."""

from scheduler.arrays import Ints


class Stopped(KeyboardInterrupt):
    """The best schedule until then.

    Attributes:
        device, order: (n,) device of each task, and the tasks in order.
        bound_s: what is proven of the makespan, 0 where nothing is.
    """

    def __init__(self, device: Ints, order: Ints) -> None:
        """Keep a schedule."""
        super().__init__("stopped with a schedule")
        self.device, self.order, self.bound_s = device, order, 0.0
