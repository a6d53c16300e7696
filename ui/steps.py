"""How steps of a job are shown while they run."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Tell = Callable[[float], None]
Steps = Callable[[str], AbstractContextManager[Tell]]
"""`with steps('Doing this') as tell:` shows a step; `tell(share)` moves its bar, 0 to 1."""
COMPILING = "Compiling, the first time on this machine"
"""Shown in a step while it compiles loops that are not in the cache."""
