"""The checksum tail of a cached block: CRC-32C, big-endian, of every 32 KiB of data."""

import os
from typing import Final

import google_crc32c

UNIT: Final = 32 << 10
FOOTER_MAGIC: Final = b"FS"
FOOTER_HEAD: Final = 4


def unit_count(size: int) -> int:
    """How many units a block of `size` bytes has."""
    return -(-size // UNIT)


def tail_of(data: bytes | bytearray | memoryview) -> bytes:
    """The tail of `data`, which starts at a unit's edge."""
    value = google_crc32c.value
    with memoryview(data) as view:
        return b"".join(
            [value(bytes(view[start : start + UNIT])).to_bytes(4, "big") for start in range(0, len(view), UNIT)]
        )


def tail_size(fd: int, size: int) -> int | None:
    """The bytes of checksums behind a cached block of `size` bytes, perhaps none; None: the file cannot be such a block.

    A block that was staged for a storage tier ends with a footer: magic, length, and what is of no use to a reader.
    """
    extra = os.fstat(fd).st_size - size
    whole = 4 * unit_count(size)
    if extra in (0, whole):
        return extra
    for tail in (whole, 0):
        head = os.pread(fd, FOOTER_HEAD, size + tail) if extra > tail else b""
        if head[:2] == FOOTER_MAGIC and tail + FOOTER_HEAD + int.from_bytes(head[2:], "big") == extra:
            return tail
    return None


def covering(offset: int, length: int, size: int) -> tuple[int, int]:
    """[start, end) of the units that hold a range of a block of `size` bytes."""
    start = offset // UNIT * UNIT
    return start, min(size, -(-(offset + length) // UNIT) * UNIT)


def to_check(level: str, offset: int, length: int, size: int) -> tuple[int, int]:
    """[start, end) of what a read of a range of a block verifies, by the level set; empty for nothing."""
    if level == "extend":
        return covering(offset, length, size)
    if level == "shrink":
        return inside(offset, length, size)
    return (0, size) if level == "full" and offset == 0 and length == size else (0, 0)


def read_part(path: str, size: int, offset: int, length: int, level: str) -> bytes | None:
    """A part of the block of `size` bytes in the file, verified as `level` says; None: the file cannot be right.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        extra = tail_size(fd, size)
        if extra is None:
            return None
        start, end = offset, offset + length
        check_from, check_to = to_check(level, offset, length, size) if extra > 0 else (0, 0)
        if check_from < check_to:
            start, end = min(start, check_from), max(end, check_to)
        data = os.pread(fd, end - start, start)
        if len(data) != end - start:
            return None
        if check_from < check_to:
            tail = os.pread(fd, unit_count(check_to - check_from) * 4, size + check_from // UNIT * 4)
            if tail_of(memoryview(data)[check_from - start : check_to - start]) != tail:
                return None
    finally:
        os.close(fd)
    return data if start == offset and end == offset + length else data[offset - start : offset - start + length]


def inside(offset: int, length: int, size: int) -> tuple[int, int]:
    """[start, end) of the units that lie wholly in a range; empty (start >= end) if there are none."""
    end = offset + length
    return -(-offset // UNIT) * UNIT, end if end == size else end // UNIT * UNIT
