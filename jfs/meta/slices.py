"""What a chunk's records add up to: which slice each byte comes from, and which records a compaction should replace.

Pure: records in, segments out.  A record hides what older ones say about its range; slice id 0 is zeros, whatever its
size and offset say.
"""

from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from heapq import nlargest
from itertools import pairwise
from operator import itemgetter
from typing import Final, NamedTuple

from jfs.meta.types import Slice, SliceRef

Segment = Slice
"""A visible piece: `length` bytes at `pos` in the chunk come from `offset` in slice `id` of `size` bytes; id 0: zeros."""

COMPACT_AT_MOST: Final = 1000
KEEP_FROM: Final = 1 << 20
KEEP_SHARE: Final = 5

FILL: Final = 128 << 10
"""Fewer zeros than this between two pieces of data cost less, written and read, than one slice more."""
PARTS_AT_MOST: Final = 64
"""Of a chunk, however far apart its data lie."""


class Compaction(NamedTuple):
    """Put `kept` and a new slice for each of `parts` in the place of the chosen records.  No two of them overlap."""

    kept: list[Slice]
    """Records that need no new slice: some of the chosen, or zeros where there is nothing else."""
    parts: list[list[Segment]]
    """Segments without a gap between them, data at both ends."""


def zeros(pos: int, length: int) -> Segment:
    """A piece of nothing but zero bytes."""
    return Slice(pos, 0, length, 0, length)


def part(segment: Segment, start: int, end: int) -> Segment:
    """The bytes of a segment that lie in [start, end) of the chunk, a range inside it."""
    if segment.id == 0:
        return zeros(start, end - start)
    return Slice(start, segment.id, segment.size, segment.offset + start - segment.pos, end - start)


def visible(records: Sequence[Slice]) -> list[Segment]:
    """The chunk from its first byte to the last one that a record covers, without a gap or an overlap.

    Holes are zero segments; what follows the last segment is a hole that is not listed.
    """
    if not records:
        return []
    pieces = list(records) if len(records) == 1 else overlay(records)
    segments: list[Segment] = []
    end = 0
    for piece in pieces:
        if piece.length == 0:
            continue
        if piece.pos > end:
            segments.append(zeros(end, piece.pos - end))
        segments.append(piece if piece.id else zeros(piece.pos, piece.length))
        end = piece.pos + piece.length
    return segments


def referred(pieces: Sequence[Slice]) -> set[SliceRef]:
    """The slices that hold the bytes of these records or segments."""
    return {SliceRef(piece.id, piece.size) for piece in pieces if piece.id}


def overlay(records: Sequence[Slice]) -> list[Segment]:
    """The pieces of records that are not hidden by a later one, by position."""
    pieces: list[Segment] = []
    ends: list[int] = []
    for record in records:
        start, end = record.pos, record.pos + record.length
        if start == end:
            continue
        if not ends or ends[-1] <= start:
            pieces.append(record)
            ends.append(end)
            continue
        first = bisect_left(ends, start + 1)
        last = first
        new: list[Segment] = [record]
        while last < len(pieces) and pieces[last].pos < end:
            last += 1
        if first < last:
            if pieces[first].pos < start:
                new.insert(0, part(pieces[first], pieces[first].pos, start))
            if ends[last - 1] > end:
                new.append(part(pieces[last - 1], end, ends[last - 1]))
        pieces[first:last] = new
        ends[first:last] = [piece.pos + piece.length for piece in new]
    return pieces


def end_of(piece: Slice) -> int:
    """The first byte of the chunk behind a record or segment."""
    return piece.pos + piece.length


def compaction_choice(records: Sequence[Slice], limit: int = COMPACT_AT_MOST) -> Compaction | None:
    """What to put in the place of the first `limit` records; None where it would not be fewer.

    Zeros hide nothing here, so they need no record, but a chunk of zeros alone keeps one: lists are not emptied.
    """
    chosen = records[:limit]
    segments = visible(chosen)
    whole = {record for record in chosen if record.id}
    kept: list[Slice] = []
    parts: list[list[Segment]] = []
    for part in _parts(segments):
        leading, rest = _leading(part, whole)
        kept += leading
        if rest:
            parts.append(rest)
    if segments and not kept and not parts:
        start = min(record.pos for record in chosen if record.length)
        kept.append(Slice(start, 0, 0, 0, end_of(segments[-1]) - start))
    return Compaction(kept, parts) if 0 < len(kept) + len(parts) < len(chosen) else None


def _parts(segments: list[Segment]) -> list[list[Segment]]:
    """Pieces of data with what lies between them, where that is little: a byte at each end of a chunk is not 64 MiB.

    Of a great many gaps the longest are left out.  More parts would be a long list, which every read and write pays for.
    """
    data = [number for number, segment in enumerate(segments) if segment.id]
    if not data:
        return []
    gaps = [(segments[after].pos - end_of(segments[before]), before, after) for before, after in pairwise(data)]
    left_out = nlargest(PARTS_AT_MOST - 1, (gap for gap in gaps if gap[0] >= FILL))
    parts = []
    first = data[0]
    for _, before, after in sorted(left_out, key=itemgetter(1)):
        parts.append(segments[first : before + 1])
        first = after
    return [*parts, segments[first : data[-1] + 1]]


def _leading(part: list[Segment], whole: AbstractSet[Slice]) -> tuple[list[Slice], list[Segment]]:
    """Which records at the beginning of a part stay as they are, and what remains to be rewritten.

    They are whole, and large and a good share of the rewrite: copying them again with every compaction would make appending
    cost the square of the file.  What remains lies behind them: it would hide what it lies around.  A last whole record has
    nothing to be merged with.
    """
    end = end_of(part[-1])
    kept: list[Slice] = []
    for number, segment in enumerate(part):
        if segment.id == 0:
            continue
        large = segment.length >= KEEP_FROM and segment.length * KEEP_SHARE >= end - segment.pos
        if segment not in whole or not (large or end_of(segment) == end):
            return kept, part[number:]
        kept.append(segment)
    return kept, []
