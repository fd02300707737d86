"""Walks over a whole volume that gc and fsck share: every chunk's records, every block in the store."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Final

import trio

from jfs.chunk.layout import BlockName, block_count, block_length
from jfs.meta.run import read
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import Ino, Slice, SliceRef
from jfs.object.store import ObjectInfo, ObjectStore

PAGE: Final = 1000

Chunk = tuple[Ino, int, list[Slice]]


async def all_chunks(engine: Engine) -> AsyncIterator[list[Chunk]]:
    """Every chunk's records, a page at a time, each page in a snapshot of its own."""

    async def page(tx: Transaction, cursor: bytes | None) -> tuple[list[Chunk], bytes | None]:
        return await tx.all_chunks(cursor, PAGE)

    cursor: bytes | None = None
    while True:
        rows, cursor = await read(engine, page, cursor)
        yield rows
        if cursor is None:
            return
        await trio.lowlevel.checkpoint()


async def all_blocks(store: ObjectStore) -> AsyncIterator[list[ObjectInfo]]:
    """Every object under `chunks/`, a page at a time, listed in a thread."""
    listing: Iterator[ObjectInfo] = store.list("chunks/")
    while page := await trio.to_thread.run_sync(lambda: list(islice(listing, PAGE))):
        yield page


class SliceSet:
    """Slices by id and size; an id has one size but for records that were damaged."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._more: set[tuple[int, int]] = set()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sizes) + len(self._more)

    def add(self, slice_id: int, size: int) -> bool:
        """Whether it was not in the set yet."""
        known = self._sizes.get(slice_id)
        if known == size or (slice_id, size) in self._more:
            return False
        self.bytes += size
        if known is None:
            self._sizes[slice_id] = size
        else:
            self._more.add((slice_id, size))
        return True

    def __contains__(self, ref: SliceRef) -> bool:
        return self._sizes.get(ref.id) == ref.size or (ref.id, ref.size) in self._more

    def holds(self, block: BlockName, block_size: int) -> bool:
        """Whether some slice of the set has this block, at this size."""
        size = self._sizes.get(block.id)
        if size is None:
            return False
        if _has(size, block, block_size):
            return True
        return any(each == block.id and _has(size, block, block_size) for each, size in self._more)


def _has(size: int, block: BlockName, block_size: int) -> bool:
    return block.index < block_count(size, block_size) and block_length(size, block.index, block_size) == block.size
