"""A pipe that carries replies to the kernel whose data lies in a local file's pages: splice(2), so no copy of them is made here.

The reply of one read is in it at a time: its header, then the pages, and then all of that goes into /dev/fuse at once.
"""

import contextlib
import errno
import fcntl
import os
from typing import Final

from jfs.chunk.file_range import PAGE, FileRange

WANTED_PAGES: Final = (512, 256)
"""A megabyte, which may touch one page more, and a header; else the most that an ordinary user gets."""

OTHER_PAGES: Final = 2
"""Of a pipe's: the header's, and the one more that a range touches which begins inside a page."""

DRAINED_AT_ONCE: Final = 64 << 10


class Pipe:
    """For one thread."""

    def __init__(self) -> None:
        # Neither end waits: what does not fit is an error of one reply, and no loop that hangs.
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._held = 0
        """Bytes inside: of the reply that is being made, or of one that could not be sent."""
        self.most: Final = (_enlarge(self._write) // PAGE - OTHER_PAGES) * PAGE
        """The longest range that it takes, in bytes."""

    def fill(self, header: bytes, data: FileRange) -> None:
        """OSError where the file cannot be read, or ends before its range does."""
        if self._held:
            self._drain()
        self._held = os.write(self._write, header)
        left, offset, source = len(data), data.offset, data.file.fd
        while left:
            moved = os.splice(source, self._write, left, offset_src=offset)
            if moved == 0:
                raise OSError(errno.EIO, "it is too short")
            left -= moved
            offset += moved
            self._held += moved

    def empty_into(self, device: int) -> None:
        """All of it, in one go.  OSError as from writev(2) to the device."""
        os.splice(self._read, device, self._held)
        self._held = 0

    def _drain(self) -> None:
        """In place: for a new pipe there may be no descriptors, or not the same room."""
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(self._read, DRAINED_AT_ONCE)
        self._held = 0

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def _enlarge(pipe: int) -> int:
    """The pipe's size in bytes, as large as it may be."""
    for pages in WANTED_PAGES:
        try:
            return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, pages * PAGE)
        except PermissionError:  # beyond /proc/sys/fs/pipe-max-size, or what this user's pipes may take in all
            continue
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
