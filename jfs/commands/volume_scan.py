"""What gc and fsck both need: every slice that the metadata knows, and every block that the store holds."""

from collections.abc import AsyncIterator
from typing import Final

import trio

from jfs.chunk.layout import BlockName, parse_name
from jfs.commands.progress import counting
from jfs.meta.client import MetaClient
from jfs.meta.run import read
from jfs.meta.transaction import Transaction
from jfs.meta.types import DelayedSlices, DeletedFile, Ino, Slice, SliceRef
from jfs.object.store import ObjectInfo, ObjectStore

PAGE: Final = 1000
EVERYTHING: Final = 1 << 62

Chunk = tuple[Ino, int, list[Slice]]


async def chunks(meta: MetaClient) -> AsyncIterator[Chunk]:
    """Every chunk of the volume with a record, those of deleted files too."""
    cursor: bytes | None = None
    while True:
        page, cursor = await read(meta.engine, _chunk_page, cursor)
        for chunk in page:
            yield chunk
        if cursor is None:
            return
        await trio.lowlevel.checkpoint()


async def _chunk_page(tx: Transaction, cursor: bytes | None) -> tuple[list[Chunk], bytes | None]:
    return await tx.all_chunks(cursor, PAGE)


async def deleted_files(tx: Transaction) -> list[DeletedFile]:
    return await tx.deleted_files(EVERYTHING, EVERYTHING)


async def delayed_slices(tx: Transaction) -> list[DelayedSlices]:
    return await tx.delayed_slices(EVERYTHING, EVERYTHING)


async def dead_slices(tx: Transaction) -> list[SliceRef]:
    return await tx.dead_slices(EVERYTHING)


async def blocks(store: ObjectStore) -> list[tuple[ObjectInfo, BlockName]]:
    """Every object of the store that is named like a block."""
    return await trio.to_thread.run_sync(_blocks, store)


def _blocks(store: ObjectStore) -> list[tuple[ObjectInfo, BlockName]]:
    found = []
    with counting("Listed blocks") as seen:
        for info in store.list("chunks/"):
            name = parse_name(info.key)
            if name is not None:
                found.append((info, name))
                seen()
    return found
