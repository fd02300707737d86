"""Whether anything was committed to a database since, told by 96 bytes of memory instead of a transaction.

The processes that use a database share the state of its log in a file that each of them maps, `-shm` beside the database.
It begins with one header twice (https://sqlite.org/walformat.html, "The WAL-Index Header"): how many commits there were, how
many frames the log has, their checksum, and the log's salts, which are others after each restart of the log.  A commit is
visible from when its writer has renewed both copies, the second one first.  A transaction that begins reads the header
before anything else, takes no notice of one whose copies differ, and sees what it says: so, while its bytes are the same,
every new transaction sees the same.  What is not committed does not change them; a checkpoint may, for nothing.

The file stays what it is while a connection of this process is open: SQLite holds locks on it and on the database that
keep others from removing or emptying it.  Closing any descriptor of the file drops those locks (POSIX), and mapping a file
takes descriptors: they are shared by all who watch the same file, and closed after SQLite's own.
"""

import logging
import mmap
import os
from collections.abc import Callable
from struct import Struct
from typing import Final

from jfs.meta.transaction import Place

log = logging.getLogger(__name__)

_HEADERS: Final = slice(0, 96)
_NUMBER: Final = Struct("=I")
_VERSION: Final = _NUMBER.pack(3007000)
_COMMITS_AT: Final = 8
_CLOSED: Final = b"nothing can be told"
# Ours, and the one that `mmap` keeps of it.
_OWN_DESCRIPTORS: Final = 2

_File = tuple[int, int]


class _Mapping:
    """A file's headers in memory, for all who watch it."""

    __slots__ = ("fd", "file", "memory", "watchers")

    def __init__(self, file: _File, fd: int, memory: mmap.mmap) -> None:
        self.file = file
        self.fd = fd
        self.memory = memory
        self.watchers = 0


_mappings: Final[dict[_File, _Mapping]] = {}


class WalIndex:
    """A look at the header.  After `close` it tells nothing."""

    __slots__ = ("_mapping", "_memory", "followers")

    def __init__(self, mapping: _Mapping) -> None:
        self.followers: list[Callable[[bytes, bytes, list[Place]], None]] = []
        self._mapping = mapping
        self._memory: mmap.mmap | bytes = mapping.memory
        mapping.watchers += 1

    def look(self) -> bytes:
        return self._memory[_HEADERS]

    def settled(self, seen: bytes) -> bool:
        return seen[:48] == seen[48:]

    def committed(self, before: bytes, changed: list[Place]) -> None:
        """A transaction has been committed just now; `before` is a look at the header while it held the write lock.

        The header counts commits, those to earlier logs too: so it tells whether others have committed since the
        transaction let go of the lock.
        """
        after = self.look()
        if _is_next(before, after) and self.settled(before) and self.settled(after):
            for follow in self.followers:
                follow(before, after, changed)

    def close(self) -> None:
        """For when the engine's connections are closed.  Others of this process keep the descriptors from being closed."""
        if self._memory is _CLOSED:
            return
        self._memory = _CLOSED
        mapping = self._mapping
        mapping.watchers -= 1
        if not mapping.watchers and _descriptors(mapping.file) == _OWN_DESCRIPTORS:
            del _mappings[mapping.file]
            mapping.memory.close()
            os.close(mapping.fd)


def _is_next(before: bytes, after: bytes) -> bool:
    """Whether there is exactly one commit between two looks."""
    if not len(before) == len(after) == _HEADERS.stop:
        return False
    (was,), (now,) = _NUMBER.unpack_from(before, _COMMITS_AT), _NUMBER.unpack_from(after, _COMMITS_AT)
    return bool(now == was + 1)


def watch(database: str) -> WalIndex | None:
    """For a database that has been read from.  None, and the log says why, where its index cannot be looked at."""
    path = f"{os.path.realpath(database)}-shm"
    try:
        return WalIndex(_mapping(path))
    except (OSError, ValueError) as error:
        log.debug("every read of the metadata is a transaction: %s: %s", path, error)
        return None


def _mapping(path: str) -> _Mapping:
    """Raises OSError, ValueError where SQLite does not use that file, or not as one that it shares with writers."""
    found = os.stat(path)
    file = (found.st_dev, found.st_ino)
    if file not in _mappings:
        if found.st_size < _HEADERS.stop or not _descriptors(file):
            raise ValueError("not in use by this process")
        # For writing, as SQLite does: where that is not allowed it may read the log without the help of this file.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        # From here on the descriptor stays open, whatever happens: see above.
        _mappings[file] = _Mapping(file, fd, mmap.mmap(fd, _HEADERS.stop, access=mmap.ACCESS_READ))
    mapping = _mappings[file]
    if mapping.memory[: len(_VERSION)] != _VERSION:
        raise ValueError("an index of another version")
    return mapping


def _descriptors(file: _File) -> int:
    """How many of this process's descriptors are of that file."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:  # closed meanwhile, as the listing's own is
            continue
        count += (found.st_dev, found.st_ino) == file
    return count
