"""Block names and ranges, checked against names that the peer gave and against counting bytes one at a time."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jfs.chunk.layout import BlockName, block_count, block_key, block_keys, block_length, block_ranges, parse_name

GOLDEN = Path(__file__).parent.parent / "golden"


def test_names_of_real_objects() -> None:
    seen = 0
    for volume in json.loads((GOLDEN / "objects.json").read_text())["volumes"]:
        hashed = bool(volume["setting"].get("HashPrefix"))
        for each in volume["objects"]:
            name = parse_name(each["name"])
            if name is None:
                assert each["name"] == "juicefs_uuid"
                continue
            seen += 1
            assert block_key(name.id, name.index, name.size, hash_prefix=hashed) == each["name"]
            assert name.size == each["plain_len"]
    assert seen == 24


def test_names() -> None:
    assert block_key(12345678, 3, 100) == "chunks/12/12345/12345678_3_100"
    assert block_key(12345678, 3, 100, hash_prefix=True) == "chunks/4E/12/12345678_3_100"
    assert block_key(1, 0, 6, hash_prefix=True) == "chunks/01/0/1_0_6"


def test_what_is_not_a_name() -> None:
    for key in ["", "chunks/", "chunks/0/0/1_0", "1_0_1_1", "a_0_1", "1_-1_1", "1__1", "chunks/0/0/1_0_1.tmp", "²_0_1"]:
        assert parse_name(key) is None, key
    assert parse_name("chunks/0/0/1_2_3") == BlockName(1, 2, 3)


def test_blocks_of_a_slice() -> None:
    assert block_keys(7, 0, 4096) == []
    assert block_keys(7, 4096, 4096) == ["chunks/0/0/7_0_4096"]
    assert block_keys(7, 4097, 4096) == ["chunks/0/0/7_0_4096", "chunks/0/0/7_1_1"]
    assert block_count(1, 4096) == 1


@given(st.integers(0, 2**63), st.integers(0, 2**20), st.integers(1, 2**24), st.booleans())
def test_a_name_parses_back(slice_id: int, index: int, size: int, hashed: bool) -> None:
    assert parse_name(block_key(slice_id, index, size, hash_prefix=hashed)) == BlockName(slice_id, index, size)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 17))
def test_ranges_cover_each_byte_once(offset: int, length: int, block_size: int) -> None:
    covered = [
        index * block_size + inside + step
        for index, inside, part in block_ranges(offset, length, block_size)
        for step in range(part)
        if inside + part <= block_size
    ]
    assert covered == list(range(offset, offset + length))


@given(st.integers(1, 100), st.integers(1, 17))
def test_block_lengths_add_up(size: int, block_size: int) -> None:
    lengths = [block_length(size, index, block_size) for index in range(block_count(size, block_size))]
    assert sum(lengths) == size
    assert all(0 < length <= block_size for length in lengths)
