"""One slice being written: bytes in blocks, and which places of the chunk they are for.

A slice begins as one contiguous piece of its chunk.  When several are open already, small writes elsewhere in the chunk do
not begin another: they become further *pieces* of the youngest slice, packed one after the other.  A thousand random writes
of a page are then one object and one commit instead of a thousand.  In the format each piece is a record with its own
offset in the slice, and the slice has as many references as records.

Pure bookkeeping: no I/O, no buffers' contents, no policy of when to seal.
"""

from typing import TYPE_CHECKING, Final

import trio

from jfs.meta.slices import overlay
from jfs.meta.types import CHUNK_SIZE, Slice

if TYPE_CHECKING:
    from jfs.vfs.buffers import Buffer

PAGE_SHIFT: Final = 12
MOST_PIECES: Final = 1000


class Piece:
    """`length` bytes for chunk position `pos`, at `offset` in the slice."""

    __slots__ = ("length", "offset", "pos")

    def __init__(self, pos: int, offset: int, length: int) -> None:
        self.pos = pos
        self.offset = offset
        self.length = length


class DirtySlice:
    """A slice that is not yet committed."""

    __slots__ = (
        "_high",
        "_low",
        "_pages",
        "before",
        "begun",
        "buffers",
        "dated",
        "done",
        "error",
        "fingerprints",
        "gone",
        "id",
        "index",
        "length",
        "lot",
        "mtime_ns",
        "pieces",
        "sealed",
        "started",
        "touched",
        "uploading",
    )

    def __init__(self, index: int, before: "DirtySlice | None", now: float) -> None:
        self.index = index
        self.before = before
        """The slice of this chunk that has to be committed first."""
        self.begun = now
        self.touched = now
        self.length = 0
        """Bytes in the slice."""
        self.pieces: list[Piece] = []
        self._low = CHUNK_SIZE
        self._high = 0
        self._pages: set[int] = set()
        """Pages of the chunk that pieces after the first touch."""
        self.mtime_ns = 0
        """The time that its commit is to give the file."""
        self.dated = False
        """That commit has begun."""
        self.id = 0
        self.buffers: list[Buffer | None] = []
        self.fingerprints: dict[int, bytes] = {}
        """By block, of those that are stored and were to get one."""
        self.started = 0
        """Blocks whose upload has begun."""
        self.uploading = 0
        self.sealed = False
        self.done = False
        self.error = 0
        self.gone = False
        """The file was removed meanwhile: nobody misses the data."""
        self.lot = trio.lowlevel.ParkingLot()
        """Who waits for its uploads or its end."""

    @property
    def low(self) -> int:
        """The first position of the chunk that it covers."""
        return self._low

    @property
    def high(self) -> int:
        """Where in the chunk its last byte ends."""
        return self._high

    @property
    def full(self) -> bool:
        """Nothing that could be written next would fit."""
        pieces = self.pieces
        at_the_end = len(pieces) == 1 and self._high >= CHUNK_SIZE
        return at_the_end or self.length >= CHUNK_SIZE or len(pieces) >= MOST_PIECES

    def may_overlap(self, start: int, end: int) -> bool:
        """Whether [start, end) of the chunk meets the span from its first to its last position."""
        return start < self._high and self._low < end

    def overlaps(self, start: int, end: int) -> bool:
        """Whether bytes for [start, end) of the chunk are in it, to the page."""
        if not self.may_overlap(start, end):
            return False
        first = self.pieces[0]
        if first.pos < end and start < first.pos + first.length:
            return True
        return not self._pages.isdisjoint(_pages(start, end))

    def joins(self, pos: int, block_size: int) -> int | None:
        """The slice offset at which a write to `pos` continues the last piece or rewrites what is still in its buffers."""
        last = self.pieces[-1]
        inside = pos - last.pos
        if not 0 <= inside <= last.length:
            return None
        offset = last.offset + inside
        return offset if self.started * block_size <= offset < CHUNK_SIZE else None

    def wrote(self, pos: int, offset: int, size: int) -> None:
        """Bytes for `pos` were put at `offset`: more of the last piece, or a new one."""
        last = self.pieces[-1] if self.pieces else None
        if last is not None and pos - last.pos == offset - last.offset:
            grown = offset + size - last.offset
            if grown > last.length:
                last.length = grown
        else:
            self.pieces.append(Piece(pos, offset, size))
        if len(self.pieces) > 1:
            self._pages.update(_pages(pos, pos + size))
        if offset + size > self.length:
            self.length = offset + size
        if pos < self._low:
            self._low = pos
        if pos + size > self._high:
            self._high = pos + size

    def fingerprint(self) -> bytes:
        """Of all its blocks; b"" unless each of them got one."""
        marks = [self.fingerprints.get(number, b"") for number in range(len(self.buffers))]
        return b"".join(marks) if all(marks) else b""

    def records(self) -> list[Slice]:
        """What to commit: a record for each piece, without what later pieces hide."""
        records = [Slice(piece.pos, self.id, self.length, piece.offset, piece.length) for piece in self.pieces]
        return records if len(records) == 1 else overlay(records)


def _pages(start: int, end: int) -> range:
    return range(start >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1)
