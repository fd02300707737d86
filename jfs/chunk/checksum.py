"""The checksum tail of a cached block: CRC-32C, big-endian, of every 32 KiB of data."""

from typing import Final

import google_crc32c

UNIT: Final = 32 << 10
FOOTER_MAGIC: Final = b"FS"  # of a staged block of a storage tier; it comes last and says nothing about the data


def unit_count(size: int) -> int:
    """How many units a block of `size` bytes has."""
    return -(-size // UNIT)


def tail_of(data: bytes | bytearray) -> bytes:
    """The tail of `data`, which starts at a unit's edge."""
    return b"".join(
        google_crc32c.value(bytes(data[start : start + UNIT])).to_bytes(4, "big") for start in range(0, len(data), UNIT)
    )


def covering(offset: int, length: int, size: int) -> tuple[int, int]:
    """[start, end) of the units that hold a range of a block of `size` bytes."""
    start = offset // UNIT * UNIT
    return start, min(size, -(-(offset + length) // UNIT) * UNIT)


def inside(offset: int, length: int, size: int) -> tuple[int, int]:
    """[start, end) of the units that lie wholly in a range; empty (start >= end) if there are none."""
    end = offset + length
    return -(-offset // UNIT) * UNIT, end if end == size else end // UNIT * UNIT
