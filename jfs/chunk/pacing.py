"""Uploads keep out of the writers' way: when another may start while blocks are being staged.

An upload takes a processor that the writers of this moment want, on this machine and perhaps in the store.  So beside them
there is one at a time with pauses between, and all workers are at it once nobody has staged anything for a moment, or once a
block has been due for some seconds: other clients wait for it.
"""

from typing import Final

BUSY_S: Final = 0.5
"""So long after a block was staged another is expected."""

LATE_S: Final = 3.0
"""No block waits for writers longer; a reader elsewhere has patience for ten."""

BESIDE: Final = 1
"""Uploads that run beside writers."""

PAUSE_S: Final = 0.1
"""Between two of them."""


class Pace:
    """What is known of writers and uploads; all times are of the caller's clock, which may be set back or forth."""

    def __init__(self) -> None:
        self._staged = float("-inf")
        self._ended = float("-inf")

    def staged(self, now: float) -> None:
        """A block is being staged, or was just now."""
        self._staged = now

    def ended(self, now: float) -> None:
        """An upload ended."""
        self._ended = now

    def wait(self, now: float, due: float, running: int) -> float:
        """Seconds until the upload of a block that is due since then may start, beside so many that run."""
        quiet = self._staged + BUSY_S - now
        late = due + LATE_S - now
        if not 0 < quiet <= BUSY_S or late <= 0:
            return 0.0
        if running >= BESIDE:
            return min(quiet, late)
        return max(min(quiet, late, self._ended + PAUSE_S - now), 0.0)
