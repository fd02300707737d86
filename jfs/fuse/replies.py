"""What the Vfs gives, as the bodies of replies."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from jfs.fuse.kernel import (
    ATTR_OUT,
    COUNT_OUT,
    DIRENT,
    ENTRY_OUT,
    FOPEN_CACHE_DIR,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    OPEN_OUT,
    STATFS_OUT,
)
from jfs.fuse.told import Told
from jfs.meta.types import S_IFMT_OF, TYPE_DIR, TYPE_FILE, Attr, Entry, Ino
from jfs.meta.usage import StatFs
from jfs.vfs.directories import DirRow
from jfs.vfs.handles import Handle

BLOCK_SIZE: Final = 65536
"""st_blksize: how much programs that ask read and write at a time."""

STATFS_BLOCK: Final = 4096
NANO: Final = 1_000_000_000
Data = bytes | bytearray | memoryview

PADDING: Final = tuple(bytes(-length % 8) for length in range(8))
NOBODY_KNOWS: Final = bytes(ENTRY_OUT.size)
"""In a listing: the kernel shall ask for the inode when it needs it."""


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds for which the kernel may answer from its caches."""

    attr: float = 1.0
    entry: float = 1.0
    dir_entry: float = 1.0
    negative: float = 0.0


class Replies:
    """Encodes for one mount."""

    def __init__(self, timeouts: Timeouts, age_s: Callable[[Ino], float] | None = None) -> None:
        """`age_s`: how old the attributes may be that are told of an inode; None: they are fresh."""
        self.told = Told(timeouts.attr)
        self._attr_s = timeouts.attr
        self._age_s = age_s
        self._attr_valid = _split(timeouts.attr)
        self._entry_valid = _split(timeouts.entry)
        self._dir_valid = _split(timeouts.dir_entry)
        seconds, nanoseconds = _split(timeouts.negative)
        self.absent: Final = ENTRY_OUT.pack(0, 0, seconds, 0, nanoseconds, 0, *(0,) * 16)
        """A name that is not there, and may be believed not to be for a while."""

    def entry(self, entry: Entry) -> bytes:
        return self._entry(entry.ino, entry.attr)

    def _entry(self, ino: Ino, attr: Attr) -> bytes:
        if attr.type == TYPE_DIR:
            seconds, nanoseconds = self._dir_valid
        else:
            seconds, nanoseconds = self._entry_valid
            if attr.type == TYPE_FILE:
                self.told.note(ino, attr)
        attr_seconds, attr_nanoseconds = self._attr_valid if self._age_s is None else self._left(self._age_s(ino))
        return ENTRY_OUT.pack(
            ino,
            0,
            seconds,
            attr_seconds,
            nanoseconds,
            attr_nanoseconds,
            *_fields(ino, attr),
        )

    def attr(self, ino_and_attr: tuple[Ino, Attr]) -> bytes:
        ino, attr = ino_and_attr
        if attr.type == TYPE_FILE:
            self.told.note(ino, attr)
        return ATTR_OUT.pack(
            *(self._attr_valid if self._age_s is None else self._left(self._age_s(ino))),
            0,
            *_fields(ino, attr),
        )

    def _left(self, age_s: float) -> tuple[int, int]:
        """What the kernel may still believe: --attr-cache is for what both of us remember."""
        return self._attr_valid if age_s <= 0 else _split(max(self._attr_s - age_s, 0.0))

    def created(self, made: tuple[Entry, Handle]) -> bytes:
        return self.entry(made[0]) + opened(made[1])

    def rows(self, listed: tuple[int, Sequence[DirRow]]) -> bytes:
        """As many rows of a listing, with attributes, as fit into the size that is asked for."""
        room, rows = listed
        parts: list[bytes] = []
        for name, ino, attr, next_offset in rows:
            length = len(name)
            padding = PADDING[length & 7]
            room -= ENTRY_OUT.size + DIRENT.size + length + len(padding)
            if room < 0:
                break
            if attr is None:
                parts += (NOBODY_KNOWS, DIRENT.pack(ino, next_offset, length, 0), name, padding)
            else:
                kind = S_IFMT_OF[attr.type] >> 12
                parts += (self._entry(ino, attr), DIRENT.pack(ino, next_offset, length, kind), name, padding)
        return b"".join(parts)


def _fields(ino: Ino, attr: Attr) -> tuple[int, ...]:
    """As in `kernel.ATTR`."""
    length = attr.length
    atime, atime_ns = divmod(attr.atime_ns, NANO)
    mtime, mtime_ns = divmod(attr.mtime_ns, NANO)
    ctime, ctime_ns = divmod(attr.ctime_ns, NANO)
    return (
        ino,
        length,
        (length + 511) >> 9,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        S_IFMT_OF[attr.type] | attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.rdev,
        BLOCK_SIZE,
        0,
    )


def _split(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * NANO), NANO)


def nothing(result: object) -> bytes:
    return b""


def opened(handle: Handle) -> bytes:
    flags = FOPEN_DIRECT_IO if handle.direct_io else FOPEN_KEEP_CACHE if handle.keep_cache else 0
    if not handle.writable:
        flags |= FOPEN_NOFLUSH  # its close has nothing to wait for; with POSIX locks it will, for they go with it
    return OPEN_OUT.pack(handle.fh, flags, 0)


def opened_directory(given: tuple[int, bool]) -> bytes:
    fh, kept = given
    return OPEN_OUT.pack(fh, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE if kept else 0, 0)


def wrote(size: int) -> bytes:
    return COUNT_OUT.pack(size, 0)


def bare_rows(listed: tuple[int, Sequence[DirRow]]) -> bytes:
    """Names and types alone."""
    room, rows = listed
    parts: list[bytes] = []
    for name, ino, attr, next_offset in rows:
        padding = PADDING[len(name) & 7]
        room -= DIRENT.size + len(name) + len(padding)
        if room < 0:
            break
        kind = 0 if attr is None else S_IFMT_OF[attr.type] >> 12
        parts += (DIRENT.pack(ino, next_offset, len(name), kind), name, padding)
    return b"".join(parts)


def statfs(usage: StatFs) -> bytes:
    available = usage.available_space // STATFS_BLOCK
    inodes = usage.available_inodes
    return STATFS_OUT.pack(
        usage.total_space // STATFS_BLOCK,
        available,
        available,
        usage.used_inodes + inodes,
        inodes,
        STATFS_BLOCK,
        255,
        STATFS_BLOCK,
    )
