"""One folder of the disk cache, in the peer's layout, shared with whatever else uses that folder.

`{folder}/raw/{object key}` holds a block's plain bytes and their checksum tail; `.lock` holds the folder's name on the ring.
The index is a hint: what it lacks is a miss, what it has in excess is found out when the file is opened.  Files are written
by one thread from a short queue (a full queue drops: a cache may), and tended by another: scan, expiry, free space, eviction.

No fault of the folder is an error of a reader.  One that keeps failing, or whose `.lock` is gone (deleted, or its disk is not
mounted any more), is out of use until it works again; one that refuses changes is read, and tried again later; a full disk
makes the cache smaller.
"""

import contextlib
import logging
import os
import queue
import stat
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

from jfs.chunk import checksum
from jfs.chunk.cache_index import BLOCK_OVERHEAD, CacheIndex
from jfs.chunk.eviction import Rest, expired, victims
from jfs.chunk.folders import FULL, LOCK_NAME, REFUSED, device_of, lock_id, make_private, walk
from jfs.chunk.options import ChunkOptions
from jfs.chunk.stats import CacheCounts
from jfs.object.file import publish

WAITING_SHARE: Final = 0.8
"""Of `--buffer-size`: for blocks that wait for their write, in all folders."""
TEND_INTERVAL_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 5.0
EVICT_TO: Final = 0.95
EVICT_ITEMS_TO: Final = 0.99
LEFTOVER_AGE_S: Final = 60.0
ERRORS_TO_GIVE_UP: Final = 3
# A folder that is out of use is looked at again after so long, then after twice as long, ...
FIRST_PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 1800.0
# A folder that refused a change is tried again after so long.
REFUSED_S: Final = 30.0
# Looking for blocks that are too old goes through all of them: not more often than this.
EXPIRY_INTERVAL_S: Final = 60.0

log = logging.getLogger(__name__)


class CacheDir:
    """Blocks in one folder.  Safe to share between threads."""

    def __init__(
        self,
        folder: str,
        options: ChunkOptions,
        counts: CacheCounts,
        *,
        share: int = 1,
        clock: Callable[[], float] = time.time,
        removed: Callable[[str], None] = lambda path: None,
    ) -> None:
        """One of `share` folders that divide the cache's limits; less if the disk is small.  `removed` hears of files that go.

        `open` it first, or `give_up` what could not be opened: it is tried again.
        """
        self.folder = folder
        self.id = str(uuid.uuid4())
        self.usable = False
        self.openings = 0
        """How often the folder was taken into use."""
        self.capacity = 0
        self.index = CacheIndex(hash_prefix=options.hash_prefix)
        self._options = options
        self._clock = clock
        self._counts = counts
        self._removed = removed
        self._raw = f"{folder}/raw/"
        self._share = share
        self.disk: int | None = None
        """The disk that the folder is on (st_dev), as it was taken into use."""
        self._scanned = False
        self._next_scan = 0.0
        self._next_expiry = 0.0
        self._full = False
        self._rest = Rest()
        """From evicting, and from caching: all that is left is staged, and too much."""
        self._refused_until = 0.0
        self._errors = 0
        self._pause = FIRST_PAUSE_S
        self._retry_at = 0.0
        self._items = max(options.cache_items // share, 1) if options.cache_items > 0 else 0
        self._to_write: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._queued = 0
        self._most_queued = int(options.buffer_size * WAITING_SHARE) // share
        self.waiting: dict[str, bytes] = {}
        """What will be written, and is read from memory until then."""
        self._queue_lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"cache-{target.__name__.strip('_')}", daemon=True)
            for target in (self._write_loop, self._tend_loop)
        ]

    def open(self) -> None:
        """Take the folder into use.  Raises OSError."""
        self.id = lock_id(self.folder, self.id)
        self.disk = device_of(self.folder)
        disk = os.statvfs(self.folder)
        room = int(disk.f_blocks * disk.f_frsize * (1 - self._options.free_space_ratio))
        self.capacity = min(self._options.cache_size // self._share, room)
        self._errors = 0
        self._rest.end()
        self._next_scan = self._retry_at = 0.0
        self.openings += 1
        self.usable = True

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """What is queued is written first; a disk that hangs is not waited for."""
        self._stop.set()
        self._to_write.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(CLOSE_TIMEOUT_S)

    def wait_written(self) -> None:
        """Return once the queue is empty; for tests and warm-up."""
        self._to_write.join()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def used(self) -> int:
        """Bytes that the blocks count for."""
        return self.index.used

    # -- reading

    def path(self, key: str) -> str:
        return self._raw + key

    def holds(self, key: str) -> bool:
        return self.usable and (not self._scanned or key in self.index or key in self.waiting)

    def touch(self, key: str) -> None:
        """The block was used just now."""
        self.index.touch(key, self._clock())

    def get(self, key: str, size: int, offset: int, length: int) -> bytes | None:
        """A part of the block, verified as the options say; a block that fails is dropped."""
        waiting = self.waiting.get(key)
        if waiting is not None:
            return waiting[offset : offset + length]
        start = time.perf_counter()
        try:
            data = checksum.read_part(self._raw + key, size, offset, length, self._options.verify_cache_checksum)
        except FileNotFoundError:
            self.index.discard(key)
            return None
        except OSError as error:
            self._failed(f"read {key}", error)
            return None
        self._errors = 0
        if data is None:
            log.warning("cached block %s is corrupt and dropped", self._raw + key)
            self.remove(key)
            return None
        self._counts.reads += 1
        self._counts.read_seconds += time.perf_counter() - start
        self.index.add(key, self._clock())
        return data

    # -- writing

    def add(self, key: str, data: bytes) -> None:
        """Queue the block; dropped when the disk is full, there is no room, or the writer lags."""
        if not self.usable or self._full or self._rests() or self._refuses() or key in self.index:
            return
        if self._options.cache_eviction == "none" and self._over_limit(len(data) + BLOCK_OVERHEAD, 1):
            return
        with self._queue_lock:
            if key in self.waiting:  # fetched twice at once
                return
            room = not self._queued or self._queued + len(data) <= self._most_queued
            if room:
                self._queued += len(data)
                self.waiting[key] = data
        if room:
            self._to_write.put((key, data))
        else:
            self._counts.drops += 1

    def _write_loop(self) -> None:
        while (item := self._to_write.get()) is not None:
            try:
                if self._waits(*item):
                    self._write(*item)
                    if not self._waits(*item):
                        self.remove(item[0])
            except OSError as error:
                self._counts.drops += 1
                if error.errno in FULL:
                    self._disk_full(len(item[1]))
                else:
                    self._failed(f"write {item[0]}", error)
            finally:
                with self._queue_lock:
                    self._queued -= len(item[1])
                    if self._waits(*item):
                        del self.waiting[item[0]]
                self._to_write.task_done()
        self._to_write.task_done()

    def _waits(self, key: str, data: bytes) -> bool:
        """False once the block was removed, and perhaps another one of that key added."""
        return self.waiting.get(key) is data

    def _write(self, key: str, data: bytes) -> None:
        if not self.usable or self._rests() or self._refuses():
            return
        start = time.perf_counter()
        path = self._raw + key
        temp = path + ".tmp"
        try:
            fd = self._create(temp)
        except FileExistsError:  # another process is writing the same block, or died when it did
            self._remove_leftover(temp)
            return
        if fd is None:
            return
        tail = checksum.tail_of(data) if self._options.verify_cache_checksum != "none" else b""
        publish(fd, temp, path, data, tail, mode=self._options.cache_mode)
        self._removed(path)  # what another process had put there
        self._errors = 0
        self._refused_until = 0.0
        self._counts.write_seconds += time.perf_counter() - start
        self.adopt(key, len(data))
        if self._over_limit():
            self._evict()

    def _create(self, temp: str) -> int | None:
        """None: the folder is not ours any more, and nothing may be made where it was."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return os.open(temp, flags, self._options.cache_mode)
        except FileNotFoundError:
            if not self.is_ours():
                return None
            make_private(os.path.dirname(temp))
            return os.open(temp, flags, self._options.cache_mode)

    def _remove_leftover(self, temp: str) -> None:
        """Take away a temporary file that nobody is writing any more."""
        with contextlib.suppress(FileNotFoundError):
            if self._clock() - os.stat(temp, follow_symlinks=False).st_mtime > LEFTOVER_AGE_S:
                os.unlink(temp)

    def adopt(self, key: str, size: int) -> None:
        """Know a block of `size` bytes whose file is in its place (or a staged one's second link)."""
        self._counts.writes += 1
        self._counts.write_bytes += size
        self.index.add(key, self._clock())

    def remove(self, key: str) -> None:
        with self._queue_lock:
            self.waiting.pop(key, None)
        self.index.discard(key)
        path = self._raw + key
        self._removed(path)
        if not self.usable:
            return
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._failed(f"remove {key}", error)

    # -- faults

    def _disk_full(self, wanted: int) -> None:
        """A full disk is no broken one: make room, and write nothing more until the tending has looked again."""
        self._full = True
        log.debug("cache folder %s: the disk is full", self.folder)
        try:
            self._evict(max(self._shortage(), wanted))
        except OSError as error:
            self._failed("evict", error)

    def _refuses(self) -> bool:
        """Whether a change was refused lately."""
        return self._refused_until > 0 and time.monotonic() < self._refused_until

    def _failed(self, what: str, error: OSError) -> None:
        """Count an I/O error; the folder is given up after a few in a row.  A refusal concerns changes only."""
        reason = error.strerror or str(error)
        if error.errno in REFUSED and not what.startswith("read"):
            if self._refused_until == 0:
                log.warning("cache folder %s is only read for now, %s: %s", self.folder, what, reason)
            self._refused_until = time.monotonic() + REFUSED_S
            return
        self._errors += 1
        log.info("cache folder %s: %s: %s", self.folder, what, reason)
        if self._errors >= ERRORS_TO_GIVE_UP:
            self.give_up(f"{what}: {reason}")

    def is_ours(self) -> bool:
        """Give the folder up if it is not there any more, or not the one that it was; whether it is.  Raises OSError."""
        try:
            mine = os.stat(f"{self.folder}/{LOCK_NAME}").st_dev == self.disk
        except FileNotFoundError:
            mine = False
        if not mine:
            self.give_up(f"its {LOCK_NAME} file is gone")
        return mine

    def give_up(self, why: str) -> None:
        """Take the folder out of use, until it works again."""
        if not self.usable and self._retry_at > 0:  # another thread has done it
            return
        self.usable = False
        self._scanned = False
        self.index.clear()
        self._retry_at = time.monotonic() + self._pause
        state = "not used any more" if self.openings else "not used"
        log.error("cache folder %s is %s: %s (it is tried again in %d s)", self.folder, state, why, round(self._pause))
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)

    def try_again(self) -> None:
        """Take the folder back into use if it works; one that was deleted is made again where its disk is still there."""
        self._retry_at = time.monotonic() + self._pause
        try:
            if self.disk not in (None, device_of(self.folder)):
                return
            make_private(self.folder)
            self._probe()
            self.open()
        except OSError as error:
            log.debug("cache folder %s: %s", self.folder, error)
            return
        log.info("cache folder %s is used again", self.folder)

    def _probe(self) -> None:
        """Write a file and take it away.  Raises OSError, but not where the folder only refuses that: it may be read."""
        path = f"{self.folder}/{LOCK_NAME}.{uuid.uuid4()}.tmp"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            if error.errno in REFUSED:
                return
            raise
        try:
            os.write(fd, b"probe")
            os.fsync(fd)
        finally:
            os.close(fd)
            os.unlink(path)

    # -- tending

    def _tend_loop(self) -> None:
        while not self._stop.is_set():
            try:
                if self.usable:
                    self._scan_if_due()
                    self.tend()
                elif time.monotonic() >= self._retry_at:
                    self.try_again()
            except OSError as error:
                self._failed("tend", error)
            self._stop.wait(TEND_INTERVAL_S)

    def _scan_if_due(self) -> None:
        interval = self._options.cache_scan_interval
        if interval >= 0 and time.monotonic() >= self._next_scan:
            self.scan()
            self._next_scan = time.monotonic() + interval if interval > 0 else float("inf")

    def scan(self) -> None:
        """Make the index what the folder holds; take away temporary files that nobody is writing any more."""
        started = self._clock()
        found = 0
        for key, info in walk(self._raw, failed=self._pass_by):
            if self._stop.is_set() or not self.usable:
                return
            if key.endswith(".tmp"):
                if self.index.names(key.removesuffix(".tmp")):
                    self._remove_leftover(self._raw + key)
            elif self.index.names(key):
                found += 1
                self.index.add(key, info.st_atime)
        if found < len(self.index):
            self._forget_missing(started)
        self._scanned = self.usable

    def _pass_by(self, path: str, error: OSError) -> None:
        """One directory that cannot be read makes the blocks in it unknown; the folder is of use without them."""
        if path == self._raw:
            raise error
        log.warning("cache folder %s: %s cannot be read: %s", self.folder, path, error.strerror or error)

    def _forget_missing(self, started: float) -> None:
        """The index has more than was found: look for each block that was not used or added since."""
        for number in self.index:
            if self.index.used_at.get(number, started) <= started:
                key = self.index.key(number)
                if not os.path.lexists(self._raw + key):
                    self.index.discard(key)

    def tend(self) -> None:
        """Once a second: is the folder still ours, is anything too old, is there room?"""
        if not self.is_ours():
            return
        now = time.monotonic()
        if self._options.cache_expire > 0 and now >= self._next_expiry:
            self._next_expiry = now + min(self._options.cache_expire / 10, EXPIRY_INTERVAL_S)
            for number in expired(self.index.used_at, self._clock() - self._options.cache_expire):
                self._drop(self.index.key(number))
        shortage = self._shortage()
        self._full = shortage > 0
        if shortage > 0 or self._over_limit():
            self._evict(shortage)
        elif self.used <= self.capacity * EVICT_TO and (not self._items or len(self.index) <= self._item_target()):
            self._rest.end()
        else:
            self._rest.wake()

    def _over_limit(self, more: int = 0, items: int = 0) -> bool:
        """Whether the folder holds too much, or would with `more` bytes in so many more `items`."""
        return self.used + more > self.capacity or 0 < self._items < len(self.index) + items

    def _item_target(self) -> int:
        return int(self._items * EVICT_ITEMS_TO)

    def _rests(self) -> bool:
        return self._rest.lasts(time.monotonic())

    def _shortage(self) -> int:
        """Bytes that the disk lacks to have the wanted part free; a lack of inodes counts as bytes of average blocks."""
        disk = os.statvfs(self.folder)
        ratio = self._options.free_space_ratio
        lacking = int(disk.f_blocks * ratio - disk.f_bavail) * disk.f_frsize
        if disk.f_files > 0:
            inodes = int(disk.f_files * ratio - disk.f_favail)
            lacking = max(lacking, inodes * self.used // max(len(self.index), 1))
        return max(lacking, 0)

    def _evict(self, shortage: int = 0) -> None:
        """Drop blocks until the limits are kept with some slack, and `shortage` bytes came free.

        If they are not, because all that is left is staged, it is not looked at again for a while.
        """
        if self._rests() or self._refuses():
            return
        target = self.used - shortage
        if self.used > self.capacity:
            target = min(target, int(self.capacity * EVICT_TO))
        held = len(self.index)
        item_target = self._item_target() if 0 < self._items < held else held
        staged = False
        for number in victims(self._options.cache_eviction, self.index.used_at):
            if (self.used <= target and len(self.index) <= item_target) or not self.usable or self._refuses():
                return
            staged |= not self._drop(self.index.key(number))
        if staged:
            self._rest.begin(time.monotonic())

    def released(self, key: str) -> None:
        """The block was staged, and is a cached one from now on; it goes if there is too much and no eviction would come."""
        if not self.usable or self._refuses():
            return
        try:
            if (self._options.cache_eviction == "none" or self._rests()) and (
                self._over_limit() or self._shortage() > 0
            ):
                self._drop(key)
        except OSError as error:
            self._failed(f"evict {key}", error)

    def _drop(self, key: str) -> bool:
        """Evict one block; False: a second link says that it waits for its upload."""
        try:
            found = os.stat(self._raw + key, follow_symlinks=False)
        except FileNotFoundError:
            self.index.discard(key)
            return True
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            return False
        self.remove(key)
        self._counts.evicts += 1
        return True
