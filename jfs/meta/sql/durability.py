"""Making commits durable: flushing SQLite's write-ahead log, one flush for all who wait at the same time."""

import logging
import os
from collections.abc import Callable
from errno import EIO
from typing import TYPE_CHECKING

from jfs.errors import FsError

if TYPE_CHECKING:
    import trio

log = logging.getLogger(__name__)


class WalFile:
    """The write-ahead log beside a database, as a file to flush and to measure.

    One descriptor stays open: the kernel tells each descriptor once that writing back failed, a fresh one may miss it.
    (Never do this to the database itself: closing any descriptor of it drops SQLite's locks on it.)
    """

    def __init__(self, database: str) -> None:
        self._path = f"{database}-wal"
        self._folder = os.path.dirname(database) or "."
        self._fd = -1
        self._inode = 0

    def size(self) -> int:
        """Bytes on disk; 0 where there is none, which means that the database holds everything, flushed."""
        try:
            return os.stat(self._path).st_size
        except FileNotFoundError:
            return 0

    def sync(self) -> None:
        """Blocks until what the log holds is on disk."""
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return
        if inode != self._inode:
            self._reopen()
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode = -1, 0

    def _reopen(self) -> None:
        """A log that is new to us: its name has to reach the disk too."""
        self.close()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._inode = os.fstat(self._fd).st_ino
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class SyncRounds:
    """Runs a blocking flush in a thread, in rounds: who comes while one runs is served by the next, together."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._started = 0
        self._finished = 0
        self._running: trio.Event | None = None
        self._failed: OSError | None = None

    async def join(self) -> None:
        """Return once a flush that began after this call has succeeded.  After a failed one none is believed: EIO."""
        wanted = self._started + 1
        while self._finished < wanted:
            if self._failed is not None:
                raise FsError(EIO) from self._failed
            if self._running is not None:
                await self._running.wait()
            else:
                await self._round()

    async def _round(self) -> None:
        import trio  # not at the top: `jfs status` starts without it

        done = self._running = trio.Event()
        self._started += 1
        try:
            await trio.to_thread.run_sync(self._flush)
            self._finished = self._started
        except OSError as error:
            # The kernel may have dropped the pages that it could not write: a later success would prove nothing.
            log.error("flushing the metadata log failed, no later fsync can succeed: %s", error)
            self._failed = error
        finally:
            self._running = None
            done.set()
