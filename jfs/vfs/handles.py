"""What open(2) gave out: handles of files, directories and special files, by number.

Even numbers can write, odd ones cannot (a habit of the field that access logs show).
"""

import errno
import os
from collections.abc import Iterator
from typing import Any, Protocol

from jfs.errors import FsError
from jfs.meta.types import ROOT, Attr, Cred, Ino
from jfs.vfs.directories import DirHandle
from jfs.vfs.files import OpenFile


class SpecialHandle(Protocol):
    """An open special file."""

    writable: bool

    async def read(self, offset: int, size: int) -> bytes: ...

    async def write(self, offset: int, data: bytes | memoryview) -> int: ...

    def close(self) -> None: ...


class Handle:
    """An open file; `file` is None for a special one."""

    __slots__ = (
        "cred",
        "direct_io",
        "disk_failures",
        "error_seq",
        "fh",
        "file",
        "flags",
        "keep_cache",
        "read_state",
        "readable",
        "special",
        "writable",
    )

    def __init__(
        self,
        fh: int,
        file: OpenFile | None,
        special: SpecialHandle | None = None,
        *,
        readable: bool,
        writable: bool,
        flags: int = 0,
        cred: Cred = ROOT,
    ) -> None:
        self.fh = fh
        self.cred = cred
        self.file = file
        self.special = special
        self.readable = readable
        self.writable = writable
        self.flags = flags
        """Of open(2)."""
        # The kernel copies a direct write once and asks for up to a megabyte; a handle that also reads may be mapped
        # shared, which direct I/O forbids.  With O_SYNC it shall not, so that a long write(2) takes one fsync, not one
        # for each part.
        self.direct_io = special is not None or (writable and not readable and not flags & os.O_DSYNC)
        self.keep_cache = False
        self.error_seq = 0 if file is None else file.writer.error_seq
        self.disk_failures = 0
        """How many failed flushes of blocks (see `Durability`) were reported on it, or happened before its open."""
        self.read_state: Any = None
        """The reader's, about this handle's pattern of access."""

    def raise_new_error(self) -> None:
        """A write that failed behind the caller's back is reported on each handle once (POSIX: by fsync or close)."""
        if self.file is None:
            return
        writer = self.file.writer
        if self.error_seq != writer.error_seq:
            self.error_seq = writer.error_seq
            raise FsError(writer.error)

    async def read_special(self, offset: int, size: int) -> bytes:
        if self.special is None:
            raise FsError(errno.EBADF)
        return await self.special.read(offset, size)

    async def write_special(self, offset: int, data: bytes | memoryview) -> int:
        if self.special is None or not self.special.writable:
            raise FsError(errno.EBADF)
        return await self.special.write(offset, data)

    def close_special(self) -> None:
        if self.special is not None:
            self.special.close()


class HandleTable:
    """All open handles of one mount."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._dirs: dict[int, DirHandle] = {}
        self._last = 0

    def _number(self, *, writable: bool) -> int:
        self._last += 2
        return self._last if writable else self._last + 1

    def add(self, file: OpenFile, *, flags: int, cred: Cred) -> Handle:
        access = flags & os.O_ACCMODE
        writable = access != os.O_RDONLY
        fh = self._number(writable=writable)
        handle = Handle(fh, file, readable=access != os.O_WRONLY, writable=writable, flags=flags, cred=cred)
        self._handles[fh] = handle
        return handle

    def add_special(self, special: SpecialHandle) -> Handle:
        fh = self._number(writable=special.writable)
        handle = Handle(fh, None, special, readable=True, writable=special.writable)
        self._handles[fh] = handle
        return handle

    def find(self, fh: int | None) -> Handle | None:
        return None if fh is None else self._handles.get(fh)

    def get(self, fh: int) -> Handle:
        """Raises EBADF."""
        handle = self._handles.get(fh)
        if handle is None:
            raise FsError(errno.EBADF)
        return handle

    def remove(self, handle: Handle) -> None:
        self._handles.pop(handle.fh, None)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    def __len__(self) -> int:
        return len(self._handles) + len(self._dirs)

    def add_dir(self, directory: DirHandle) -> int:
        fh = self._number(writable=False)
        self._dirs[fh] = directory
        return fh

    def directory(self, fh: int) -> DirHandle:
        """Raises EBADF."""
        directory = self._dirs.get(fh)
        if directory is None:
            raise FsError(errno.EBADF)
        return directory

    def remove_dir(self, fh: int) -> None:
        self._dirs.pop(fh, None)

    def dir_attr(self, ino: Ino) -> Attr | None:
        """The attributes that a directory had when it was opened; None where it is not open."""
        for directory in self._dirs.values():
            if directory.ino == ino:
                return directory.attr
        return None
