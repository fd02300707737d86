"""What the kernel believes about the lengths of files.

The kernel reads no further than the length that it was told last, and keeps believing it for the attribute timeout, also
across an open.  Close-to-open needs more: what another mount has closed before is read after the open.  So replies are
noted here for as long as the kernel may believe them, and an open that finds something else makes the kernel forget.
"""

import time
from typing import Final

from jfs.meta.types import Attr, Ino

MOST: Final = 50_000
"""Files told about within one timeout; beyond that nothing is certain and the kernel is made to forget more often."""


class Told:
    """Two generations of notes; the younger one is closed after `valid_s` seconds, and then lives as long again."""

    __slots__ = ("_new", "_old", "_unsure_until", "_until", "_valid_s")

    def __init__(self, valid_s: float) -> None:
        """`valid_s`: how long the kernel may believe attributes."""
        self._valid_s = valid_s
        self._new: dict[Ino, int] = {}
        self._old: dict[Ino, int] = {}
        self._until = 0.0
        self._unsure_until = 0.0

    def note(self, ino: Ino, attr: Attr) -> None:
        """The kernel is told this about a file."""
        now = time.monotonic()
        if now >= self._until or len(self._new) >= MOST:
            if now < self._until:
                self._unsure_until = now + self._valid_s
            self._old, self._new = self._new, {}
            self._until = now + self._valid_s
        self._new[ino] = hash((attr.length, attr.mtime_ns))  # a third of the memory of the two

    def misled(self, ino: Ino, attr: Attr) -> bool:
        """Whether the kernel may believe something else about the file; then it is to be put right at once."""
        known = self._new.get(ino, self._old.get(ino))
        if known is None:
            return time.monotonic() < self._unsure_until
        if known == hash((attr.length, attr.mtime_ns)):
            return False
        self._new.pop(ino, None)
        self._old.pop(ino, None)
        return True
