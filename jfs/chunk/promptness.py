"""Whether calls that may have to wait for a disk are quick enough to be made on the event loop.

A hop to a thread and back costs 50 µs where threads are awake, and some hundreds where processors have to be woken: a quick disk
is done sooner.  It is the mean of the latest calls that counts, for one of them may just have lost its processor.  After slow
ones the disk is left to threads for a while, for longer the slower it was: one that hangs holds up the loop once in an hour.
"""

import time
from typing import Final

SLOW_PUT_S: Final = 0.002
"""Puts go to the page cache; the kernel slows writers down while its disk is busy."""

SLOW_READ_S: Final = 0.001
MEAN_OF: Final = 8
REST_S: Final = 1.0
REST_FACTOR: Final = 100


class Promptness:
    """Of one kind of call; `slow_s`: seconds from which on it is for threads."""

    __slots__ = ("_mean_s", "_rests_until", "_slow_s")

    def __init__(self, slow_s: float) -> None:
        self._slow_s = slow_s
        self._mean_s = 0.0
        self._rests_until = 0.0

    @property
    def on_loop(self) -> bool:
        """Whether the next call may be made on the loop."""
        return time.monotonic() >= self._rests_until

    def took(self, seconds: float) -> None:
        """A call on the loop took so long."""
        self._mean_s += (seconds - self._mean_s) / MEAN_OF
        if self._mean_s > self._slow_s:
            self._mean_s = 0.0
            self._rests_until = time.monotonic() + max(REST_S, REST_FACTOR * seconds)
