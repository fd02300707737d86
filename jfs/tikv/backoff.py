"""How long and how often a call is tried again."""

import random
from typing import Final

import trio

from jfs.errors import Conflict, Unavailable

PATIENCE_S: Final = 20.0
FIRST_PAUSE_S: Final = 0.002
LONGEST_PAUSE_S: Final = 0.5


class Backoff:
    """The tries of one call: pauses that double, until a deadline."""

    __slots__ = ("_pause_s", "deadline")

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.deadline = trio.current_time() + patience_s
        self._pause_s = FIRST_PAUSE_S

    async def pause(self, why: object, at_least_s: float = 0.0) -> None:
        """Wait before the next try.  Unavailable, with the reason, if there shall be none."""
        if not await self._paused(at_least_s):
            raise Unavailable(str(why))

    async def wait_for_others(self, why: str) -> None:
        """Wait for another transaction to end.  Conflict if it takes too long: the store is there, and busy."""
        if not await self._paused(0.0):
            raise Conflict(why)

    async def _paused(self, at_least_s: float) -> bool:
        seconds = max(at_least_s, self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if trio.current_time() + seconds >= self.deadline:
            return False
        await trio.sleep(seconds)
        return True
