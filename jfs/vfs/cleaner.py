"""Deletes the blocks of what is gone: deleted files and dead slices, from the metadata client's queue.

Order: references go first, then the metadata is made durable, then the blocks go, then the slices are forgotten.  So no
record that could come back after a power cut points at a deleted block, and what a crash leaves over is found by the
hourly job.
"""

import logging
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import CorruptRecord, FsError, StoreError
from jfs.meta.types import DeletedFile, SliceRef
from jfs.vfs.durability import Durability

if TYPE_CHECKING:
    from jfs.chunk.store import BlockStore
    from jfs.meta.client import MetaClient

log = logging.getLogger(__name__)

GATHER_S: Final = 0.5
"""So long deletions are gathered, so that one sync serves many."""

BATCH: Final = 500
DRAIN_S: Final = 10.0


class Cleaner:
    """One mount's background deletion."""

    def __init__(self, meta: "MetaClient", blocks: "BlockStore", durability: Durability) -> None:
        self._meta = meta
        self._blocks = blocks
        self._durability = durability
        self._working = trio.Lock()
        self._first: DeletedFile | SliceRef | None = None
        """Taken from the queue by `run`, which waits for more."""
        self.removed = 0
        """Slices whose blocks went."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._first = await self._meta.deleted.get()
            await trio.sleep(GATHER_S)
            await self.work_off()

    async def drain(self, limit_s: float = DRAIN_S) -> None:
        """Work off the queue, for a while (an unmount must end); the rest is left to the hourly job of some mount."""
        with trio.move_on_after(limit_s):
            await self.work_off()

    async def work_off(self) -> None:
        """Until the queue is empty."""
        async with self._working:
            while (item := self._take()) is not None:
                await self._clean(item)

    def _take(self) -> DeletedFile | SliceRef | None:
        """The oldest item, also if `run` has it already."""
        first, self._first = self._first, None
        return first or self._meta.deleted.take()

    async def _clean(self, item: DeletedFile | SliceRef | None) -> None:
        """One batch."""
        dead: list[SliceRef] = []
        while item is not None:
            if isinstance(item, SliceRef):
                dead.append(item)
            else:
                await self._release(item, dead)
            if len(dead) >= BATCH:
                break
            item = self._take()
            await trio.lowlevel.checkpoint()
        if not dead or not self._meta.options.max_deletes:  # 0: blocks are left to other mounts, and to gc
            return
        try:
            await self._durability.sync()
        except (StoreError, OSError, FsError) as error:
            log.warning("%d slices stay until the next clean-up: %s", len(dead), error)
            return
        limiter = trio.CapacityLimiter(self._meta.options.max_deletes)
        async with trio.open_nursery() as nursery:
            for ref in dict.fromkeys(dead):  # a job may have found again what was in the queue already
                await limiter.acquire_on_behalf_of(ref)
                nursery.start_soon(self._remove, ref, limiter)

    async def _release(self, deleted: DeletedFile, dead: list[SliceRef]) -> None:
        try:
            async for ref in self._meta.release_chunks(deleted):
                dead.append(ref)  # noqa: PERF401 - what was released before a failure counts
        except (FsError, CorruptRecord) as error:
            log.warning("the data of deleted inode %d stays until the next clean-up: %s", deleted.ino, error)

    async def _remove(self, ref: SliceRef, limiter: trio.CapacityLimiter) -> None:
        try:
            await self._blocks.remove(ref.id, ref.size)
            await self._meta.forget_slice(ref)
            self.removed += 1
        except (StoreError, FsError, CorruptRecord) as error:
            log.warning("the blocks of slice %d stay until the next clean-up: %s", ref.id, error)
        finally:
            limiter.release_on_behalf_of(ref)
