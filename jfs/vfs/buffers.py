"""Memory for unflushed writes: bounded by `--buffer-size`, given out in two sizes, given back to the system when idle.

A buffer is an anonymous mapping, so its pages cost nothing until they are written and return to the system when it goes.
A writer that finds the pool empty waits for uploads to finish.  `relieve` is called for whoever has to wait while nothing
is being uploaded: it has to make somebody upload, or nobody ever would.
"""

import mmap
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

SMALL: Final = 128 << 10
"""Where a slice starts when its first write is smaller: most small files never need a whole block's buffer."""

IDLE_S: Final = 3.0


class Buffer:
    """`size` bytes of memory, in `view`.

    The mapping goes with the last reference.  Closing it by hand would fail while the traceback of a failed upload, for
    example, still holds a part of the view.
    """

    __slots__ = ("size", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self.view = memoryview(mmap.mmap(-1, size))


class BufferPool:
    """All buffers of one mount."""

    def __init__(self, capacity: int, block_size: int) -> None:
        self.block_size = block_size
        self.small_size = min(SMALL, block_size)
        self.capacity = max(capacity, 4 * block_size)
        self.used = 0
        """Bytes given out."""
        self.uploading = 0
        """Buffers that come back without anybody's help."""
        self.relieve: Callable[[], None] = lambda: None
        self._free: dict[int, deque[Buffer]] = {self.block_size: deque(), self.small_size: deque()}
        self._kept = 0
        self._waiters = trio.lowlevel.ParkingLot()
        self._busy = False
        self._idle_since: float | None = None

    def take_now(self, size: int) -> Buffer | None:
        """A buffer of one of the two sizes, unless the pool's bound is reached or others wait already."""
        if self._waiters:
            return None
        return self._take(size)

    def _take(self, size: int) -> Buffer | None:
        if self.used + size > self.capacity:
            return None
        self.used += size
        self._busy = True
        free = self._free[size]
        if free:
            self._kept -= size
            return free.pop()
        while self.used + self._kept > self.capacity and self._kept:
            self._drop_one()
        return Buffer(size)

    async def take(self, size: int) -> Buffer:
        """Wait for a buffer."""
        buffer = self.take_now(size)
        while buffer is None:
            if self.uploading == 0:
                self.relieve()
            await self._waiters.park()
            buffer = self._take(size)
        return buffer

    def give(self, buffer: Buffer) -> None:
        self.used -= buffer.size
        self._kept += buffer.size
        self._free[buffer.size].append(buffer)
        if self._waiters:
            self._waiters.unpark_all()

    def trim(self) -> None:
        """Called now and then: after some seconds in which nobody took a buffer, free the unused ones."""
        now = trio.current_time()
        if self._busy or not self._kept:
            self._busy = False
            self._idle_since = now
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= IDLE_S:
            self.close()

    def close(self) -> None:
        """Free every buffer that is not in use."""
        while self._kept:
            self._drop_one()

    def _drop_one(self) -> None:
        for free in self._free.values():
            if free:
                self._kept -= free.popleft().size
                return
