"""The overlay of slice records against painting bytes one at a time, and what compaction chooses."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jfs.meta import slices
from jfs.meta.slices import compaction_choice, part, visible, zeros
from jfs.meta.types import CHUNK_SIZE, Slice

MIB = 1 << 20

RECORDS = st.lists(
    st.builds(
        lambda pos, slice_id, offset, length: Slice(pos, slice_id, offset + length + 3, offset, length),
        st.integers(0, 60),
        st.integers(0, 9),
        st.integers(0, 5),
        st.integers(0, 25),
    ),
    max_size=14,
)


def painted(records: Sequence[Slice]) -> list[tuple[int, int]]:
    """For each byte up to the last covered one: slice and offset in it, (0, 0) for zeros."""
    canvas = [(0, 0)] * max((record.pos + record.length for record in records if record.length), default=0)
    for record in records:
        for n in range(record.length):
            canvas[record.pos + n] = (record.id, record.offset + n) if record.id else (0, 0)
    return canvas


@given(RECORDS)
@settings(max_examples=500)
def test_visible_is_what_painting_shows(records: list[Slice]) -> None:
    sizes = {record: record.size for record in records}
    end = 0
    canvas: list[tuple[int, int]] = []
    for segment in visible(records):
        assert segment.pos == end
        assert segment.length > 0
        end += segment.length
        if segment.id == 0:
            assert (segment.size, segment.offset) == (segment.length, 0)
            canvas += [(0, 0)] * segment.length
        else:
            assert segment.size in sizes.values()
            canvas += [(segment.id, segment.offset + n) for n in range(segment.length)]
    assert canvas == painted(records)


def test_one_record_is_itself_behind_its_gap() -> None:
    record = Slice(100, 7, 500, 20, 50)
    assert visible([record]) == [zeros(0, 100), record]
    assert visible([Slice(0, 7, 500, 20, 50)]) == [Slice(0, 7, 500, 20, 50)]
    assert visible([]) == []


def test_zero_records_ignore_size_and_offset() -> None:
    assert visible([Slice(0, 0, 0, 52578274, 10)]) == [Slice(0, 0, 10, 0, 10)]


def test_a_record_in_the_middle_splits_the_older_one() -> None:
    assert visible([Slice(0, 1, 100, 0, 100), Slice(40, 2, 10, 0, 10)]) == [
        Slice(0, 1, 100, 0, 40),
        Slice(40, 2, 10, 0, 10),
        Slice(50, 1, 100, 50, 50),
    ]


def test_part_keeps_the_place_in_the_slice() -> None:
    assert part(Slice(10, 3, 90, 5, 20), 12, 15) == Slice(12, 3, 90, 7, 3)
    assert part(zeros(10, 20), 12, 15) == zeros(12, 3)


def test_one_record_is_not_worth_compacting() -> None:
    assert compaction_choice([]) is None
    assert compaction_choice([Slice(0, 1, 10, 0, 10)]) is None


def test_small_records_become_one() -> None:
    records = [Slice(50 * n, n + 1, 100, 0, 100) for n in range(6)]
    choice = compaction_choice(records)
    assert choice is not None
    assert (choice.skipped, choice.pos) == (0, 0)
    assert sum(segment.length for segment in choice.segments) == 350


def test_outer_zeros_go_and_inner_ones_stay() -> None:
    records = [Slice(0, 0, 0, 0, 100), Slice(200, 1, 10, 0, 10), Slice(300, 2, 10, 0, 10), Slice(310, 0, 0, 0, 50)]
    choice = compaction_choice(records)
    assert choice is not None
    assert choice.pos == 200
    assert choice.segments == [records[1], zeros(210, 90), records[2]]


def test_only_zeros_become_one_zero_byte() -> None:
    choice = compaction_choice([Slice(0, 1, 10, 0, 10), Slice(0, 0, 0, 0, 10)])
    assert choice == (0, 0, [zeros(0, 1)])


def test_large_whole_leading_records_stay() -> None:
    first = Slice(0, 1, 2 * MIB, 0, 2 * MIB)
    small = [Slice(2 * MIB + n, n + 2, 1, 0, 1) for n in range(4)]
    choice = compaction_choice([first, *small])
    assert choice is not None
    assert (choice.skipped, choice.pos) == (1, 2 * MIB)


def test_a_leading_record_that_is_hidden_in_part_goes() -> None:
    choice = compaction_choice([Slice(0, 1, 2 * MIB, 0, 2 * MIB), Slice(10, 2, 1, 0, 1), Slice(20, 3, 1, 0, 1)])
    assert choice is not None
    assert choice.skipped == 0


def test_a_leading_record_that_is_a_small_part_of_the_whole_goes() -> None:
    choice = compaction_choice([Slice(0, 1, MIB, 0, MIB), Slice(MIB, 2, 10 * MIB, 0, 10 * MIB)])
    assert choice is not None
    assert choice.skipped == 0


def test_two_large_records_are_left_alone() -> None:
    assert compaction_choice([Slice(0, 1, MIB, 0, MIB), Slice(MIB, 2, MIB, 0, MIB)]) is None


def test_a_large_record_amid_the_others_goes() -> None:
    """Left where it is, the new slice would lie over it, with zeros for the gap."""
    records = [Slice(10 * MIB, 1, 5 * MIB, 0, 5 * MIB), Slice(0, 2, 10, 0, 10), Slice(20 * MIB, 3, MIB, 0, MIB)]
    choice = compaction_choice(records)
    assert choice is not None
    assert (choice.skipped, choice.pos) == (0, 0)
    assert records[0] in choice.segments


def test_a_large_record_behind_the_others_goes() -> None:
    records = [Slice(MIB, 1, 5 * MIB, 0, 5 * MIB), Slice(0, 2, 10, 0, 10), Slice(10, 3, 10, 0, 10)]
    choice = compaction_choice(records)
    assert choice is not None
    assert choice.skipped == 0


def test_at_most_limit_records_are_taken() -> None:
    choice = compaction_choice([Slice(n, n + 1, 1, 0, 1) for n in range(20)], limit=5)
    assert choice is not None
    assert len(choice.segments) == 5


@given(RECORDS, st.integers(2, 14), st.sampled_from((1, 8, slices.KEEP_FROM)))
@settings(max_examples=1000)
def test_compaction_changes_no_byte(records: list[Slice], limit: int, keep_from: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "KEEP_FROM", keep_from)  # painting goes byte by byte
        choice = compaction_choice(records, limit)
    if choice is None:
        return
    length = sum(segment.length for segment in choice.segments)
    assert choice.pos + length <= CHUNK_SIZE
    whole = Slice(choice.pos, 99, length, 0, length)
    rest = [*records[: choice.skipped], whole, *records[limit:]]
    before = painted(records)
    content = dict(enumerate(byte for segment in choice.segments for byte in painted([part_at_zero(segment)])))
    after = [content[offset] if slice_id == 99 else (slice_id, offset) for slice_id, offset in painted(rest)]
    size = max(len(before), len(after))
    empty = [(0, 0)] * size
    assert (before + empty)[:size] == (after + empty)[:size]


def part_at_zero(segment: Slice) -> Slice:
    """The same bytes at the chunk's start."""
    return Slice(0, segment.id, segment.size, segment.offset, segment.length)
