"""Compaction on request: every chunk of a file, or of all files below a directory."""

import logging
from errno import EIO, EROFS
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import CorruptRecord, FsError, StoreError, first_of
from jfs.meta import inodes
from jfs.meta.run import read
from jfs.meta.slices import COMPACT_AT_MOST
from jfs.meta.transaction import Transaction
from jfs.meta.types import TYPE_DIR, TYPE_FILE, Dentry, Ino
from jfs.vfs.compactor import Compactor

if TYPE_CHECKING:
    from jfs.meta.client import MetaClient

log = logging.getLogger(__name__)

PAGE: Final = 1000
MOST_AT_ONCE: Final = 64
"""Each chunk that is being rewritten takes a block of memory."""


class TreeCompaction:
    """One request, and how far it is."""

    def __init__(self, meta: "MetaClient", compactor: Compactor, threads: int) -> None:
        self._meta = meta
        self._compactor = compactor
        self._limiter = trio.CapacityLimiter(max(1, min(threads, MOST_AT_ONCE)))
        self._first_error: int | None = None
        self.chunks = 0
        """Found so far, of more than one record."""
        self.done = 0

    async def run(self, ino: Ino) -> None:
        """Compact what is worth it.  Raises FsError: ENOENT, EROFS, EIO where chunks stay."""
        if self._meta.options.read_only:
            raise FsError(EROFS)
        try:
            async with trio.open_nursery() as nursery:
                attr = await read(self._meta.engine, inodes.getattr, ino)
                if attr.type == TYPE_FILE:
                    await self._file(ino, nursery)
                elif attr.type == TYPE_DIR:
                    await self._below(ino, nursery)
        except BaseExceptionGroup as group:
            failure = first_of(group, (FsError, CorruptRecord))
            if failure is None:
                raise
            if isinstance(failure, CorruptRecord):
                log.error("compaction of inode %d failed: %s", ino, failure)
                raise FsError(EIO) from None
            raise failure from None
        if self._first_error is not None:
            raise FsError(self._first_error)

    async def _below(self, ino: Ino, nursery: trio.Nursery) -> None:
        waiting = [ino]
        while waiting:
            directory = waiting.pop()
            after: bytes | None = None
            while True:
                page = await read(self._meta.engine, _page, directory, after)
                waiting += [dentry.ino for _, dentry in page if dentry.type == TYPE_DIR]
                for _, dentry in page:
                    if dentry.type == TYPE_FILE:
                        await self._file(dentry.ino, nursery)
                if len(page) < PAGE:
                    break
                after = page[-1][0]

    async def _file(self, ino: Ino, nursery: trio.Nursery) -> None:
        for index, records in await read(self._meta.engine, _worth_a_look, ino):
            self.chunks += 1
            token = object()
            await self._limiter.acquire_on_behalf_of(token)
            nursery.start_soon(self._chunk, ino, index, rounds_for(records), token)

    async def _chunk(self, ino: Ino, index: int, rounds: int, token: object) -> None:
        try:
            for _ in range(rounds):
                if not await self._compactor.rewrite(ino, index):
                    break
        except (FsError, StoreError, CorruptRecord, OSError) as error:
            log.error("compaction of inode %d chunk %d failed: %s", ino, index, error)
            self._first_error = self._first_error or (error.errno if isinstance(error, FsError) else EIO)
        finally:
            self._limiter.release_on_behalf_of(token)
        self.done += 1


async def _page(tx: Transaction, ino: Ino, after: bytes | None) -> list[tuple[bytes, Dentry]]:
    return await tx.dentries(ino, after, PAGE)


async def _worth_a_look(tx: Transaction, ino: Ino) -> list[tuple[int, int]]:
    """Chunks of more than one record, and how many they have."""
    return [(index, len(records)) for index, records in await tx.chunks(ino) if len(records) > 1]


def rounds_for(records: int) -> int:
    """How many compactions take in so many records; what is written meanwhile is left to others."""
    return records // COMPACT_AT_MOST + 1
