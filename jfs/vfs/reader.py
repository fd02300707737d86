"""From read(2) to blocks: which slice holds each byte of the range, and the bytes, in as few steps as possible.

What a chunk's records add up to is kept per open file, for a second at most, and dropped when this mount changes the chunk
or sees that others changed the file.  The usual read lies in one segment whose bytes are in memory: it is answered without
waiting.  Holes are zeros and cost nothing.
"""

import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from jfs.chunk.file_range import FileRange
from jfs.chunk.together import fetch_together
from jfs.errors import CorruptRecord, FsError, ObjectMissing
from jfs.meta.slices import Segment, referred, visible
from jfs.meta.types import CHUNK_SIZE, Ino, Slice
from jfs.vfs.read_ahead import ReadAhead
from jfs.vfs.streams import Stream, Streams
from jfs.vfs.upload_wait import GivenUp, UploadWait

if TYPE_CHECKING:
    from jfs.chunk.store import BlockStore
    from jfs.meta.client import MetaClient
    from jfs.vfs.files import OpenFile
    from jfs.vfs.handles import Handle

log = logging.getLogger(__name__)

RECORDS_TTL_S: Final = 1.0
COMPACT_FROM: Final = 5
"""Records or segments from which a chunk is worth compacting (the peer's figure)."""

TRIES: Final = 3
"""Another client may compact the chunk and delete the old blocks between our look at the records and the read."""

LEND_FROM: Final = 32 << 10
"""What is shorter is copied in less time than it takes to hand it on."""

Bytes = bytes | bytearray | memoryview
Data = Bytes | FileRange


class ChunkMap:
    """A chunk's visible segments, where each begins, and the fingerprints of their slices."""

    __slots__ = ("expires", "fingerprints", "records", "segments", "starts")

    def __init__(self, records: list[Slice], expires: float) -> None:
        self.records = records
        self.segments = visible(records)
        self.starts = [segment.pos for segment in self.segments]
        self.fingerprints: dict[int, bytes] = {}
        self.expires = expires


class Reader:
    """Reads for all files of one mount."""

    def __init__(self, meta: "MetaClient", blocks: "BlockStore", max_readahead: int, budget: int) -> None:
        """Bytes: `max_readahead` for each handle's stream, `budget` for all together."""
        self._meta = meta
        self._blocks = blocks
        self._max_readahead = max_readahead
        self.ahead = ReadAhead(blocks, budget)
        self._given_up = GivenUp()
        self.lend_most = 0
        """The longest read that may be answered with a range of a local file instead of bytes; 0: none may."""
        self.records_ttl_s = RECORDS_TTL_S
        self.confirm: Callable[[OpenFile], Awaitable[None]] | None = None
        """Where a file's attributes may be older than the records that were just loaded: asks for them."""
        self.on_records: Callable[[Ino, int, int], None] = _ignore
        """(inode, chunk, records or segments in it), when there are many."""

    async def read(self, file: "OpenFile", handle: "Handle", offset: int, size: int) -> Data:
        """The bytes of [offset, offset+size), fewer at the end of the file.  Raises StoreError, CorruptRecord, FsError.

        A range of a local file only up to `lend_most`, and to be used before anything else is awaited.
        """
        # The range is settled before the flush: what is written while it waits would be read as zeros.
        size = min(size, file.length - offset)
        if size <= 0:
            return b""
        if file.writer.dirty and file.writer.overlaps(offset, size):
            await file.writer.flush()
            size = min(size, file.length - offset)  # less where data was lost or cut off meanwhile
            if size <= 0:
                return b""
        index, pos = divmod(offset, CHUNK_SIZE)
        if pos + size <= CHUNK_SIZE:
            data: Data = await self._read_chunk(file, index, pos, size, self.lend_most)
        else:
            parts: list[Any] = []
            end = offset + size
            while offset < end:
                index, pos = divmod(offset, CHUNK_SIZE)
                part = min(CHUNK_SIZE - pos, end - offset)
                parts.append(await self._read_chunk(file, index, pos, part, 0))
                offset += part
            data = b"".join(parts)
            offset = end - size
        self._look_ahead(file, handle, offset, offset + size)
        return data

    async def _read_chunk(self, file: "OpenFile", index: int, pos: int, size: int, lend_most: int) -> Data:
        tries = TRIES
        wait: UploadWait | None = None
        while True:
            chunk = file.records.get(index)
            if chunk is None or trio.current_time() >= chunk.expires:
                chunk = await self._load(file, index)
            try:
                return await self._read_map(chunk, pos, size, lend_most)
            except ObjectMissing as error:
                tries -= 1
                known = chunk.segments
                file.records.pop(index, None)
                chunk = await self._load(file, index)
                if tries and chunk.segments != known:
                    continue
                wait = wait or UploadWait(self._meta, self._given_up)
                if not await wait.again(error):
                    log.error("inode %d: %s", file.ino, error)
                    raise

    async def _load(self, file: "OpenFile", index: int) -> ChunkMap:
        """What the chunk's records say now; kept unless the file has changed meanwhile."""
        version = file.version
        known: ChunkMap | None = file.records.get(index)
        records = await self._meta.read_chunk(file.ino, index)
        if self.confirm is not None:
            await self.confirm(file)
        expires = trio.current_time() + self.records_ttl_s
        if known is not None and known.records == records:
            known.expires = expires
            return known
        chunk = ChunkMap(records, expires)
        if self._meta.fingerprinting:
            chunk.fingerprints = await self._fingerprints(chunk, known)
        if file.version == version:
            file.records[index] = chunk
        count = max(len(records), len(chunk.segments))
        if count >= COMPACT_FROM:
            self.on_records(file.ino, index, count)
        return chunk

    async def _fingerprints(self, chunk: ChunkMap, known: ChunkMap | None) -> dict[int, bytes]:
        """Of the chunk's slices; those that were there before are not asked for again."""
        wanted = referred(chunk.segments)
        if known is None:
            return await self._meta.fingerprints(wanted)
        fresh = wanted - referred(known.segments)
        return known.fingerprints | await self._meta.fingerprints(fresh)

    async def _read_map(self, chunk: ChunkMap, pos: int, size: int, lend_most: int) -> Data:
        segments = chunk.segments
        at = bisect_right(chunk.starts, pos) - 1
        if at < 0:
            return bytes(size)
        segment = segments[at]
        if pos + size <= segment.pos + segment.length:
            if segment.id == 0:
                return bytes(size)
            start = segment.offset + pos - segment.pos
            mark = chunk.fingerprints.get(segment.id, b"")
            if LEND_FROM <= size <= lend_most and not mark and not self.ahead.has(segment.id, start):
                lent = await self._lend(segment, start, size)
                if lent is not None:
                    return lent
            data = self.ahead.read_now(segment.id, segment.size, start, size, mark)
            if data is None:
                return await self.ahead.read(segment.id, segment.size, start, size, mark)
            return data
        return await self._join(segments[at:], pos, size, chunk.fingerprints)

    async def _lend(self, segment: Segment, start: int, size: int) -> FileRange | None:
        """The range as it lies in a local file, in memory by then; None: there is no such file."""
        blocks = self._blocks
        lent = blocks.lend(segment.id, segment.size, start, size)
        if lent is None and blocks.brings_in and start % blocks.options.block_size + size <= blocks.options.block_size:
            await blocks.bring_in(segment.id, segment.size, start, size)
            lent = blocks.lend(segment.id, segment.size, start, size)
        return lent

    async def _join(self, segments: Sequence[Segment], pos: int, size: int, fingerprints: Mapping[int, bytes]) -> bytes:
        """A range of several segments; what is not in memory is fetched together."""
        parts: list[Bytes] = []
        missing: list[tuple[int, Segment, int, int]] = []
        end = pos + size
        for segment in segments:
            if pos >= end or segment.pos >= end:
                break
            part = min(segment.pos + segment.length, end) - pos
            if part <= 0:
                continue
            if segment.id == 0:
                parts.append(bytes(part))
            else:
                start = segment.offset + pos - segment.pos
                mark = fingerprints.get(segment.id, b"")
                data = self.ahead.read_now(segment.id, segment.size, start, part, mark)
                if data is None:
                    missing.append((len(parts), segment, start, part))
                parts.append(data or b"")
            pos += part
        if pos < end:
            parts.append(bytes(end - pos))
        await self._fetch(parts, missing, fingerprints)
        return b"".join(parts)

    async def _fetch(
        self,
        parts: list[Bytes],
        missing: list[tuple[int, Segment, int, int]],
        fingerprints: Mapping[int, bytes],
    ) -> None:
        async def fill(place: int, segment: Segment, start: int, part: int) -> None:
            mark = fingerprints.get(segment.id, b"")
            parts[place] = await self.ahead.read(segment.id, segment.size, start, part, mark)

        if len(missing) == 1:
            await fill(*missing[0])
        elif missing:
            await fetch_together(fill, missing)

    def _look_ahead(self, file: "OpenFile", handle: "Handle", offset: int, end: int) -> None:
        """A handle that reads on and on gets the next blocks before it asks."""
        state = handle.read_state
        if state is None:
            state = handle.read_state = Streams()
        stream = state.read(offset, end)
        until = min(stream.end + stream.window(self._max_readahead), file.length)
        stream.ahead = max(stream.ahead, stream.end)
        while stream.ahead < until and not stream.loading:
            went = self._want(file, stream)
            if went == stream.ahead:
                return
            stream.ahead = went

    def _want(self, file: "OpenFile", stream: Stream) -> int:
        """Ask for the block that holds the place up to which `stream` has asked; where the next one begins."""
        block_size = self._blocks.options.block_size
        index, pos = divmod(stream.ahead, CHUNK_SIZE)
        chunk: ChunkMap | None = file.records.get(index)
        if chunk is None:
            self._load_ahead(file, stream, index)
            return stream.ahead
        at = bisect_right(chunk.starts, pos) - 1
        segment = chunk.segments[at] if at >= 0 else None
        if segment is None or pos >= segment.pos + segment.length:
            return (index + 1) * CHUNK_SIZE
        end = segment.pos + segment.length
        if segment.id:
            number, inside = divmod(segment.offset + pos - segment.pos, block_size)
            mark = chunk.fingerprints.get(segment.id, b"")
            if not self.ahead.want(segment.id, segment.size, number, mark):
                return stream.ahead
            end = min(end, pos + block_size - inside)
        return index * CHUNK_SIZE + end

    def _load_ahead(self, file: "OpenFile", stream: Stream, index: int) -> None:
        """Have the next chunk's records looked up; the read that is being answered does not wait for them."""

        async def load() -> None:
            try:
                await self._load(file, index)
            except (FsError, CorruptRecord) as error:  # whoever reads the chunk is told
                log.debug("reading ahead, inode %d chunk %d: %s", file.ino, index, error)
            except Exception:  # what is only ahead of a read must not end the mount
                log.exception("reading ahead, inode %d chunk %d", file.ino, index)
            finally:
                stream.loading = False

        if self.ahead.nursery is not None:
            stream.loading = True
            self.ahead.nursery.start_soon(load)


def _ignore(ino: Ino, index: int, records: int) -> None:
    """Nobody compacts."""
