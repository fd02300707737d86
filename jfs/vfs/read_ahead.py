"""Blocks that are fetched before they are asked for, kept in memory until they are read.

Decisions are made at once (`want` starts a fetch or refuses), so that a read is answered without waiting for what is only
ahead of it; fetching goes on in the mount's background, several blocks at a time, which is what hides the latency of a
store.  A block goes when all its bytes were given out and a cache has it too, when its room is wanted for others, or when
nobody has come for it for a while.

Objects on this machine's disks are left to the kernel, which reads them ahead into its own cache.
"""

import logging
from collections import OrderedDict
from typing import Final

import trio

from jfs.chunk.layout import block_length, block_ranges
from jfs.chunk.store import BlockStore
from jfs.chunk.together import fetch_together
from jfs.errors import StoreError
from jfs.object.store import Buffer

log = logging.getLogger(__name__)

UNUSED_S: Final = 5.0
DOWNLOAD_SHARE: Final = 0.75
"""Of `--max-downloads`: the rest is for what is waited for."""
MOST_AT_ONCE: Final = 24
"""Fetches of the whole mount; the queue of a cache folder, which drops what does not fit, takes as many."""


class _Ahead:
    """One block, being fetched or there."""

    __slots__ = ("data", "done", "given", "size", "used_at")

    def __init__(self, size: int) -> None:
        self.size = size
        self.done = trio.Event()
        self.data: Buffer | None = None
        self.given = 0
        """Bytes that were read from it."""
        self.used_at = trio.current_time()


class ReadAhead:
    """One mount's blocks ahead, `budget` bytes of them at most."""

    def __init__(self, blocks: BlockStore, budget: int) -> None:
        self._blocks = blocks
        self._budget = budget
        self._most = max(1, min(MOST_AT_ONCE, int(blocks.options.max_downloads * DOWNLOAD_SHARE)))
        self._kept: OrderedDict[tuple[int, int], _Ahead] = OrderedDict()
        self._fetching = 0
        self.used = 0
        """Bytes that are kept, or will be."""
        self.nursery: trio.Nursery | None = None

    def want(self, slice_id: int, size: int, number: int, fingerprint: bytes = b"") -> bool:
        """See to it that a block of the slice is at hand soon; False: there is no room now, ask again."""
        blocks = self._blocks
        key = slice_id, number
        if key in self._kept or blocks.holds(slice_id, size, number):
            return True
        if blocks.local and not fingerprint:
            blocks.prefetch(slice_id, size, number)
            return True
        length = block_length(size, number, blocks.options.block_size)
        if self.nursery is None or self._fetching >= self._most or not self._make_room(length):
            return False
        ahead = self._kept[key] = _Ahead(length)
        self.used += length
        self._fetching += 1
        self.nursery.start_soon(self._fetch, key, size, ahead, fingerprint)
        return True

    def _make_room(self, length: int) -> bool:
        """Whether there is room; blocks of which every byte was given out make it, the longest unused first."""
        if self.used + length > self._budget:
            self.trim()
            for key, ahead in list(self._kept.items()):
                if self.used + length <= self._budget:
                    break
                if ahead.given >= ahead.size:
                    self._drop(key)
        return self.used + length <= self._budget

    def trim(self) -> None:
        """Drop what was fetched for nothing."""
        before = trio.current_time() - UNUSED_S
        for key, ahead in list(self._kept.items()):
            if ahead.used_at > before:
                break
            if ahead.done.is_set():
                self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        ahead = self._kept.pop(key, None)
        if ahead is not None:
            self.used -= ahead.size

    async def _fetch(self, key: tuple[int, int], size: int, ahead: _Ahead, fingerprint: bytes) -> None:
        slice_id, number = key
        try:
            start = number * self._blocks.options.block_size
            ahead.data = await self._blocks.read(slice_id, size, start, ahead.size, fingerprint)
        except StoreError as error:  # whoever reads the block tries for himself, and is told
            log.debug("reading ahead, block %d of slice %d: %s", number, slice_id, error)
        except Exception:  # what is only ahead of a read must not end the mount
            log.exception("reading ahead, block %d of slice %d", number, slice_id)
        finally:
            self._fetching -= 1
            if ahead.data is None:
                self._drop(key)
            ahead.done.set()

    # -- reading

    def has(self, slice_id: int, offset: int) -> bool:
        """Whether the block of that byte is here or on its way: bytes that are had elsewhere would leave it its room."""
        return bool(self._kept) and (slice_id, offset // self._blocks.options.block_size) in self._kept

    def read_now(self, slice_id: int, size: int, offset: int, length: int, fingerprint: bytes = b"") -> Buffer | None:
        """The range if it is at hand, without waiting; None: use `read`."""
        if self._kept:
            number, inside = divmod(offset, self._blocks.options.block_size)
            ahead = self._kept.get((slice_id, number))
            if ahead is not None:
                if ahead.data is None or inside + length > ahead.size:
                    return None
                return self._part((slice_id, number), ahead, ahead.data, inside, length)
        return self._blocks.read_now(slice_id, size, offset, length, fingerprint)

    def _part(self, key: tuple[int, int], ahead: _Ahead, data: Buffer, inside: int, length: int) -> memoryview:
        ahead.given += length
        ahead.used_at = trio.current_time()
        if self._kept.get(key) is ahead:  # not if another reader had the last of it meanwhile
            if ahead.given >= ahead.size and self._blocks.keeps(ahead.size):
                self._drop(key)
            else:
                self._kept.move_to_end(key)
        return memoryview(data)[inside : inside + length]

    async def read(self, slice_id: int, size: int, offset: int, length: int, fingerprint: bytes = b"") -> Buffer:
        """The bytes [offset, offset+length) of the slice.  Raises StoreError."""
        block_size = self._blocks.options.block_size
        ranges = list(block_ranges(offset, length, block_size)) if self._kept else []
        if not any((slice_id, number) in self._kept for number, _, _ in ranges):
            return await self._blocks.read(slice_id, size, offset, length, fingerprint)
        parts: list[Buffer] = [b""] * len(ranges)

        async def fill(place: int, number: int, inside: int, part: int) -> None:
            parts[place] = await self._read_part(slice_id, size, number, inside, part, fingerprint)

        if len(ranges) == 1:
            await fill(0, *ranges[0])
            return parts[0]
        await fetch_together(fill, ((place, *each) for place, each in enumerate(ranges)))
        return b"".join(parts)

    async def _read_part(
        self, slice_id: int, size: int, number: int, inside: int, length: int, fingerprint: bytes
    ) -> Buffer:
        key = slice_id, number
        ahead = self._kept.get(key)
        if ahead is not None:
            await ahead.done.wait()
            if ahead.data is not None:
                return self._part(key, ahead, ahead.data, inside, length)
        offset = number * self._blocks.options.block_size + inside
        return await self._blocks.read(slice_id, size, offset, length, fingerprint)
