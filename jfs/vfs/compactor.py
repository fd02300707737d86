"""Compaction: rewrites chunks of many small slices as one or a few; in the background when there is nothing better to do.

In the background one chunk at a time, the longest list first, block by block; while requests keep coming it waits, unless
the chunk's list of records has grown so long that every write and read pays for it.  Then it works as long as it rests.
A list that grows all the same makes its writer wait.

The new slices' blocks are durable before their records replace the old ones: those may have been acknowledged by an fsync.
"""

import errno
import logging
from bisect import bisect_right
from collections.abc import Mapping
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final

import trio

from jfs.chunk.together import fetch_together
from jfs.errors import CorruptRecord, FsError, ObjectMissing, StoreError
from jfs.meta.files import CompactionPlan
from jfs.meta.slices import Segment, end_of, referred
from jfs.meta.types import Ino, Slice
from jfs.vfs.durability import Durability

if TYPE_CHECKING:
    from jfs.chunk.store import BlockStore
    from jfs.meta.client import MetaClient
    from jfs.vfs.files import OpenFileTable

log = logging.getLogger(__name__)

EVERY: Final = 100
LONG: Final = 350
URGENT: Final = 2500
"""The peer's figures: a write that leaves n records asks for compaction if n%100 is 99 or n exceeds 350; from 2500 on it
waits for it."""

CALM_S: Final = 0.5
BUSY_REQUESTS: Final = 20
"""More reads and writes than this within CALM_S, and compaction waits."""

QUEUE: Final = 10_000
TURN: Final = 16
"""So many segments are read before others get their turn, and so many at once where reads wait for a store."""


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
        self._under_way: dict[tuple[Ino, int], trio.Event] = {}
        self._fruitless: dict[tuple[Ino, int], int] = {}
        """Chunks that stay as they are while they have so many records or segments: pieces far from each other, say.  Each read
        finds them again."""
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
        if self._fruitless.get((ino, index)) != count:
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
                if not self._queue:
                    continue
                key = max(self._queue, key=self._queue.__getitem__)
                await self.compact(*key, count=self._queue.pop(key))

    def _give_up(self, key: tuple[Ino, int], count: int) -> None:
        """There is nothing to do about a chunk of so many records or segments."""
        if len(self._fruitless) >= QUEUE:
            self._fruitless.clear()
        if count:
            self._fruitless[key] = count

    async def _calm(self) -> None:
        """Return when the mount is idle, some chunk's list has become urgent, or a writer has seen to the last of them."""
        while self._queue and max(self._queue.values()) < URGENT:
            before = self.requests
            await trio.sleep(CALM_S)
            if self.requests - before < BUSY_REQUESTS:
                return

    async def relieve(self, ino: Ino, index: int, count: int) -> None:
        """A record was committed; if the chunk has too many by now, return when there are fewer."""
        if count >= URGENT and not self._stopped:
            self._queue.pop((ino, index), None)
            await self.compact(ino, index, eager=True)

    async def compact(self, ino: Ino, index: int, *, eager: bool = False, count: int = 0) -> bool:
        """Compact one chunk if it is worth it; whether it was done.  A failure is logged: the old slices are as good.

        `count`: what a read found in it, 0 where no read has asked.
        """
        try:
            return await self.rewrite(ino, index, eager=eager, count=count)
        except (FsError, StoreError, CorruptRecord, OSError) as error:
            log.warning("compaction of inode %d chunk %d failed: %s", ino, index, error)
            return False

    async def rewrite(self, ino: Ino, index: int, *, eager: bool = True, count: int = 0) -> bool:
        """The same with failures raised: FsError, StoreError, CorruptRecord, OSError.  `eager`: without resting."""
        key = ino, index
        while key in self._under_way:
            await self._under_way[key].wait()
        done = self._under_way[key] = trio.Event()
        try:
            plan = await self._meta.compaction_candidate(ino, index)
            if plan is None:
                self._give_up(key, count)
                return False
            ids = [await self._meta.new_slice_id() for _ in range(plan.ids)]
            return await self._rewrite(plan, ids, eager=eager)
        finally:
            del self._under_way[key]
            done.set()

    async def _rewrite(self, plan: CompactionPlan, ids: list[int], *, eager: bool) -> bool:
        committed = False
        failures = self._durability.failures
        try:
            try:
                fingerprints = [
                    await self._copy(part, new, eager=eager)
                    for part, new in zip(plan.parts, plan.written(ids), strict=True)
                ]
            except ObjectMissing:
                if await self._overtaken(plan):
                    return False
                raise
            await self._durability.sync(failures)
            async with self._durability:
                committed = True  # perhaps, until the answer is there: without it the blocks are gc's to judge
                try:
                    # Cut off by the end of the mount, it would leave blocks behind of which nobody knows whose they are.
                    with trio.CancelScope(shield=True):
                        dead = await self._meta.commit_compaction(plan, ids, fingerprints)
                except FsError as error:
                    committed = error.errno != errno.EINVAL
                    if committed:
                        raise
                    return False  # the chunk has changed meanwhile
        finally:
            if not committed:
                with trio.CancelScope(shield=True):
                    for new in plan.written(ids):
                        await self._blocks.remove(new.id, new.size)
        file = self._files.get(plan.ino) if self._files is not None else None
        if file is not None:
            file.forget_records()
        for ref in dead:
            self._meta.deleted.put(ref)
        return True

    async def _overtaken(self, plan: CompactionPlan) -> bool:
        """Whether another client has changed the chunk since the plan was made, or removed the file."""
        try:
            records = await self._meta.read_chunk(plan.ino, plan.index)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise
            return True
        return records[: len(plan.records)] != plan.records

    async def _copy(self, segments: list[Segment], new: Slice, *, eager: bool) -> bytes:
        """Put a new slice's blocks; its fingerprint, if the volume keeps some."""
        block_size = self._blocks.options.block_size
        mark = self._meta.fingerprinting
        known = await self._meta.fingerprints(referred(segments))
        fingerprint = b""
        for number, start in enumerate(range(new.pos, end_of(new), block_size)):
            end = min(start + block_size, end_of(new))
            requests, began = self.requests, trio.current_time()
            data = await self._gather(segments, start, end, known)
            fingerprint += await self._blocks.put(new.id, number, data, stage=False, mark=mark)
            busy = not eager and self.requests != requests
            await trio.sleep(trio.current_time() - began if busy else 0)
        return fingerprint

    async def _gather(
        self, segments: list[Segment], start: int, end: int, fingerprints: Mapping[int, bytes]
    ) -> bytearray:
        """The bytes of chunk positions [start, end), checked: a new fingerprint must not bless bad bytes."""
        block = bytearray(end - start)
        at = bisect_right(segments, start, key=end_of)
        wanted = list(takewhile(lambda segment: segment.pos < end, islice(segments, at, None)))
        for first in range(0, len(wanted), TURN):
            await self._fill(block, start, wanted[first : first + TURN], fingerprints)
            await trio.lowlevel.checkpoint()  # reads that are answered at once give nobody else a turn
        return block

    async def _fill(
        self, block: bytearray, start: int, segments: list[Segment], fingerprints: Mapping[int, bytes]
    ) -> None:
        """Copy what segments say about a block that begins at `start`, together where they have to be waited for."""

        async def fetch(first: int, last: int, segment: Segment, offset: int) -> None:
            mark = fingerprints.get(segment.id, b"")
            block[first:last] = await self._blocks.read(segment.id, segment.size, offset, last - first, mark)

        waiting: list[tuple[int, int, Segment, int]] = []
        for segment in segments:
            first = max(segment.pos - start, 0)
            last = min(end_of(segment) - start, len(block))
            if not segment.id:
                continue
            offset = segment.offset + start + first - segment.pos
            mark = fingerprints.get(segment.id, b"")
            data = self._blocks.read_now(segment.id, segment.size, offset, last - first, mark)
            if data is None:
                waiting.append((first, last, segment, offset))
            else:
                block[first:last] = data
        await fetch_together(fetch, waiting)
