"""A pipe that carries replies to the kernel whose data lies in a local file's pages: splice(2), so no copy of them is made here.

The reply of one read is in it at a time: its header, then the pages, and then all of that goes into /dev/fuse at once.
"""

import errno
import fcntl
import os
from typing import Final

from jfs.chunk.file_range import PAGE, FileRange

WANTED_PAGES: Final = (512, 256)
"""A megabyte, which may touch one page more, and a header; else the most that an ordinary user gets."""

OTHER_PAGES: Final = 2
"""Of a pipe's: the header's, and the one more that a range touches which begins inside a page."""


class Pipe:
    """For one thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self._held = 0
        self.most: Final = (_enlarge(self._write) // PAGE - OTHER_PAGES) * PAGE
        """The longest range that it takes, in bytes."""

    def fill(self, header: bytes, data: FileRange) -> None:
        """OSError where the file cannot be read, or ends before its range does."""
        try:
            self._held = os.write(self._write, header)
            left, offset, source = len(data), data.offset, data.file.fd
            while left:
                moved = os.splice(source, self._write, left, offset_src=offset)
                if moved == 0:
                    raise OSError(errno.EIO, "it is too short")
                left -= moved
                offset += moved
                self._held += moved
        except OSError:
            self._renew()
            raise

    def empty_into(self, device: int) -> None:
        """All of it, in one go.  OSError as from writev(2) to the device."""
        try:
            os.splice(self._read, device, self._held)
        except OSError:
            self._renew()
            raise

    def _renew(self) -> None:
        """What may be left inside belongs to a reply that is not sent."""
        self.close()
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        _enlarge(self._write)

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
