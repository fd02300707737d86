"""Codecs on what the peer stored, round trips, and damaged input."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.chunk.codec import open_codec
from jfs.errors import BadObject, UserError

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ["none", "lz4", "zstd"]

FILES = {
    "text": b"".join(b"line %06d of the golden file\n" % number for number in range(3000)),
    "tiny": b"hello",
    "zero": bytes(70000),
    "rand": b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(100)),
}


def golden_blocks() -> list[tuple[str, str, bytes, bytes]]:
    """(compression, name, stored, plain) of every block that the golden files hold in full."""
    found = []
    for volume in json.loads((GOLDEN / "objects.json").read_text())["volumes"]:
        block_size = volume["setting"]["BlockSize"] << 10
        for each in volume["objects"]:
            if "hex" in each and each.get("file") in FILES:
                start = each["block"] * block_size
                plain = FILES[each["file"]][start : start + each["plain_len"]]
                found.append((volume["setting"]["Compression"], each["name"], bytes.fromhex(each["hex"]), plain))
    return found


def test_blocks_that_the_peer_stored() -> None:
    blocks = golden_blocks()
    assert blocks
    for compression, name, stored, plain in blocks:
        assert open_codec(compression).decode(stored, len(plain)) == plain, name


@pytest.mark.parametrize("name", NAMES)
@given(data=st.one_of(st.binary(min_size=1, max_size=3000), st.binary(min_size=1, max_size=9).map(lambda b: b * 1000)))
def test_round_trip(name: str, data: bytes) -> None:
    codec = open_codec(name)
    for form in (data, bytearray(data), memoryview(bytearray(data))):
        assert codec.decode(bytes(codec.encode(form)), len(data)) == data


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=300), size=st.integers(1, 1000))
def test_noise_never_gives_a_wrong_length(name: str, data: bytes, size: int) -> None:
    try:
        plain = open_codec(name).decode(data, size)
    except BadObject:
        return
    assert len(plain) == size


@pytest.mark.parametrize("name", NAMES)
def test_a_block_of_another_size_is_bad(name: str) -> None:
    codec = open_codec(name)
    stored = bytes(codec.encode(b"x" * 1000))
    for size in (999, 1001):
        with pytest.raises(BadObject):
            codec.decode(stored, size)


def test_zstd_frames_as_the_format_says() -> None:
    import zstandard

    stored = bytes(open_codec("zstd").encode(b"abc" * 1000))
    frame = zstandard.get_frame_parameters(stored)
    assert (frame.content_size, frame.has_checksum, frame.dict_id) == (3000, False, 0)
    no_size = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(b"abc" * 1000)
    assert open_codec("zstd").decode(no_size, 3000) == b"abc" * 1000


def test_incompressible_blocks_are_compressed_all_the_same() -> None:
    noise = FILES["rand"]
    assert len(open_codec("lz4").encode(noise)) > len(noise)


def test_unknown_compression() -> None:
    with pytest.raises(UserError, match="brotli"):
        open_codec("brotli")
    assert open_codec("").plain
