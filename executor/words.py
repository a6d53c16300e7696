"""Words between two workers: small numbers over a pipe of the operating system."""

from collections import Counter
from multiprocessing.connection import Connection


class Words:
    """Numbered words over one pipe to a peer; they may be awaited in another order than sent."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.arrived: Counter[int] = Counter()

    def tell(self, number: int) -> None:
        """Send a word."""
        self.pipe.send_bytes(number.to_bytes(8, "little"))

    def wait(self, number: int) -> None:
        """Wait for one word of this number."""
        while not self.arrived[number]:
            self.arrived[int.from_bytes(self.pipe.recv_bytes(), "little")] += 1
        self.arrived[number] -= 1
