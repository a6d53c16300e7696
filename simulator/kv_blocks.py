"""Pages of KV cache: which are free, and which of the free still hold a sequence's tokens."""

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Run:
    """Free blocks that were released together; those of an owner are its first `count`."""

    owner: int
    count: int


class Blocks:
    """Free blocks, the longest free taken first; each run gives up its last block first."""

    def __init__(self, num_blocks: int) -> None:
        self.free = num_blocks
        self._runs: deque[Run] = deque([Run(-1, num_blocks)])
        self._cached: dict[int, Run] = {}

    def take(self, count: int) -> None:
        """Take blocks, the longest free first."""
        self.free -= count
        while count > 0:
            run = self._runs[0]
            taken = min(count, run.count)
            run.count -= taken
            count -= taken
            if run.count == 0:
                self._runs.popleft()
                self._cached.pop(run.owner, None)

    def release(self, count: int, owner: int = -1, cached: int = 0) -> None:
        """Free `count` blocks, of which the first `cached` still hold the owner's tokens."""
        self.free += count
        if count > cached:
            if self._runs and self._runs[-1].owner < 0:
                self._runs[-1].count += count - cached
            else:
                self._runs.append(Run(-1, count - cached))
        if cached:
            run = Run(owner, cached)
            self._runs.append(run)
            self._cached[owner] = run

    def cached(self, owner: int) -> int:
        """How many blocks that an owner left still hold its tokens."""
        run = self._cached.get(owner)
        return run.count if run else 0

    def reuse(self, owner: int, count: int) -> None:
        """Take the first `count` blocks that an owner left."""
        run = self._cached.pop(owner)
        self.free -= count
        run.count -= count
        run.owner = -1
        if run.count == 0:
            self._runs.remove(run)
