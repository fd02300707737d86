"""Packing of scattered writes into one slice."""

from hypothesis import given
from hypothesis import strategies as st

from jfs.meta.types import CHUNK_SIZE, Slice
from jfs.vfs.dirty_slice import MOST_PIECES, DirtySlice

BLOCK = 1 << 16


def test_a_contiguous_slice_is_one_record() -> None:
    piece = DirtySlice(0, None, 0.0)
    piece.wrote(100, 0, 50)
    piece.wrote(150, 50, 50)
    piece.wrote(120, 20, 10)
    piece.id = 7
    assert piece.records() == [Slice(100, 7, 100, 0, 100)]
    assert (piece.low, piece.high) == (100, 200)


def test_what_joins_the_last_piece() -> None:
    piece = DirtySlice(0, None, 0.0)
    piece.wrote(1000, 0, 100)
    assert piece.joins(999, BLOCK) is None
    assert piece.joins(1000, BLOCK) == 0
    assert piece.joins(1100, BLOCK) == 100
    assert piece.joins(1101, BLOCK) is None
    piece.wrote(5000, 100, 10)
    assert piece.joins(1100, BLOCK) is None
    assert piece.joins(5005, BLOCK) == 105


def test_blocks_on_their_way_are_not_written_again() -> None:
    piece = DirtySlice(0, None, 0.0)
    piece.wrote(0, 0, BLOCK + 10)
    piece.started = 1
    assert piece.joins(BLOCK - 1, BLOCK) is None
    assert piece.joins(BLOCK, BLOCK) == BLOCK


def test_later_pieces_hide_earlier_ones() -> None:
    piece = DirtySlice(0, None, 0.0)
    piece.id = 9
    piece.wrote(0, 0, 10)
    piece.wrote(100, 10, 10)
    piece.wrote(2, 20, 4)
    piece.wrote(100, 24, 10)
    assert piece.records() == [
        Slice(0, 9, 34, 0, 2),
        Slice(2, 9, 34, 20, 4),
        Slice(6, 9, 34, 6, 4),
        Slice(100, 9, 34, 24, 10),
    ]


def test_overlap_is_known_to_the_page() -> None:
    piece = DirtySlice(0, None, 0.0)
    piece.wrote(0, 0, 4096)
    piece.wrote(1 << 20, 4096, 4096)
    assert piece.overlaps(4000, 5000)
    assert not piece.overlaps(8192, 12288)
    assert piece.overlaps((1 << 20) + 4095, (1 << 20) + 9000)
    assert not piece.overlaps((1 << 20) + 4096, (1 << 20) + 9000)


def test_when_a_slice_is_full() -> None:
    at_the_end = DirtySlice(0, None, 0.0)
    at_the_end.wrote(CHUNK_SIZE - 10, 0, 10)
    assert at_the_end.full
    scattered = DirtySlice(0, None, 0.0)
    for i in range(MOST_PIECES):
        assert not scattered.full
        scattered.wrote(i * 8192, i, 1)
    assert scattered.full


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=40))
def test_records_read_back_what_was_written(writes: list[tuple[int, int]]) -> None:
    piece = DirtySlice(0, None, 0.0)
    piece.id = 1
    chunk, stored = bytearray(400), bytearray(8000)
    touched = [False] * 400
    for number, (pos, size) in enumerate(writes):
        data = bytes([number + 1]) * size
        offset = piece.joins(pos, BLOCK) if piece.pieces else 0
        offset = piece.length if offset is None else offset
        stored[offset : offset + size] = data
        piece.wrote(pos, offset, size)
        chunk[pos : pos + size] = data
        touched[pos : pos + size] = [True] * size
    seen = bytearray(400)
    for record in piece.records():
        seen[record.pos : record.pos + record.length] = stored[record.offset : record.offset + record.length]
        assert record.size == piece.length
    assert seen == chunk
    for pos in range(400):
        assert not touched[pos] or piece.overlaps(pos, pos + 1)
