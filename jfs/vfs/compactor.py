"""Background compaction: rewrites chunks of many small slices as one, when there is nothing better to do.

One chunk at a time, block by block; while requests keep coming it waits, unless the chunk's list of records has grown so
long that every write and read pays for it.  Then it works as long as it rests.
"""

import errno
import logging
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import CorruptRecord, FsError, StoreError
from jfs.meta.files import CompactionPlan
from jfs.meta.slices import Segment
from jfs.meta.types import Ino
from jfs.vfs.durability import Durability

if TYPE_CHECKING:
    from jfs.chunk.store import BlockStore
    from jfs.meta.client import MetaClient
    from jfs.vfs.files import OpenFileTable

log = logging.getLogger(__name__)

EVERY: Final = 100
LONG: Final = 350
URGENT: Final = 2500
"""The peer's figures: a write that leaves n records asks for compaction if n%100 is 99 or n exceeds 350."""

CALM_S: Final = 0.5
BUSY_REQUESTS: Final = 20
"""More reads and writes than this within CALM_S, and compaction waits."""

QUEUE: Final = 10_000
TURN: Final = 16
"""So many segments are read before others get their turn."""


class Compactor:
    """One mount's background compaction."""

    def __init__(
        self, meta: "MetaClient", blocks: "BlockStore", files: "OpenFileTable | None", durability: Durability
    ) -> None:
        self._meta = meta
        self._blocks = blocks
        self._files = files
        self._durability = durability
        self._queue: dict[tuple[Ino, int], int] = {}
        self._waiting = trio.lowlevel.ParkingLot()
        self._scope: trio.CancelScope | None = None
        self._stopped = False
        self.requests = 0
        """Reads, writes and record commits so far: how busy the mount is."""

    def after_write(self, ino: Ino, index: int, count: int) -> None:
        """A record was committed; the chunk has `count` of them."""
        self.requests += 1
        if count > LONG or count % EVERY == EVERY - 1:
            self._ask(ino, index, count)

    def after_read(self, ino: Ino, index: int, count: int) -> None:
        """A read found `count` records or segments, at least five."""
        self._ask(ino, index, count)

    def _ask(self, ino: Ino, index: int, count: int) -> None:
        if len(self._queue) < QUEUE or (ino, index) in self._queue:
            self._queue[ino, index] = count
            self._waiting.unpark()

    def stop(self) -> None:
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """Work until stopped."""
        with trio.CancelScope() as self._scope:
            while not self._stopped:
                while not self._queue:
                    await self._waiting.park()
                await self._calm()
                key = next(iter(self._queue))
                del self._queue[key]
                await self.compact(*key)

    async def _calm(self) -> None:
        """Return when the mount is idle or the first chunk's list has become urgent."""
        while next(iter(self._queue.values())) < URGENT:
            before = self.requests
            await trio.sleep(CALM_S)
            if self.requests - before < BUSY_REQUESTS:
                return

    async def compact(self, ino: Ino, index: int) -> bool:
        """Compact one chunk if it is worth it; whether it was done."""
        try:
            plan = await self._meta.compaction_candidate(ino, index)
            if plan is None:
                return False
            new_id = await self._meta.new_slice_id()
            return await self._rewrite(plan, new_id)
        except (FsError, StoreError, CorruptRecord) as error:
            log.warning("compaction of inode %d chunk %d failed: %s", ino, index, error)
            return False

    async def _rewrite(self, plan: CompactionPlan, new_id: int) -> bool:
        committed = False
        try:
            await self._copy(plan, new_id)
            async with self._durability:
                dead = await self._meta.commit_compaction(plan, new_id)
            committed = True
        except FsError as error:
            if error.errno != errno.EINVAL:
                committed = True  # perhaps: its blocks are gc's to judge
                raise
            return False  # the chunk has changed meanwhile
        finally:
            if not committed:
                with trio.CancelScope(shield=True):
                    await self._blocks.remove(new_id, plan.size)
        file = self._files.get(plan.ino) if self._files is not None else None
        if file is not None:
            file.forget_records()
        for ref in dead:
            self._meta.deleted.put(ref)
        return True

    async def _copy(self, plan: CompactionPlan, new_id: int) -> None:
        """Put the new slice's blocks."""
        block_size = self._blocks.options.block_size
        for number, start in enumerate(range(plan.pos, plan.pos + plan.size, block_size)):
            end = min(start + block_size, plan.pos + plan.size)
            requests, began = self.requests, trio.current_time()
            data = await self._gather(plan.segments, start, end)
            await self._blocks.put(new_id, number, data, stage=False)
            await trio.sleep(trio.current_time() - began if self.requests != requests else 0)

    async def _gather(self, segments: list[Segment], start: int, end: int) -> bytearray:
        """The bytes of chunk positions [start, end)."""
        block = bytearray(end - start)
        at = bisect_right(segments, start, key=_end)
        for number, segment in enumerate(islice(segments, at, None), 1):
            if segment.pos >= end:
                break
            first, last = max(segment.pos, start), min(segment.pos + segment.length, end)
            if segment.id:
                offset = segment.offset + first - segment.pos
                block[first - start : last - start] = await self._blocks.read(
                    segment.id, segment.size, offset, last - first
                )
            if number % TURN == 0:
                await trio.lowlevel.checkpoint()  # reads that are answered at once give nobody else a turn
        return block


def _end(segment: Segment) -> int:
    return segment.pos + segment.length
