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
    return b"".join(
        google_crc32c.value(bytes(data[start : start + UNIT])).to_bytes(4, "big") for start in range(0, len(data), UNIT)
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


def inside(offset: int, length: int, size: int) -> tuple[int, int]:
    """[start, end) of the units that lie wholly in a range; empty (start >= end) if there are none."""
    end = offset + length
    return -(-offset // UNIT) * UNIT, end if end == size else end // UNIT * UNIT
