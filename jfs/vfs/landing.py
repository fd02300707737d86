"""Where the data of the next write is read to, so that it need not be copied there.

Large writes come in a row, or in turns from two files.  So before the next request is read it can be guessed which file's
buffer will take its data, and the kernel is asked to put the data right there: behind the last byte of the block being
filled, or in a spare buffer where a block has just become full.  Behind that byte nothing counts, so a wrong guess costs no
more than the copy that there would have been anyway.

The guess holds for an instant: from `room` to the next wait of the loop the place is nobody else's.  A write that has to wait
before it is taken over has its data moved out of the way (`settle`).
"""

from typing import TYPE_CHECKING, Final

from jfs.vfs.buffers import Buffer, BufferPool

if TYPE_CHECKING:
    from jfs.vfs.writer import FileWriter

LARGE: Final = 64 << 10
"""Smaller writes are copied faster than guessed."""

SMALL_IN_A_ROW: Final = 4
"""So many of them end the guessing.  One alone is the rest of a large write whose memory does not begin with a page."""


class Landing:
    """One mount's guess about the next write."""

    __slots__ = ("_before", "_buffer", "_last", "_pool", "_small", "_spare", "_spare_used", "_start", "landed")

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._last: FileWriter | None = None
        self._before: FileWriter | None = None
        self._small = 0
        self._spare: Buffer | None = None
        self._spare_used = False
        self._buffer: Buffer | None = None
        self._start = 0
        self.landed: memoryview | None = None
        """The data of the request just read, if it is a write and lies in the room that was given."""

    def note(self, writer: "FileWriter", size: int) -> None:
        """A write of so many bytes went to the file; the next is guessed to go where the one before this went."""
        if size >= LARGE:
            self._small = 0
            self._before = self._last
            self._last = writer
        elif self._last is not None:
            self._small += 1
            if self._small >= SMALL_IN_A_ROW:
                self._before = self._last = None

    def room(self) -> memoryview | None:
        """Where the next write's data is likely to belong."""
        self.landed = None
        writer = self._before
        if writer is None:
            return None
        buffer, start = writer.tail()
        if buffer is None:
            if start:
                return None
            buffer = self._spare
            if buffer is None:
                buffer = self._spare = self._pool.take_now(self._pool.block_size)
                if buffer is None:
                    return None
            self._spare_used = True
        self._buffer = buffer
        self._start = start
        return buffer.view[start:] if start < buffer.size else None

    def is_at(self, data: bytes | memoryview, buffer: Buffer, start: int) -> bool:
        """Whether the data lies there already."""
        return data is self.landed and buffer is self._buffer and start == self._start

    def take_spare(self, data: bytes | memoryview) -> Buffer | None:
        """The spare buffer, if the data lies at its start: it becomes the caller's next block."""
        buffer = self._spare
        if buffer is None or not self.is_at(data, buffer, 0):
            return None
        self._spare = None
        return buffer

    def settle(self, data: bytes | memoryview) -> bytes | memoryview:
        """The same data, safe from what others do while the caller waits."""
        if data is not self.landed:
            return data
        self.landed = None
        return bytes(data)

    def tick(self) -> None:
        """Called twice a second: a spare buffer that nobody came for goes back."""
        if self._spare is not None and not self._spare_used:
            self._pool.give(self._spare)
            self._spare = None
            self._before = self._last = None
        self._spare_used = False
