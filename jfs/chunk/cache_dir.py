"""One folder of the disk cache, in the peer's layout, shared with whatever else uses that folder.

`{folder}/raw/{object key}` holds a block's plain bytes and their checksum tail; `.lock` holds the folder's name on the ring.
The index is a hint: what it lacks is a miss, what it has in excess is found out when the file is opened.  Files are written
by one thread from a short queue (a full queue drops: a cache may), and tended by another: scan, expiry, free space, eviction.
"""

import contextlib
import errno
import logging
import os
import queue
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

from jfs.chunk import checksum
from jfs.chunk.eviction import Block, expired, victims
from jfs.chunk.layout import parse_name
from jfs.chunk.options import ChunkOptions
from jfs.chunk.stats import CacheCounts
from jfs.object.file import publish

WRITE_QUEUE: Final = 32
BLOCK_OVERHEAD: Final = 4096
TEND_INTERVAL_S: Final = 1.0
EVICT_TO: Final = 0.95
EVICT_ITEMS_TO: Final = 0.99
LEFTOVER_AGE_S: Final = 60.0
ERRORS_TO_GIVE_UP: Final = 3
LOCK_NAME: Final = ".lock"

log = logging.getLogger(__name__)


def make_private(folder: str) -> None:
    """mkdir -p with mode 0700 for each folder made (`os.makedirs` gives it to the last one only)."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    except FileNotFoundError:
        make_private(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def walk(root: str, folder: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """The files below `root` (with a slash at its end): their paths from there, and what stat(2) says."""
    try:
        with os.scandir(root + folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(root, f"{folder}{entry.name}/")
        else:
            with contextlib.suppress(FileNotFoundError):
                yield folder + entry.name, entry.stat(follow_symlinks=False)


def lock_id(folder: str) -> str:
    """The folder's name on the ring, given to it on first use; by link(2), so that nobody reads half of it."""
    path = f"{folder}/{LOCK_NAME}"
    make_private(folder)
    if not os.path.exists(path):
        fresh = str(uuid.uuid4())
        temp = f"{path}.{fresh}.tmp"
        try:
            with open(temp, "x", encoding="ascii") as file:
                os.fchmod(file.fileno(), 0o666)
                file.write(fresh)
            with contextlib.suppress(FileExistsError):
                os.link(temp, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp)
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


class CacheDir:
    """Blocks in one folder.  Safe to share between threads."""

    def __init__(
        self,
        folder: str,
        options: ChunkOptions,
        share: int,
        counts: CacheCounts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`share` bytes of the cache's size are this folder's; less if the disk is small."""
        self.folder = folder
        self.id = lock_id(folder)
        self.usable = True
        self.used = 0
        self._options = options
        self._clock = clock
        self._counts = counts
        self._raw = f"{folder}/raw/"
        self._index: dict[str, Block] = {}
        self._lock = threading.Lock()
        self._scanned = False
        self._full = False
        self._errors = 0
        disk = os.statvfs(folder)
        self.capacity = min(share, int(disk.f_blocks * disk.f_frsize * (1 - options.free_space_ratio)))
        self._to_write: queue.Queue[tuple[str, bytes] | None] = queue.Queue(WRITE_QUEUE)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"cache-{target.__name__.strip('_')}", daemon=True)
            for target in (self._write_loop, self._tend_loop)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """What is queued is written first."""
        self._stop.set()
        self._to_write.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def wait_written(self) -> None:
        """Return once the queue is empty; for tests and warm-up."""
        self._to_write.join()

    # -- reading

    def path(self, key: str) -> str:
        return self._raw + key

    def holds(self, key: str) -> bool:
        return self.usable and (key in self._index or not self._scanned)

    def touch(self, key: str) -> None:
        """The block was used just now."""
        block = self._index.get(key)
        if block is not None:
            block[1] = self._clock()

    def get(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        """A part of the block, verified as the options say; a block that fails is dropped."""
        try:
            data = self._read(key, size, offset, length)
        except FileNotFoundError:
            self._forget(key)
            return None
        except OSError as error:
            self._failed(f"read {key}", error)
            return None
        self._errors = 0
        if data is None:
            log.warning("cached block %s is corrupt and dropped", self._raw + key)
            self.remove(key)
            return None
        if key not in self._index:
            self._remember(key, size, self._clock())
        self.touch(key)
        return data

    def _read(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        """None: the file cannot be right."""
        fd = os.open(self._raw + key, os.O_RDONLY)
        try:
            tail_size = checksum.tail_size(fd, size)
            if tail_size is None:
                return None
            start, end = offset, offset + length
            check_from, check_to = self._to_check(offset, length, size) if tail_size > 0 else (0, 0)
            if check_from < check_to:
                start, end = min(start, check_from), max(end, check_to)
            data = os.pread(fd, end - start, start)
            if len(data) != end - start:
                return None
            if check_from < check_to:
                first = check_from // checksum.UNIT
                tail = os.pread(fd, checksum.unit_count(check_to - check_from) * 4, size + first * 4)
                if checksum.tail_of(data[check_from - start : check_to - start]) != tail:
                    return None
        finally:
            os.close(fd)
        return data if start == offset and end == offset + length else data[offset - start : offset - start + length]

    def _to_check(self, offset: int, length: int, size: int) -> tuple[int, int]:
        """The range whose checksums this read verifies, by the level set."""
        level = self._options.verify_cache_checksum
        if level == "extend":
            return checksum.covering(offset, length, size)
        if level == "shrink":
            return checksum.inside(offset, length, size)
        return (0, size) if level == "full" and offset == 0 and length == size else (0, 0)

    # -- writing

    def add(self, key: str, data: bytes) -> None:
        """Queue the block; dropped when the disk is full, the policy keeps what is there, or the writer lags."""
        if not self.usable or self._full or key in self._index:
            return
        if self._options.cache_eviction == "none" and self.used + len(data) + BLOCK_OVERHEAD > self.capacity:
            return
        try:
            self._to_write.put_nowait((key, data))
        except queue.Full:
            self._counts.drops += 1

    def _write_loop(self) -> None:
        while (item := self._to_write.get()) is not None:
            try:
                self._write(*item)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self._disk_full(len(item[1]))
                else:
                    self._failed(f"write {item[0]}", error)
            finally:
                self._to_write.task_done()
        self._to_write.task_done()

    def _write(self, key: str, data: bytes) -> None:
        if not self.usable:
            return
        path = self._raw + key
        temp = path + ".tmp"
        try:
            fd = self._create(temp)
        except FileExistsError:
            return  # another process is writing the same block
        tail = checksum.tail_of(data) if self._options.verify_cache_checksum != "none" else b""
        publish(fd, temp, path, data, tail, mode=self._options.cache_mode)
        self._errors = 0
        self._counts.writes += 1
        self._counts.write_bytes += len(data)
        self._remember(key, len(data), self._clock())
        if self._over_limit():
            self._evict()

    def _create(self, temp: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return os.open(temp, flags, self._options.cache_mode)
        except FileNotFoundError:
            make_private(os.path.dirname(temp))
            return os.open(temp, flags, self._options.cache_mode)

    def adopt(self, key: str, size: int) -> None:
        """Know a block of `size` bytes whose file somebody else has put in place (a staged one's second link)."""
        self._counts.writes += 1
        self._counts.write_bytes += size
        self._remember(key, size, self._clock())

    def remove(self, key: str) -> None:
        self._forget(key)
        try:
            os.unlink(self._raw + key)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._failed(f"remove {key}", error)

    def _disk_full(self, wanted: int) -> None:
        """A full disk is no broken one: make room, and write nothing more until the tending has looked again."""
        self._full = True
        self._counts.drops += 1
        log.debug("cache folder %s: the disk is full", self.folder)
        if self._options.cache_eviction != "none":
            self._evict(max(self._shortage(), wanted))

    def _failed(self, what: str, error: OSError) -> None:
        """Count an I/O error; the folder is given up after a few in a row."""
        self._errors += 1
        log.warning("cache folder %s: %s: %s", self.folder, what, error.strerror)
        if self._errors >= ERRORS_TO_GIVE_UP:
            self._give_up("it keeps failing")

    def _give_up(self, why: str) -> None:
        if self.usable:
            self.usable = False
            log.error("cache folder %s is not used any more: %s", self.folder, why)

    # -- the index

    def __len__(self) -> int:
        return len(self._index)

    def _remember(self, key: str, size: int, when: float) -> None:
        cost = size + BLOCK_OVERHEAD
        with self._lock:
            known = self._index.get(key)
            if known is None:
                self._index[key] = [cost, when]
                self.used += cost
            else:
                known[1] = max(known[1], when)

    def _forget(self, key: str) -> None:
        with self._lock:
            block = self._index.pop(key, None)
            if block is not None:
                self.used -= int(block[0])

    def _over_limit(self) -> bool:
        items = self._options.cache_items
        return self.used > self.capacity or (items > 0 and len(self._index) > items)

    # -- tending

    def _tend_loop(self) -> None:
        next_scan = 0.0
        while not self._stop.is_set() and self.usable:
            try:
                if self._options.cache_scan_interval >= 0 and time.monotonic() >= next_scan:
                    self.scan()
                    interval = self._options.cache_scan_interval
                    next_scan = time.monotonic() + interval if interval > 0 else float("inf")
                self.tend()
            except OSError as error:
                self._failed("tend", error)
            self._stop.wait(TEND_INTERVAL_S)

    def scan(self) -> None:
        """Make the index what the folder holds; take away temporary files that nobody is writing any more."""
        seen: set[str] = set()
        started = self._clock()
        for key, found in walk(self._raw):
            if self._stop.is_set():
                return
            if key.endswith(".tmp"):
                if started - found.st_mtime > LEFTOVER_AGE_S:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._raw + key)
                continue
            name = parse_name(key)
            if name is not None:
                seen.add(key)
                self._remember(key, name.size, found.st_atime)
        for key, block in list(self._index.items()):
            if key not in seen and block[1] < started:
                self._forget(key)
        self._scanned = True

    def tend(self) -> None:
        """Once a second: is the folder still ours, is anything too old, is there room?"""
        if not os.path.exists(f"{self.folder}/{LOCK_NAME}"):
            self._give_up("its .lock file is gone")
            return
        if self._options.cache_expire > 0:
            for key in expired(self._index, self._clock() - self._options.cache_expire):
                self._drop(key)
        shortage = self._shortage()
        self._full = shortage > 0
        if (shortage > 0 or self._over_limit()) and self._options.cache_eviction != "none":
            self._evict(shortage)

    def _shortage(self) -> int:
        """Bytes that the disk lacks to have the wanted part free; a lack of inodes counts as bytes of average blocks."""
        disk = os.statvfs(self.folder)
        ratio = self._options.free_space_ratio
        lacking = int(disk.f_blocks * ratio - disk.f_bavail) * disk.f_frsize
        if disk.f_files > 0:
            inodes = int(disk.f_files * ratio - disk.f_favail)
            lacking = max(lacking, inodes * self.used // max(len(self._index), 1))
        return max(lacking, 0)

    def _evict(self, shortage: int = 0) -> None:
        """Drop blocks until the limits are kept with some slack, and `shortage` bytes came free."""
        items = self._options.cache_items
        target = self.used - shortage
        if self.used > self.capacity:
            target = min(target, int(self.capacity * EVICT_TO))
        item_target = int(items * EVICT_ITEMS_TO) if 0 < items < len(self._index) else len(self._index)
        for key in victims(self._options.cache_eviction, self._index):
            if self.used <= target and len(self._index) <= item_target:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        """Evict one block, unless a second link says that it waits for its upload."""
        try:
            found = os.stat(self._raw + key, follow_symlinks=False)
        except FileNotFoundError:
            self._forget(key)
            return
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            return
        self.remove(key)
        self._counts.evicts += 1
