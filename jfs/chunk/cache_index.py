"""Which blocks a cache folder holds, and when each was used last: some 130 bytes a block, so that a million fit.

A block is one integer that holds the three numbers of its name; its path follows from them.  The dictionary from that to a
time in seconds is all there is.
"""

import functools
import threading
from collections.abc import Iterator
from typing import Final

from jfs.chunk.layout import block_key, parse_name

BLOCK_OVERHEAD: Final = 4096
"""Bytes that a block costs beside its own, as the peer counts."""

_SIZE_BITS: Final = 28
_INDEX_BITS: Final = 24
_SIZE_MASK: Final = (1 << _SIZE_BITS) - 1
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1
_ID_SHIFT: Final = _SIZE_BITS + _INDEX_BITS


@functools.lru_cache(maxsize=512)  # a read asks twice, and the next one mostly for the same block
def block_number(key: str) -> int:
    """The block's integer; the key must be a block's."""
    slice_id, index, size = key[key.rfind("/") + 1 :].split("_")
    return int(slice_id) << _ID_SHIFT | int(index) << _SIZE_BITS | int(size)


def block_cost(number: int) -> int:
    """Bytes that the block counts for."""
    return (number & _SIZE_MASK) + BLOCK_OVERHEAD


class CacheIndex:
    """Blocks by number.  Safe to share between threads."""

    def __init__(self, *, hash_prefix: bool = False) -> None:
        self._hash_prefix = hash_prefix
        self._lock = threading.Lock()
        self.used_at: dict[int, int] = {}
        """When each block was used last, unix seconds.  For reading only, and one block at a time."""
        self.used = 0
        """Bytes that all blocks count for."""

    def __len__(self) -> int:
        return len(self.used_at)

    def __contains__(self, key: str) -> bool:
        return block_number(key) in self.used_at

    def __iter__(self) -> Iterator[int]:
        """The blocks held at this moment."""
        return iter(list(self.used_at))

    def key(self, number: int) -> str:
        """The block's object key."""
        index, size = number >> _SIZE_BITS & _INDEX_MASK, number & _SIZE_MASK
        return block_key(number >> _ID_SHIFT, index, size, hash_prefix=self._hash_prefix)

    def names(self, key: str) -> bool:
        """Whether the key, of any file, is that of a block in its right place."""
        name = parse_name(key)
        if name is None or name.size > _SIZE_MASK or name.index > _INDEX_MASK:
            return False
        return key == block_key(name.id, name.index, name.size, hash_prefix=self._hash_prefix)

    def add(self, key: str, when: float) -> None:
        """The block is there, and was used then, or later as is known already."""
        number, second = block_number(key), int(when)
        with self._lock:
            known = self.used_at.get(number)
            if known is None:
                self.used += block_cost(number)
            if known is None or known < second:
                self.used_at[number] = second

    def touch(self, key: str, when: float) -> None:
        """The block was used now; one that is not there stays unknown."""
        number, second = block_number(key), int(when)
        if self.used_at.get(number, second) < second:
            with self._lock:
                if number in self.used_at:
                    self.used_at[number] = second

    def discard(self, key: str) -> None:
        """The block is gone."""
        number = block_number(key)
        with self._lock:
            if self.used_at.pop(number, None) is not None:
                self.used -= block_cost(number)

    def clear(self) -> None:
        with self._lock:
            self.used_at.clear()
            self.used = 0
