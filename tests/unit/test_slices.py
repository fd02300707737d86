"""The overlay of slice records against painting bytes one at a time, and what compaction chooses."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jfs.meta import slices
from jfs.meta.slices import Compaction, compaction_choice, end_of, part, visible, zeros
from jfs.meta.types import Slice

KIB = 1 << 10
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


def length_of(part: list[Slice]) -> int:
    return sum(segment.length for segment in part)


def the_part(choice: Compaction | None) -> list[Slice]:
    """What a compaction rewrites, where that is one slice."""
    assert choice is not None
    (part,) = choice.parts
    return part


def test_small_records_become_one() -> None:
    records = [Slice(50 * n, n + 1, 100, 0, 100) for n in range(6)]
    choice = compaction_choice(records)
    part = the_part(choice)
    assert (part[0].pos, length_of(part)) == (0, 350)
    assert choice is not None
    assert choice.kept == []


def test_outer_zeros_go_and_inner_ones_stay() -> None:
    records = [Slice(0, 0, 0, 0, 100), Slice(200, 1, 10, 0, 10), Slice(300, 2, 10, 0, 10), Slice(310, 0, 0, 0, 50)]
    assert the_part(compaction_choice(records)) == [records[1], zeros(210, 90), records[2]]


def test_only_zeros_become_one_record_of_zeros() -> None:
    records = [Slice(20, 1, 10, 0, 10), Slice(20, 0, 0, 0, 10), Slice(5, 0, 0, 0, 3)]
    assert compaction_choice(records) == ([Slice(5, 0, 0, 0, 25)], [])


def test_one_record_of_zeros_is_left_alone() -> None:
    assert compaction_choice([Slice(5, 0, 0, 0, 25)]) is None


def test_zeros_around_a_whole_record_go_without_a_rewrite() -> None:
    record = Slice(MIB, 1, 100, 0, 100)
    assert compaction_choice([Slice(0, 0, 0, 0, 30 * MIB), record]) == ([record], [])
    assert compaction_choice([record, Slice(MIB + 100, 0, 0, 0, MIB)]) == ([record], [])


def test_long_runs_of_zeros_are_not_written() -> None:
    """They would be all but 300 bytes of the new slice."""
    near = [Slice(0, 1, 100, 0, 100), Slice(50, 2, 100, 0, 100)]
    far = Slice(60 * MIB, 3, 100, 0, 100)
    choice = compaction_choice([*near, far])
    assert length_of(the_part(choice)) == 150
    assert choice is not None
    assert choice.kept == [far]


def test_records_far_from_each_other_stay() -> None:
    assert compaction_choice([Slice(n * MIB, n + 1, 100, 0, 100) for n in range(20)]) is None


@pytest.mark.parametrize(("gap", "parts"), [(slices.FILL - 1, 1), (slices.FILL, 2)])
def test_how_many_zeros_are_written_rather_than_one_slice_more(gap: int, parts: int) -> None:
    second = 100 + gap
    records = [
        Slice(0, 1, 90, 0, 90),
        Slice(50, 2, 50, 0, 50),
        Slice(second, 3, 9, 0, 9),
        Slice(second + 9, 4, 9, 0, 9),
    ]
    choice = compaction_choice(records)
    assert choice is not None
    assert (choice.kept, len(choice.parts)) == ([], parts)


def test_a_long_list_becomes_short_though_its_data_lie_far_apart() -> None:
    records = [Slice(n * 150 * KIB + n % 2 * KIB, n + 1, 100, 0, 100) for n in range(300)]
    choice = compaction_choice(records)
    assert choice is not None
    assert len(choice.kept) + len(choice.parts) == slices.PARTS_AT_MOST
    places = sorted([*choice.parts, *([record] for record in choice.kept)], key=lambda place: place[0].pos)
    gaps = [b[0].pos - end_of(a[-1]) for a, b in pairwise(places)]
    assert min(gaps) == 151 * KIB - 100, "the shorter ones were filled"


def test_large_whole_leading_records_stay() -> None:
    first = Slice(0, 1, 2 * MIB, 0, 2 * MIB)
    small = [Slice(2 * MIB + n, n + 2, 1, 0, 1) for n in range(4)]
    choice = compaction_choice([first, *small])
    assert choice == ([first], [small])


def test_a_gap_behind_a_record_that_stays_is_not_written() -> None:
    first = Slice(0, 1, 2 * MIB, 0, 2 * MIB)
    small = [Slice(2 * MIB + 10 + n, n + 2, 1, 0, 1) for n in range(4)]
    assert compaction_choice([first, *small]) == ([first], [small])


def test_a_large_record_stays_though_others_are_older() -> None:
    large = Slice(0, 1, 2 * MIB, 0, 2 * MIB)
    small = [Slice(2 * MIB + n, n + 2, 1, 0, 1) for n in range(4)]
    assert compaction_choice([*small, large]) == ([large], [small])


def test_a_leading_record_that_is_hidden_in_part_goes() -> None:
    choice = compaction_choice([Slice(0, 1, 2 * MIB, 0, 2 * MIB), Slice(10, 2, 1, 0, 1), Slice(20, 3, 1, 0, 1)])
    assert length_of(the_part(choice)) == 2 * MIB
    assert choice is not None
    assert choice.kept == []


def test_a_leading_record_that_is_a_small_part_of_the_whole_goes() -> None:
    choice = compaction_choice([Slice(0, 1, MIB, 0, MIB), Slice(MIB, 2, 10 * MIB, 0, 10 * MIB)])
    assert length_of(the_part(choice)) == 11 * MIB


def test_two_large_records_are_left_alone() -> None:
    assert compaction_choice([Slice(0, 1, MIB, 0, MIB), Slice(MIB, 2, MIB, 0, MIB)]) is None


def test_a_record_that_is_there_twice_stays_once() -> None:
    record = Slice(0, 1, 100, 0, 100)
    assert compaction_choice([record, record]) == ([record], [])


def test_a_large_record_amid_the_others_goes() -> None:
    """Left where it is, the new slice would lie over it, with zeros for the gap."""
    records = [
        Slice(10 * KIB, 1, 5 * MIB, 0, 5 * MIB),
        Slice(0, 2, 10, 0, 10),
        Slice(5 * MIB + 20 * KIB, 3, MIB, 0, MIB),
    ]
    choice = compaction_choice(records)
    assert records[0] in the_part(choice)
    assert choice is not None
    assert choice.kept == []


def test_a_large_record_behind_the_others_goes() -> None:
    records = [Slice(KIB, 1, 5 * MIB, 0, 5 * MIB), Slice(0, 2, 10, 0, 10), Slice(10, 3, 10, 0, 10)]
    assert records[0] in the_part(compaction_choice(records))


def test_at_most_limit_records_are_taken() -> None:
    choice = compaction_choice([Slice(n, n + 1, 1, 0, 1) for n in range(20)], limit=5)
    assert len(the_part(choice)) == 5


@given(
    RECORDS,
    st.integers(2, 14),
    st.sampled_from((1, 8, slices.KEEP_FROM)),
    st.integers(1, 20),
    st.sampled_from((1, 2, 64)),
)
@settings(max_examples=2000)
def test_compaction_changes_no_byte(records: list[Slice], limit: int, keep_from: int, fill: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:  # painting goes byte by byte
        patch.setattr(slices, "KEEP_FROM", keep_from)
        patch.setattr(slices, "FILL", fill)
        patch.setattr(slices, "PARTS_AT_MOST", most)
        choice = compaction_choice(records, limit)
    if choice is None:
        return
    content = {}
    written = []
    for number, segments in enumerate(choice.parts, 99):
        assert segments[0].id
        assert segments[-1].id
        length = length_of(segments)
        assert end_of(segments[-1]) - segments[0].pos == length
        written.append(Slice(segments[0].pos, number, length, 0, length))
        offset_and_byte = enumerate(byte for segment in segments for byte in painted([part_at_zero(segment)]))
        content.update({(number, offset): byte for offset, byte in offset_and_byte})
    merged = [*choice.kept, *written]
    assert 0 < len(merged) < len(records[:limit])
    places = sorted(merged, key=lambda record: record.pos)
    assert all(end_of(a) <= b.pos for a, b in pairwise(places)), "their order must not matter"
    before = painted(records)
    after = [content.get(place, place) for place in painted([*merged, *records[limit:]])]
    size = max(len(before), len(after))
    empty = [(0, 0)] * size
    assert (before + empty)[:size] == (after + empty)[:size]


def part_at_zero(segment: Slice) -> Slice:
    """The same bytes at the chunk's start."""
    return Slice(0, segment.id, segment.size, segment.offset, segment.length)
