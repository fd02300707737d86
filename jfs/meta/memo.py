"""Reads that need no transaction, because nothing has been committed since the last one of the same.

An engine that can tell whether anything was committed, by whomever, without a transaction (`Engine.watch`) makes repeated
reads nearly free, and they are as fresh as a transaction's: each begins with a look, and what is known is forgotten with the
first commit; with one of this engine only what it changed.  A result is kept only if the engine looked the same before the
read and after it.
"""

import errno
from collections.abc import Callable
from typing import Any, Final

import msgspec

from jfs.errors import FsError
from jfs.meta import files, inodes, namespace
from jfs.meta.run import read
from jfs.meta.transaction import EVERYTHING, Engine, Place, Watch
from jfs.meta.types import Attr, Entry, Ino, Slice

# About 0.4 KB for an inode with its name, which are two.
MOST: Final = 16384
# Longer lists of a chunk's records are not kept: they take memory, and compaction makes them short.
MOST_RECORDS: Final = 16

NOBODY: Final[Ino] = 0
"""What a name points at that is not there."""

# An inode's attributes by its number, a name's inode by directory and name, a chunk's records by inode and index.
Known = dict[Place, Any]


class Memo:
    """What reads have given since the last commit.  Callers get copies of what they may change."""

    __slots__ = ("_engine", "_known", "_look", "_seen", "_settled")

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self._engine = engine
        self._look: Callable[[], bytes] = watch.look
        self._settled: Callable[[bytes], bool] = watch.settled
        self._seen: bytes | None = None
        """How the engine looked when what is known was read; None: it had nothing to say."""
        self._known: Known = {}
        watch.followers.append(self._follow)

    async def getattr(self, ino: Ino) -> Attr:
        """`inodes.getattr`"""
        known = self._true_now()
        attr: Attr | None = known.get(ino)
        if attr is not None:
            return msgspec.structs.replace(attr)
        attr = await read(self._engine, inodes.getattr, ino)
        if self._is_still_true(known):
            known[ino] = msgspec.structs.replace(attr)
        return attr

    async def lookup(self, parent: Ino, name: bytes) -> Entry:
        """`namespace.lookup`"""
        known = self._true_now()
        ino: Ino | None = known.get((parent, name))
        if ino == NOBODY:
            raise FsError(errno.ENOENT)
        if ino is not None and (attr := known.get(ino)) is not None:
            return Entry(ino, msgspec.structs.replace(attr))
        try:
            entry = await read(self._engine, namespace.lookup, parent, name)
        except FsError as error:
            if error.errno == errno.ENOENT and self._is_still_true(known):
                known[parent, name] = NOBODY
            raise
        if self._is_still_true(known):
            known[parent, name] = entry.ino
            known[entry.ino] = msgspec.structs.replace(entry.attr)
        return entry

    async def read_chunk(self, ino: Ino, index: int) -> list[Slice]:
        """`files.read_chunk`"""
        known = self._true_now()
        records: list[Slice] | None = known.get((ino, index))
        if records is not None:
            return records.copy()
        records = await read(self._engine, files.read_chunk, ino, index)
        if len(records) <= MOST_RECORDS and self._is_still_true(known):
            known[ino, index] = records.copy()
        return records

    def _true_now(self) -> Known:
        seen = self._look()
        if seen != self._seen:
            self._known = {}
            self._seen = seen if self._settled(seen) else None
        return self._known

    def _follow(self, before: bytes, after: bytes, changed: list[Place]) -> None:
        """What was true before a commit, and was not changed by it, is true after it."""
        if self._seen != before or EVERYTHING in changed:
            return
        forget = self._known.pop
        for place in changed:
            forget(place, None)
            if type(place) is int:
                forget((place, b".."), None)
        self._seen = after

    def _is_still_true(self, known: Known) -> bool:
        """Whether a read that has just been made may join what was known when it was begun; there is room for it then.

        Where others have begun anew while it had to wait, what it joins is not looked into any more.
        """
        if self._look() != self._seen:
            return False
        if len(known) >= MOST:
            known.clear()
        return True
