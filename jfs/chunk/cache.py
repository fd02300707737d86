"""The disk cache: its folders on the ring, as one cache; and which cache the options ask for."""

import glob
import logging
import os
from collections import deque
from typing import Final

from jfs.chunk import checksum
from jfs.chunk.cache_dir import CacheDir
from jfs.chunk.descriptors import Descriptors
from jfs.chunk.eviction import check_policy
from jfs.chunk.file_range import FileRange
from jfs.chunk.folders import DISK_FAULTS
from jfs.chunk.memory_cache import BlockCache, MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.ring import Ring, legacy_place
from jfs.chunk.stats import CacheCounts
from jfs.errors import UserError

LEVELS: Final = ("none", "full", "shrink", "extend")
FALLBACK_BYTES: Final = 100 << 20

log = logging.getLogger(__name__)


def split_cache_dirs(text: str) -> list[str]:
    """`--cache-dir`: paths and patterns separated by `:`, or by `,` where there is no `:`."""
    return [part for part in text.split(":" if ":" in text else ",") if part]


def parse_cache_dirs(text: str) -> list[str]:
    """The folders that `--cache-dir` names, each once, globs expanded.  UserError for a pattern that matches none."""
    found: dict[str, None] = {}
    for part in split_cache_dirs(text):
        matches = sorted(glob.glob(part)) if glob.has_magic(part) else [part]
        if not matches:
            raise UserError(
                f"no folder matches {part} of cache-dir; make the folders first, or name them without a pattern"
            )
        found |= {match.rstrip("/") or "/": None for match in matches}
    return list(found)


def open_cache(options: ChunkOptions) -> BlockCache | None:
    """The cache that the options ask for; None for none.  Raises UserError for folders that cannot be used."""
    check_policy(options.cache_eviction)
    if options.verify_cache_checksum not in LEVELS:
        raise UserError(
            f"unknown level {options.verify_cache_checksum!r} for verify-cache-checksum; it is one of {', '.join(LEVELS)}"
        )
    if not options.cache_dirs or options.cache_size <= 0:
        return None
    if options.cache_dirs == ["memory"]:
        return MemoryCache(
            options.cache_size,
            items=options.cache_items,
            keep=options.cache_eviction == "none",
            expire=options.cache_expire,
        )
    return DiskCache(options)


class DiskCache:
    """Blocks in one or more folders.  Safe to share between threads, but for the `_now` calls."""

    def __init__(self, options: ChunkOptions) -> None:
        self._counts = CacheCounts()
        self._level = options.verify_cache_checksum
        self.lends = self._level != "extend"
        self._gone: deque[str] = deque()
        self.dirs: list[CacheDir] = []
        for folder in sorted(options.cache_dirs):
            path = f"{os.path.abspath(folder)}/{options.uuid}"
            share = len(options.cache_dirs)
            self.dirs.append(CacheDir(path, options, self._counts, share=share, removed=self._gone.append))
        self._open_dirs()
        self._placing: tuple[list[tuple[str, str]], Ring] = ([], Ring([]))
        self._descriptors = Descriptors()
        self._fallback: MemoryCache | None = None
        for each in self.dirs:
            each.start()

    def _open_dirs(self) -> None:
        """What cannot be used is left out, and tried again later.  UserError where that leaves none but by a fault of a disk."""
        failures: dict[CacheDir, OSError] = {}
        for each in self.dirs:
            try:
                each.open()
                log.info("Disk cache (%s/): used ratio - %s", each.folder, _used_ratio(each.folder))
            except OSError as error:
                failures[each] = error
        for each, failure in failures.items():
            if len(failures) == len(self.dirs) and failure.errno not in DISK_FAULTS:
                raise UserError(f"cache folder {each.folder}: {failure.strerror}") from failure
        for each, failure in failures.items():
            each.give_up(f"open: {failure.strerror}")

    def counts(self) -> CacheCounts:
        """The counters, with what is held right now."""
        self._counts.blocks = sum(len(each) for each in self.dirs)
        self._counts.bytes = sum(each.used for each in self.dirs)
        fallback = self._fallback
        if fallback is not None:
            held = fallback.counts()
            self._counts.blocks += held.blocks
            self._counts.bytes += held.bytes
        return self._counts

    def home(self, key: str) -> CacheDir | None:
        """Where the key belongs, staged or cached: on a ring without the folders that are out of use; None: on no disk."""
        usable = [each for each in self.dirs if each.usable]
        if len(usable) <= 1:
            return usable[0] if usable else None
        names = [(each.folder, each.id) for each in usable]
        known, ring = self._placing
        if names != known:  # two threads may both do this, to the same end
            ring = Ring([each.id for each in usable])
            self._placing = names, ring
        return usable[ring.place(key)]

    def _holder(self, key: str) -> CacheDir | None:
        """The folder that has the key: its home, or where clients before the ring would have put it."""
        home = self.home(key)
        if home is not None and (len(self.dirs) == 1 or home.holds(key)):
            return home if home.holds(key) else None
        legacy = self.dirs[legacy_place(key, len(self.dirs))]
        return legacy if legacy.holds(key) else None

    def get_now(self, key: str, size: int, offset: int, length: int) -> bytes | bytearray | None:
        holder = self._holder(key)
        if holder is None:
            fallback = self._fallback
            return None if fallback is None else fallback.get_now(key, size, offset, length)
        if offset + length > size:
            return None
        waiting = holder.waiting.get(key)
        if waiting is not None:
            return waiting[offset : offset + length]
        if self._gone:
            self._drop_gone()
        path = holder.path(key)
        start, end = checksum.to_check(self._level, offset, length, size)
        data: bytes | bytearray | None
        if start >= end:
            data = self._descriptors.read(path, offset, length)
        elif start <= offset and offset + length <= end:
            data = self._verified_now(path, size, offset, length)
        else:
            return None
        if data is not None:
            holder.touch(key)
        return data

    def lend(self, key: str, size: int, offset: int, length: int) -> FileRange | None:
        holder = self._holder(key)
        start, end = checksum.to_check(self._level, offset, length, size)
        if holder is None or start < end:
            return None
        if self._gone:
            self._drop_gone()
        lent = self._descriptors.lend(holder.path(key), offset, length)
        if lent is not None:
            holder.touch(key)
        return lent

    def _verified_now(self, path: str, size: int, offset: int, length: int) -> bytes | bytearray | None:
        start, end = checksum.covering(offset, length, size)
        read = self._descriptors.read_into
        data, tail = bytearray(end - start), bytearray(checksum.unit_count(end - start) * 4)
        if end - start == size:
            found = read(path, 0, (data, tail), len(data) + len(tail))
        else:
            first = start // checksum.UNIT
            found = read(path, start, (data,), len(data)) and read(path, size + first * 4, (tail,), len(tail))
        if not found or checksum.tail_of(data) != tail:
            return None  # no tail, or a bad block: `get` knows what to do
        return data if start == offset and len(data) == length else data[offset - start : offset - start + length]

    def holds(self, key: str) -> bool:
        if self._holder(key) is not None:
            return True
        fallback = self._fallback
        return fallback is not None and fallback.holds(key)

    def get(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        holder = self._holder(key)
        if holder is not None:
            return holder.get(key, size, offset, length)
        fallback = self._fallback
        return None if fallback is None else fallback.get(key, size, offset, length)

    def unanswered(self, key: str) -> None:
        holder = self._holder(key)
        if holder is not None:
            holder.give_up("it does not answer")

    def add(self, key: str, data: bytes) -> None:
        home = self.home(key)
        if home is not None:
            home.add(key, data)
            self._fallback = None
            return
        fallback = self._fallback
        if fallback is None:
            log.info("no cache folder is left: caching %d MiB in memory", FALLBACK_BYTES >> 20)
            fallback = self._fallback = MemoryCache(FALLBACK_BYTES)
        fallback.add(key, data)

    def remove(self, key: str) -> None:
        for each in {self.home(key), self.dirs[legacy_place(key, len(self.dirs))]}:
            if each is not None:
                each.remove(key)
        fallback = self._fallback
        if fallback is not None:
            fallback.remove(key)

    def wait_written(self) -> None:
        """Return once all that was added is on disk."""
        for each in self.dirs:
            each.wait_written()

    def _drop_gone(self) -> None:
        """A file that was removed takes its space until its descriptor is closed too."""
        while self._gone:
            self._descriptors.drop(self._gone.popleft())

    def drop_idle(self) -> None:
        self._drop_gone()
        self._descriptors.drop_idle()

    def close(self) -> None:
        self._descriptors.close()
        for each in self.dirs:
            each.close()


def _used_ratio(folder: str) -> str:
    """The disk's space and inodes in use, for the log."""
    disk = os.statvfs(folder)
    space = 100 * (1 - disk.f_bavail / max(disk.f_blocks, 1))
    inodes = 100 * (1 - disk.f_favail / max(disk.f_files, 1))
    return f"[space {space:.1f}%, inode {inodes:.1f}%]"
