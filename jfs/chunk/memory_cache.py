"""Blocks in memory, the longest unused going first: `--cache-dir memory`, and the last block read of a compressed volume."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from jfs.chunk.file_range import FileRange
from jfs.chunk.stats import CacheCounts


class BlockCache(Protocol):
    """Plain blocks by object key.  Shared between threads; a cache may forget anything at any time."""

    lends: bool
    """Whether there are reads for which `lend` is worth a try."""

    def get_now(self, key: str, size: int, offset: int, length: int) -> bytes | bytearray | None:
        """A part of the block of `size` bytes if that takes no waiting.  Only for the loop's thread."""
        ...

    def lend(self, key: str, size: int, offset: int, length: int) -> FileRange | None:
        """The same as it lies in a local file, where it needs no check.  Only for the loop's thread."""
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
        """Now and then: let go of what nobody used lately.  Only for the loop's thread."""

    def close(self) -> None:
        """Stop background work and let go of files."""


class MemoryCache:
    """A bounded number of bytes, and of blocks."""

    lends = False

    def __init__(
        self,
        capacity: int,
        *,
        items: int = 0,
        keep: bool = False,
        expire: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`items` and `expire` (seconds unused) of 0: no such limit.  `keep`: what is there stays, and a full cache takes nothing."""
        self._capacity = capacity
        self._items = items
        self._keep = keep
        self._expire = expire
        self._clock = clock
        self._blocks: OrderedDict[str, bytes] = OrderedDict()
        self._used_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._counts = CacheCounts()
        self.used = 0

    def get_now(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        return self.get(key, size, offset, length)

    def lend(self, key: str, size: int, offset: int, length: int) -> FileRange | None:
        return None

    def get(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is None:
                return None
            self._blocks.move_to_end(key)
            if self._expire:
                self._used_at[key] = self._clock()
        return block if length == len(block) else block[offset : offset + length]

    def unanswered(self, key: str) -> None:
        """Memory always answers."""

    def holds(self, key: str) -> bool:
        return key in self._blocks

    def add(self, key: str, data: bytes) -> None:
        with self._lock:
            self._forget(key)
            if len(data) > self._capacity or (self._keep and self._is_over(len(data), 1)):
                return
            self._blocks[key] = data
            self.used += len(data)
            if self._expire:
                self._used_at[key] = self._clock()
            self._counts.writes += 1
            self._counts.write_bytes += len(data)
            while self._is_over():
                self._evict_oldest()

    def _is_over(self, more: int = 0, items: int = 0) -> bool:
        """Whether the cache holds too much, or would with `more` bytes in so many more `items`."""
        return self.used + more > self._capacity or 0 < self._items < len(self._blocks) + items

    def _evict_oldest(self) -> None:
        self._counts.evicts += 1
        self._forget(next(iter(self._blocks)))

    def remove(self, key: str) -> None:
        with self._lock:
            self._forget(key)

    def _forget(self, key: str) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self.used -= len(block)
            self._used_at.pop(key, None)

    def counts(self) -> CacheCounts:
        self._counts.blocks, self._counts.bytes = len(self._blocks), self.used
        return self._counts

    def drop_idle(self) -> None:
        """Drop what has expired; nothing is open."""
        if self._expire:
            before = self._clock() - self._expire
            with self._lock:
                while self._blocks and self._used_at[next(iter(self._blocks))] < before:
                    self._evict_oldest()

    def close(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._used_at.clear()
            self.used = 0
