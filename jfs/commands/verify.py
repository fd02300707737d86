"""Blocks read from the store, several at once, and what is wrong with them: what `fsck --verify` does beside looking at sizes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

from jfs.chunk.store import BlockStore
from jfs.errors import StoreError
from jfs.meta.types import Ino

READERS: Final = 8
"""Blocks in memory at once; each may take there what it takes in the store, and its plain bytes."""


class Use(msgspec.Struct, frozen=True):
    """A block of `size` plain bytes of a slice, its fingerprint if there is one, and a file that uses it."""

    ino: Ino
    slice_id: int
    key: str
    size: int
    fingerprint: bytes = b""


class Verifier:
    """Reads, decrypts, decompresses and measures blocks, and compares fingerprints, in the background, past all caches."""

    def __init__(self, blocks: BlockStore, found_bad: Callable[[Use, StoreError], Awaitable[None]]) -> None:
        self._blocks = blocks
        self._found_bad = found_bad
        self._to_read, self._reads = trio.open_memory_channel[Use](0)
        self.count = 0
        self.bytes = 0
        self.marked = 0
        """Those of them that had a fingerprint to be checked by."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`async with`: at its end all blocks are read."""
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._read)
            async with self._to_read:
                yield

    async def put(self, use: Use) -> None:
        """Have the block read; waits for a reader to be free."""
        await self._to_read.send(use)

    async def _read(self) -> None:
        async for use in self._reads:
            try:
                await self._blocks.verify(use.key, use.size, use.fingerprint)
            except StoreError as error:
                await self._found_bad(use, error)
            self.count += 1
            self.bytes += use.size
            self.marked += bool(use.fingerprint)
