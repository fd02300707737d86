"""Where a slice's bytes are: block names and ranges.  Pure: numbers and names in, names and numbers out.

A slice of `size` bytes is stored as blocks of `block_size`, the last one shorter; a block's name tells its plain size, so a
whole object can be checked against its own name.
"""

from collections.abc import Iterator

import msgspec


class BlockName(msgspec.Struct, frozen=True, gc=False):
    """What a block's key says: the slice, the block's number in it, the block's plain size in bytes."""

    id: int
    index: int
    size: int


def block_key(slice_id: int, index: int, size: int, *, hash_prefix: bool = False) -> str:
    """The object key of block `index` (of `size` plain bytes) of slice `slice_id`, without the volume's name."""
    if hash_prefix:
        return f"chunks/{slice_id % 256:02X}/{slice_id // 1000000}/{slice_id}_{index}_{size}"
    return f"chunks/{slice_id // 1000000}/{slice_id // 1000}/{slice_id}_{index}_{size}"


def block_count(size: int, block_size: int) -> int:
    """How many blocks a slice of `size` bytes has."""
    return -(-size // block_size)


def block_length(size: int, index: int, block_size: int) -> int:
    """The plain size of block `index` of a slice of `size` bytes."""
    return min(block_size, size - index * block_size)


def block_keys(slice_id: int, size: int, block_size: int, *, hash_prefix: bool = False) -> list[str]:
    """The keys of all blocks of a slice."""
    return [
        block_key(slice_id, index, block_length(size, index, block_size), hash_prefix=hash_prefix)
        for index in range(block_count(size, block_size))
    ]


def block_ranges(offset: int, length: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """The parts of [offset, offset+length) of a slice: (block index, offset in the block, length)."""
    end = offset + length
    while offset < end:
        index, inside = divmod(offset, block_size)
        part = min(block_size - inside, end - offset)
        yield index, inside, part
        offset += part


def parse_name(key: str) -> BlockName | None:
    """The block that a key names, by its last component as the peer does; None if it names none."""
    parts = key.rsplit("/", 1)[-1].split("_")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    return BlockName(int(parts[0]), int(parts[1]), int(parts[2]))
