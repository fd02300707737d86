"""Which inodes this client has open, and the race of open against unlink.

An inode that loses its last name while it is open here must keep its data until its last close here.  An unlink decides
that inside its transaction by asking `Removal.opened`; from then until the transaction has ended, an open of the same
inode waits, so that it sees the outcome and cannot slip in between the decision and the commit.
"""

from types import TracebackType
from typing import Self

import trio

from jfs.meta.types import Ino


class Removal:
    """One removal in flight: remembers about which inodes it has asked."""

    __slots__ = ("_files", "_finished", "inos")

    def __init__(self, files: "OpenFiles") -> None:
        self._files = files
        self._finished: trio.Event | None = None
        self.inos: set[Ino] = set()

    def opened(self, ino: Ino) -> bool:
        self.inos.add(ino)
        return self._files.is_open(ino)

    async def wait(self) -> None:
        if self._finished is None:
            self._finished = trio.Event()
        await self._finished.wait()

    def __enter__(self) -> Self:
        self._files.removals.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.removals.discard(self)
        if self._finished is not None:
            self._finished.set()


class OpenFiles:
    """Open counts by inode, and the inodes without a name that live on for them."""

    __slots__ = ("_counts", "_sustained", "removals")

    def __init__(self) -> None:
        self._counts: dict[Ino, int] = {}
        self._sustained: set[Ino] = set()
        self.removals: set[Removal] = set()

    def is_open(self, ino: Ino) -> bool:
        return ino in self._counts

    def add(self, ino: Ino) -> None:
        self._counts[ino] = self._counts.get(ino, 0) + 1

    async def enter(self, ino: Ino) -> None:
        """Count an open, once no removal that may already have found the inode closed is in flight."""
        while self.removals:
            for removal in self.removals:
                if ino in removal.inos:
                    break
            else:
                break
            await removal.wait()
        self.add(ino)

    def leave(self, ino: Ino) -> bool:
        """Count a close; whether the inode has to go now."""
        count = self._counts.get(ino, 0)
        if count > 1:
            self._counts[ino] = count - 1
            return False
        self._counts.pop(ino, None)
        return self._let_go(ino)

    def sustain(self, ino: Ino) -> bool:
        """The inode has lost its last name; whether it has to go now, having been closed meanwhile."""
        self._sustained.add(ino)
        return ino not in self._counts and self._let_go(ino)

    def _let_go(self, ino: Ino) -> bool:
        if ino not in self._sustained:
            return False
        self._sustained.discard(ino)
        return True

    def removal(self) -> Removal:
        return Removal(self)
