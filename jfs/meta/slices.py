"""What a chunk's records add up to: which slice each byte comes from, and which records a compaction should replace.

Pure: records in, segments out.  A record hides what older ones say about its range; slice id 0 is zeros, whatever its
size and offset say.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

from jfs.meta.types import Slice, SliceRef

Segment = Slice
"""A visible piece: `length` bytes at `pos` in the chunk come from `offset` in slice `id` of `size` bytes; id 0: zeros."""

COMPACT_AT_MOST: Final = 1000
KEEP_FROM: Final = 1 << 20
KEEP_SHARE: Final = 5


class Compaction(NamedTuple):
    """Rewrite `segments` as one slice at `pos`, in place of all chosen records but the first `skipped`."""

    skipped: int
    pos: int
    segments: list[Segment]


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


def compaction_choice(records: Sequence[Slice], limit: int = COMPACT_AT_MOST) -> Compaction | None:
    """Which of the first `limit` records to merge into one slice; None where fewer than two are worth it.

    Leading records that are large, whole and a good part of the rewrite stay as they are: copying them again with every
    compaction would make appending cost the square of the file.  Such a record lies before all that is rewritten: what fills
    the gaps in the new slice would hide it.
    """
    chosen = records[:limit]
    skipped = 0
    while len(chosen) - skipped >= 2:
        rest = chosen[skipped:]
        first = rest[0]
        segments = without_outer_zeros(visible(rest)) or [zeros(each.pos, 1) for each in rest if each.length][:1]
        if not segments:
            return None
        size = segments[-1].pos + segments[-1].length - segments[0].pos
        if first.length < KEEP_FROM or first.length * KEEP_SHARE < size or first != segments[0]:
            return Compaction(skipped, segments[0].pos, segments)
        skipped += 1
    return None


def without_outer_zeros(segments: list[Segment]) -> list[Segment]:
    """What lies between the zeros at both ends; empty where there is nothing but zeros."""
    first, end = 0, len(segments)
    while first < end and segments[first].id == 0:
        first += 1
    while end > first and segments[end - 1].id == 0:
        end -= 1
    return segments[first:end]
