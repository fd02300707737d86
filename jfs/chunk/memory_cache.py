"""Blocks in memory, the longest unused going first: `--cache-dir memory`, and the last block read of a compressed volume."""

import threading
from collections import OrderedDict
from typing import Protocol

from jfs.chunk.stats import CacheCounts


class BlockCache(Protocol):
    """Plain blocks by object key.  Shared between threads; a cache may forget anything at any time."""

    def get_now(self, key: str, size: int, offset: int, length: int) -> bytes | bytearray | None:
        """A part of the block of `size` bytes if that takes no waiting.  Only for the loop's thread."""
        ...

    def get(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        """A part of the block, verified; may wait for a disk.  None: not cached (or not any more)."""
        ...

    def unanswered(self, key: str) -> None:
        """A `get` of this block has not come back for long: let no other wait in the same place."""

    def holds(self, key: str) -> bool:
        """Whether `get` is worth a try; no waiting."""
        ...

    def add(self, key: str, data: bytes) -> None:
        """Keep the block; no waiting; may be ignored."""

    def remove(self, key: str) -> None:
        """Forget the block."""

    def counts(self) -> CacheCounts:
        """The counters, with what is held right now."""
        ...

    def drop_idle(self) -> None:
        """Close descriptors that nobody used lately.  Only for the loop's thread."""

    def close(self) -> None:
        """Stop background work and let go of files."""


class MemoryCache:
    """A bounded number of bytes of blocks."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._counts = CacheCounts()
        self.used = 0

    def get_now(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        return self.get(key, size, offset, length)

    def get(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is None:
                return None
            self._blocks.move_to_end(key)
        return block if length == len(block) else block[offset : offset + length]

    def unanswered(self, key: str) -> None:
        """Memory always answers."""

    def holds(self, key: str) -> bool:
        return key in self._blocks

    def add(self, key: str, data: bytes) -> None:
        if len(data) > self._capacity:
            return
        with self._lock:
            self._forget(key)
            self._blocks[key] = data
            self.used += len(data)
            self._counts.writes += 1
            self._counts.write_bytes += len(data)
            while self.used > self._capacity:
                self._counts.evicts += 1
                self._forget(next(iter(self._blocks)))

    def remove(self, key: str) -> None:
        with self._lock:
            self._forget(key)

    def _forget(self, key: str) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self.used -= len(block)

    def counts(self) -> CacheCounts:
        self._counts.blocks, self._counts.bytes = len(self._blocks), self.used
        return self._counts

    def drop_idle(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        with self._lock:
            self._blocks.clear()
            self.used = 0
