"""Slices' bytes, kept as blocks in the object store: read a range, put a block, remove a slice, make puts durable.

Strategy: everything here runs on the trio loop and owns its state there; only calls that may wait (the store, a disk cache,
compression) go to threads, behind limiters of the user's sizes.  A hop to a thread costs some 50 µs, so what is certain not to
wait is done at once: `read_now` takes bytes that are in memory already, and a small block goes into a local file inline.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

from jfs.chunk import heap
from jfs.chunk.cache import DiskCache
from jfs.chunk.codec import open_codec
from jfs.chunk.descriptors import Descriptors, bring_in
from jfs.chunk.disk_threads import FlushHangs
from jfs.chunk.errands import run_errand
from jfs.chunk.file_range import FileRange
from jfs.chunk.fingerprint import fingerprint_of, part_of, require, right_copy
from jfs.chunk.flights import Flights
from jfs.chunk.layout import block_key, block_keys, block_length, block_ranges
from jfs.chunk.memory_cache import BlockCache, MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.promptness import SLOW_PUT_S, SLOW_READ_S, Promptness
from jfs.chunk.staging import Staging
from jfs.chunk.stats import CacheCounts, ChunkStats, ObjectCounts
from jfs.chunk.together import fetch_together
from jfs.chunk.uploader import Target, Uploader
from jfs.errors import BadObject, ObjectMissing, StoreError, StoreFull, UserError
from jfs.object.store import Buffer, Errand, ObjectStore
from jfs.object.stores import impatient

# Up to this size a write(2) into the page cache (150 µs with open and rename) is not worth the hop to a thread.
INLINE_PUT: Final = 128 << 10
# A cache disk that takes longer for a read does not answer at all: its blocks come from the store.
CACHE_PATIENCE_S: Final = 10.0
CACHE_READS: Final = 64
# A fingerprint of so many bytes (5 to 50 µs) is not worth the hop to a thread.
INLINE_FINGERPRINT: Final = 512 << 10
# Up to this size a read tries the page cache on the loop before it asks a thread; and a block is read from a quick disk.
INLINE_READ: Final = 256 << 10
# So many unsynced keys are remembered before the background makes them durable: it bounds memory, not risk.
MOST_UNSYNCED: Final = 1 << 16
# A compressed or encrypted block is decoded whole; the latest few stay in memory so that reading on does not do it again.
DECODED_BYTES: Final = 64 << 20
PREFETCH_QUEUE: Final = 64
# One request to read ahead is on the disk's queue while the next is being made.
PREFETCHERS: Final = 2
IDLE_SWEEP_S: Final = 30.0
HEAP_IDLE_S: Final = 3.0
REMOVE_BATCH: Final = 16

log = logging.getLogger(__name__)

T = TypeVar("T")


class _SyncRound:
    """One flush of the store that several callers may wait for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: StoreError | None = None


class BlockStore:
    """The data of one volume."""

    def __init__(self, store: ObjectStore, options: ChunkOptions, cache: BlockCache | None = None) -> None:
        self.options = options
        self.stats = ChunkStats()
        self._store = store
        # Inline calls must not sleep between tries, so they go past the patience.
        self._impatient = impatient(store)
        self._codec = open_codec(options.compression)
        # Whether a part of a block can be had without the rest: an encrypted object is whole or nothing.
        self._ranged = self._codec.plain and not options.encrypted
        self._local = self._ranged and store.local_path("") is not None
        self._cache = cache
        self._caching = cache is not None or not self._ranged
        if cache is None and not self._ranged:
            self._cache = MemoryCache(DECODED_BYTES)
        self.lends = self._local or (cache is not None and cache.lends)
        """Whether there are reads for which `lend` is worth a try."""
        self._descriptors = Descriptors()
        self._flights = Flights()
        self._uploads = trio.CapacityLimiter(options.max_uploads)
        self._removals = trio.CapacityLimiter(options.max_uploads)
        self._downloads = trio.CapacityLimiter(options.max_downloads)
        self._cache_reads = trio.CapacityLimiter(CACHE_READS)
        self._puts = Promptness(SLOW_PUT_S)
        self._reads = Promptness(SLOW_READ_S)
        self._loops: bool | None = None
        self._unsynced: set[str] = set()
        self._many_unsynced = trio.Event()
        self._sync_round: _SyncRound | None = None
        self._sync_error: StoreError | None = None
        self.inherits = False
        """Whether there may be blocks of a mount that died, which nobody has flushed: the next `sync` does."""
        self._to_prefetch, self._prefetches = trio.open_memory_channel[tuple[str, int, bytes]](PREFETCH_QUEUE)
        self.staging: Staging | None = None
        if isinstance(cache, DiskCache) and not options.read_only:
            self.staging = Staging(cache, options)
            local = store.local_path("") is not None
            target = Target(self._upload_once, self._exists, store.sync, self._unsynced_now, self.stats, local=local)
            self._uploader = Uploader(self.staging, target, options)
        elif options.writeback:
            raise UserError("--writeback keeps blocks in a cache folder on a disk: name one with --cache-dir")

    def cache_counts(self) -> CacheCounts:
        """What the cache has done, and holds right now; zeros without one."""
        return CacheCounts() if self._cache is None else self._cache.counts()

    # -- reading

    @property
    def local(self) -> bool:
        """Whether the objects are files of this machine that the kernel can read ahead."""
        return self._local

    def holds(self, slice_id: int, size: int, index: int) -> bool:
        """Whether a block is in the cache."""
        return self._cache is not None and self._cache.holds(self._block(slice_id, size, index)[0])

    def _block(self, slice_id: int, size: int, index: int) -> tuple[str, int]:
        """The key and the length of a slice's block."""
        length = block_length(size, index, self.options.block_size)
        return block_key(slice_id, index, length, hash_prefix=self.options.hash_prefix), length

    def read_now(
        self, slice_id: int, size: int, offset: int, length: int, fingerprint: bytes = b""
    ) -> bytes | bytearray | None:
        """The range if it is in memory (a cache's or the kernel's), without waiting; None: use `read`.

        With a fingerprint from a cache, or by a look at the whole block if it is small.
        """
        if self._cache is None and not self._local:
            return None
        block_size = self.options.block_size
        index, inside = divmod(offset, block_size)
        if inside + length <= block_size:
            wanted = part_of(fingerprint, index) if fingerprint else b""
            return self._part_now(slice_id, index, block_length(size, index, block_size), inside, length, wanted)
        parts: list[bytes | bytearray] = []
        for index, inside, part in block_ranges(offset, length, block_size):
            wanted = part_of(fingerprint, index)
            data = self._part_now(slice_id, index, block_length(size, index, block_size), inside, part, wanted)
            if data is None:
                return None
            parts.append(data)
        return b"".join(parts)

    def lend(self, slice_id: int, size: int, offset: int, length: int) -> FileRange | None:
        """The range as it lies in a local file in memory, within one block; None: use `read_now`.

        What is lent is to be used before anything else is awaited.  Nothing is that has to be checked or decoded.
        """
        index, inside = divmod(offset, self.options.block_size)
        key, whole = self._block(slice_id, size, index)
        if inside + length > whole:
            return None
        if self._cache is not None:
            cached = self._cache.lend(key, whole, inside, length)
            if cached is not None:
                self._count_hit(length)
                return cached
        path = self._store.local_path(key) if self._local else None
        lent = None if path is None else self._descriptors.lend(path, inside, length)
        if lent is not None:
            self.stats.get.requests += 1
            self.stats.get.bytes += length
        return lent

    @property
    def brings_in(self) -> bool:
        """Whether `lend` may find after `bring_in` what it did not find before, and a cache has no part in it."""
        return self._local and not self._caching and self._descriptors.tells

    async def bring_in(self, slice_id: int, size: int, offset: int, length: int) -> None:
        """Have a range within one block of a local store brought into memory, where `lend` finds it."""
        index, inside = divmod(offset, self.options.block_size)
        key, whole = self._block(slice_id, size, index)
        path = self._store.local_path(key) if self._local else None
        if path is None:
            return
        if whole <= INLINE_READ and self._reads.on_loop and self._on_loop_disk():
            start = time.monotonic()
            self._descriptors.bring_in(path, inside, length)
            self._reads.took(time.monotonic() - start)
            return
        read_in = partial(bring_in, path, inside, length, wait=True)
        await trio.to_thread.run_sync(read_in, limiter=self._downloads)

    def _on_loop_disk(self) -> bool:
        """Whether the objects are files on the disk that the loop waits for anyway: no other that hangs may hold it up."""
        if self._loops is None:
            root, disk = self._store.local_path("") if self._local else None, self.options.loop_disk
            try:
                self._loops = root is not None and disk == os.stat(root).st_dev
            except OSError:  # not made yet
                return False
        return self._loops

    def _part_now(
        self, slice_id: int, index: int, size: int, inside: int, length: int, wanted: bytes
    ) -> bytes | bytearray | None:
        key = block_key(slice_id, index, size, hash_prefix=self.options.hash_prefix)
        if self._cache is not None:
            cached = self._cache.get_now(key, size, inside, length)
            if cached is not None:
                self._count_hit(length)
                return cached
        if not self._local or inside + length > size or (wanted and size > INLINE_READ):
            return None
        start, end = (0, size) if wanted else (inside, inside + length)
        path = self._store.local_path(key)
        data = None if path is None else self._descriptors.read(path, start, end - start)
        if data is None or (wanted and fingerprint_of(data) != wanted):
            return None  # `read` knows what to do about a bad one
        self.stats.fingerprints_checked += bool(wanted)
        self.stats.get.requests += 1
        self.stats.get.bytes += len(data)
        return data if end - start == length else data[inside : inside + length]

    async def read(self, slice_id: int, size: int, offset: int, length: int, fingerprint: bytes = b"") -> Buffer:
        """The bytes [offset, offset+length) of the slice, which has `size`.  Raises StoreError, never gives fewer.

        With the slice's fingerprint blocks are read whole, and checked.
        """
        if length <= INLINE_READ:
            at_once = self.read_now(slice_id, size, offset, length, fingerprint)
            if at_once is not None:
                return at_once
        block_size = self.options.block_size
        ranges = list(block_ranges(offset, length, block_size))
        if fingerprint and self._cache is None:
            self._cache = MemoryCache(DECODED_BYTES)  # reading on must not read and check the block again

        async def fetch(index: int, inside: int, part: int) -> Buffer:
            key, whole = self._block(slice_id, size, index)
            return await self._read_part(key, whole, inside, part, part_of(fingerprint, index))

        if len(ranges) == 1:
            return await fetch(*ranges[0])
        parts: list[Buffer] = [b""] * len(ranges)

        async def fill(place: int, index: int, inside: int, part: int) -> None:
            parts[place] = await fetch(index, inside, part)

        await fetch_together(fill, ((place, *each) for place, each in enumerate(ranges)))
        return b"".join(parts)

    async def _read_part(self, key: str, size: int, inside: int, length: int, wanted: bytes) -> Buffer:
        """A part of one block, of `size` plain bytes; of its fingerprint if one is wanted."""
        cache = self._cache
        if cache is not None:
            if cache.holds(key):
                cached = await self._from_cache(cache, key, size, inside, length)
                if cached is not None:
                    self._count_hit(length)
                    return cached
            staged = await self._read_staged(key, size, wanted)
            if staged is not None:
                self._count_hit(length)
                return staged if length == size else staged[inside : inside + length]
            self.stats.misses += 1
            self.stats.miss_bytes += length
        if self._ranged and not wanted and length < size and (not self._caching or (inside > 0 and length * 4 <= size)):
            if self._caching:
                self._prefetch(key, size, wanted)  # where one part is read others will be

            async def fetch() -> Buffer:
                return await trio.to_thread.run_sync(self._fetch_range, key, inside, length, limiter=self._downloads)

            return await self._flights.run((key, inside, length, b""), fetch)
        block = await self._load(key, size, wanted)
        return block if length == size else block[inside : inside + length]

    async def _read_staged(self, key: str, size: int, wanted: bytes) -> bytes | None:
        """The block if it is staged, and only its staged file is left of it; None: ask the store."""
        staging = self.staging
        if staging is None:
            return None
        block = staging.get(key)
        if block is not None:
            folders = [block.folder]
        elif not staging.scanned:  # it may lie in any
            folders = [folder for folder in staging.dirs if folder.cache.usable]
        else:
            return None
        for folder in folders:
            try:
                data = await folder.disk.run(folder.load, key, size)
                require(key, data, wanted)
            except FileNotFoundError:  # uploaded meanwhile
                continue
            except (OSError, BadObject) as error:  # the store may have it all the same
                log.warning("staged block %s cannot be read: %s", key, error)
            else:
                return data
        return None

    async def _from_cache(self, cache: BlockCache, key: str, size: int, inside: int, length: int) -> bytes | None:
        """None: not cached, or on a disk that hangs; the thread that waits for it is left to itself."""
        asked = False

        def get() -> bytes | None:
            nonlocal asked
            asked = True
            return cache.get(key, size, inside, length)

        with trio.move_on_after(CACHE_PATIENCE_S):
            return await trio.to_thread.run_sync(get, limiter=self._cache_reads, abandon_on_cancel=True)
        if asked:  # else others kept the threads, and this disk may be sound
            cache.unanswered(key)
        return None

    async def _load(self, key: str, size: int, wanted: bytes) -> Buffer:
        """The whole block, kept in the cache."""

        async def fetch() -> Buffer:
            if size <= INLINE_READ and self._ranged:
                block = await self._fetch_on_loop(key, size, wanted)
                if block is not None:
                    return block
            return await trio.to_thread.run_sync(self._fetch_block, key, size, wanted, limiter=self._downloads)

        return await self._flights.run((key, 0, size, wanted), fetch)

    async def _fetch_on_loop(self, key: str, size: int, wanted: bytes) -> Buffer | None:
        """A small block that is stored as it is; None: a thread shall fetch it, which knows what to do about faults."""
        async with self._downloads:
            errand = self._store.errand(key, size)
            data = None if errand is None else await self._run_errand(key, errand)
        if data is None or len(data) != size or (wanted and fingerprint_of(data) != wanted):
            return None
        self.stats.fingerprints_checked += bool(wanted)
        self._remember(key, data)
        return data

    async def _run_errand(self, key: str, errand: Errand) -> bytes | None:
        counts = self.stats.get
        start = time.perf_counter()
        try:
            data = await run_errand(errand)
        except StoreError as error:
            counts.errors += 1
            log.debug("object %s: %s; asking again", key, error)
            return None
        finally:
            counts.requests += 1
            counts.seconds += time.perf_counter() - start
        counts.bytes += len(data)
        return data

    def _fetch_range(self, key: str, inside: int, length: int) -> Buffer:
        data = self._get(key, inside, length)
        if len(data) != length:
            log.error("object %s is bad: it ends %d bytes too early", key, length - len(data))
            raise BadObject(f"{key}: it ends {length - len(data)} bytes too early")
        return data

    def _fetch_block(self, key: str, size: int, wanted: bytes) -> Buffer:
        try:
            block = self._whole(key, size, wanted)
        except BadObject:
            copy = right_copy(self.options, key, size, wanted) if wanted else None
            if copy is None:
                raise
            self._mend(key, *copy)
            block = copy[1]
        self._remember(key, block)
        return block

    def _remember(self, key: str, block: Buffer) -> None:
        if self._cache is not None and self.keeps(len(block)):
            self._cache.add(key, block if isinstance(block, bytes) else bytes(block))

    def _whole(self, key: str, size: int, wanted: bytes) -> Buffer:
        data = self._get(key, 0, None)
        try:
            return self._decode(key, data, size, wanted)
        except BadObject as error:
            log.error("object %s is bad: %s", key, str(error).removeprefix(f"{key}: "))
            raise

    def _decode(self, key: str, data: Buffer, size: int, wanted: bytes) -> Buffer:
        """The block's plain bytes.  BadObject for anything but what was written, as far as that can be told."""
        try:
            block = self._codec.decode(data, size)
        except BadObject as error:
            raise BadObject(f"{key}: {error}") from error
        if wanted:
            self.stats.fingerprints_checked += 1
            try:
                require(key, block, wanted)
            except BadObject:
                self.stats.fingerprints_wrong += 1
                raise
        return block

    def _mend(self, key: str, path: str, block: bytes) -> bool:
        """Put the right bytes of a block, from the file at `path`, in the place of its bad object; whether that was done."""
        if self.options.read_only:
            advice = "fsck --verify --repair, or a mount that may write, puts them back"
            log.warning("object %s stays bad: nothing may be changed; %s has the right bytes: %s", key, path, advice)
            return False
        try:
            self._upload(self._impatient, key, block)
            self._store.sync([key])
        except StoreError as error:
            log.error("object %s cannot be mended: %s", key, error)
            return False
        self.stats.fingerprints_mended += 1
        log.warning("object %s is mended: %s had the right bytes", key, path)
        return True

    async def verify(self, key: str, size: int, wanted: bytes = b"") -> None:
        """Read a block of `size` plain bytes from the store, past the caches; with its fingerprint, mend it if it can be.

        StoreError where it is missing, or bad and stays so.
        """
        await trio.to_thread.run_sync(self._verify, key, size, wanted, limiter=self._downloads)

    def _verify(self, key: str, size: int, wanted: bytes) -> None:
        try:
            data = _counted(self.stats.get, lambda: self._store.get(key))
            self.stats.get.bytes += len(data)
            self._decode(key, data, size, wanted)
        except BadObject as error:
            copy = right_copy(self.options, key, size, wanted) if wanted else None
            if copy is None or not self._mend(key, *copy):
                raise
            log.debug("object %s was bad: %s", key, error)

    def _get(self, key: str, offset: int, length: int | None) -> bytes:
        try:
            data = _counted(self.stats.get, lambda: self._store.get(key, offset, length))
        except ObjectMissing as error:  # whoever asked may know better, or where else to look
            raise ObjectMissing(f"object {key} is missing in {self._store.describe()}") from error
        except BadObject as error:
            log.error("object %s is bad: %s", key, str(error).removeprefix(f"{key}: "))
            raise
        except StoreError as error:
            log.error("object %s cannot be read: %s", key, error)
            raise
        self.stats.get.bytes += len(data)
        return data

    def _count_hit(self, length: int) -> None:
        self.stats.hits += 1
        self.stats.hit_bytes += length

    # -- writing

    async def put(
        self, slice_id: int, index: int, data: memoryview | bytes | bytearray, *, stage: bool = True, mark: bool = False
    ) -> bytes:
        """Store one block; `data` may change again once this returns.  Not durable before `sync`.  Raises StoreError.

        With writeback the block is staged and uploaded later, unless `stage` is off.  The block's fingerprint with `mark`,
        b"" without.
        """
        size = len(data)
        first = mark and (size <= INLINE_FINGERPRINT or (stage and self.options.writeback))
        fingerprint = await _mark(data) if first else b""
        key = block_key(slice_id, index, size, hash_prefix=self.options.hash_prefix)
        staged = stage and self.options.writeback and await self._stage(key, data)
        if not staged:
            if self.staging is not None:
                await self.staging.make_way(key)
            fingerprint = await self._put_object(key, data, mark=mark and not first) or fingerprint
        self._unsynced.add(key)
        if len(self._unsynced) >= MOST_UNSYNCED:
            self._many_unsynced.set()
        if not staged and self._cache is not None:
            if self._cache.holds(key):  # another block's: a power cut took its slice, and the id was drawn again
                with trio.move_on_after(CACHE_PATIENCE_S):
                    await trio.to_thread.run_sync(
                        self._cache.remove, key, limiter=self._cache_reads, abandon_on_cancel=True
                    )
            if size < self.options.block_size or self.options.cache_large_write:
                self._cache.add(key, bytes(data))
        return fingerprint

    async def _stage(self, key: str, data: Buffer) -> bool:
        if self.staging is None:
            return False
        inline = len(data) <= INLINE_PUT and self._puts.on_loop
        start = time.monotonic()
        staged = await self.staging.put(key, data, inline=inline)
        if inline:
            self._puts.took(time.monotonic() - start)
        return staged

    async def _put_object(self, key: str, data: Buffer, *, mark: bool) -> bytes:
        """Store the block; its fingerprint with `mark`, made by the thread that uploads: the bytes are near it then."""
        inline = len(data) <= INLINE_PUT and self._puts.on_loop and self._on_loop_disk()
        if inline and self._store.local_path(key) is not None and self._put_inline(key, data):
            return b""
        self.stats.uploading += 1
        try:
            return await trio.to_thread.run_sync(self._upload, self._store, key, data, mark, limiter=self._uploads)
        finally:
            self.stats.uploading -= 1

    def _put_inline(self, key: str, data: Buffer) -> bool:
        """Whether the block is stored; if not, a thread shall try again, patiently."""
        start = time.monotonic()
        try:
            _counted(self.stats.put, lambda: self._impatient.put(key, data))
        except StoreFull:
            raise
        except StoreError as error:
            log.warning("put %s: %s; trying again", key, error)
            return False
        self._puts.took(time.monotonic() - start)
        self.stats.put.bytes += len(data)
        return True

    def _upload(self, store: ObjectStore, key: str, data: Buffer, mark: bool = False) -> bytes:
        fingerprint = fingerprint_of(data) if mark else b""
        encoded = self._codec.encode(data)
        _counted(self.stats.put, lambda: store.put(key, encoded))
        self.stats.put.bytes += len(encoded)
        return fingerprint

    def _upload_once(self, key: str, data: Buffer) -> None:
        """For staged blocks: whoever uploads them has patience enough, and can be cancelled."""
        self._upload(self._impatient, key, data)

    def _exists(self, key: str) -> bool:
        try:
            self._impatient.head(key)
        except ObjectMissing:
            return False
        return True

    def _unsynced_now(self, key: str) -> bool:
        return key in self._unsynced

    async def sync(self) -> None:
        """Return once every block put before this call is durable.  Raises StoreError: some of them may be lost."""
        failure: StoreError | None = None
        # A round under way may have taken this caller's blocks; one that starts after it has taken all that are left.
        for _ in range(2):
            flushing = self._sync_round
            if flushing is not None:
                await flushing.done.wait()
                failure = failure or flushing.error
            elif self._unsynced or self.inherits:
                failure = await self._flush_unsynced() or failure
                break
        if failure is None:
            failure, self._sync_error = self._sync_error, None
        if failure is not None:
            raise failure

    async def _flush_unsynced(self) -> StoreError | None:
        """One round: flush all that is unsynced now."""
        keys, self._unsynced = self._unsynced, set()
        self._many_unsynced = trio.Event()
        flushing = self._sync_round = _SyncRound()
        try:
            if self.inherits:
                self.inherits = False
                await trio.to_thread.run_sync(self._sync_all)
            await self._sync_keys(keys)
        except StoreError as error:
            # The keys are not put back: the kernel has dropped their dirty pages, and a second flush would claim success.
            log.error("flushing %d objects to disk: %s", len(keys), error)
            flushing.error = error
        except BaseException:
            self._unsynced |= keys
            raise
        finally:
            self._sync_round = None
            flushing.done.set()
        return flushing.error

    def _sync_all(self) -> None:
        """Who syncs a file that a mount wrote before it died relies on all of its blocks.  Raises StoreError."""
        if self.staging is not None:
            for folder in self.staging.dirs:
                folder.sync_all()
        self._store.sync_all()

    async def _sync_keys(self, keys: set[str]) -> None:
        """Flush the blocks where they are: staged, or in the store.  Raises StoreError, after it has tried both."""
        failure: StoreError | None = None
        if self.staging is not None and self.staging:
            staged = [block for key in keys if (block := self.staging.get(key)) is not None]
            if staged:
                keys = keys.difference(block.key for block in staged)
                try:
                    await self._uploader.sync(staged)
                except FlushHangs as error:
                    self._unsynced |= error.keys  # another flush may reach them
                    failure = error
                except StoreError as error:
                    failure = error
        if keys:
            await trio.to_thread.run_sync(self._store.sync, keys)
        if failure is not None:
            raise failure

    # -- removing

    async def remove(self, slice_id: int, size: int) -> None:
        """Delete all blocks of a slice, cached copies too.  Missing ones are success.  Raises StoreError."""
        keys = block_keys(slice_id, size, self.options.block_size, hash_prefix=self.options.hash_prefix)
        for key in keys:
            self._unsynced.discard(key)
            path = self._store.local_path(key)
            if path is not None:
                self._descriptors.drop(path)
        gone: set[str] = set()
        never: set[str] = set()
        if self.staging is not None:
            gone, never = await self.staging.discard(keys)
        try:
            for start in range(0, len(keys), REMOVE_BATCH):
                batch = keys[start : start + REMOVE_BATCH]
                delete = partial(self._delete, batch, gone, never)
                await trio.to_thread.run_sync(delete, limiter=self._removals, abandon_on_cancel=True)
        finally:
            if self.staging is not None:
                self.staging.left(gone)

    def _delete(self, keys: list[str], staged: set[str], never_put: set[str]) -> None:
        for key in keys:
            if self._cache is not None:
                self._cache.remove(key)
            # Where its file has gone another mount of the folder has given it to the store.
            gone = key in staged and not self._unstage(key)
            if gone or key not in never_put:
                _counted(self.stats.delete, lambda key=key: self._store.delete(key))  # type: ignore[misc]

    def _unstage(self, key: str) -> bool:
        """Whether the block was staged until now.  Raises StoreError."""
        try:
            return self.staging is not None and self.staging.unlink(key)
        except OSError as error:
            raise StoreError(f"remove the staged block {key}: {error.strerror}") from error

    # -- background

    def prefetch(self, slice_id: int, size: int, index: int, fingerprint: bytes = b"") -> None:
        """Bring a block into the cache soon (a local store's: into the kernel's), if there is one and time for it."""
        if self._cache is None and not self._local:
            return
        key, length = self._block(slice_id, size, index)
        if length > 0 and (self._cache is None or self.keeps(length)):
            self._prefetch(key, length, part_of(fingerprint, index))

    def _prefetch(self, key: str, size: int, wanted: bytes) -> None:
        if self.options.prefetch <= 0 or (self._cache is not None and self._cache.holds(key)):
            return
        try:
            self._to_prefetch.send_nowait((key, size, wanted))
        except trio.WouldBlock:
            return  # reads in progress matter more

    def keeps(self, size: int) -> bool:
        """Whether a block of so many bytes is cached when it is read whole."""
        return self._cache is not None and (size < self.options.block_size or not self.options.cache_partial_only)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Prefetch, bound what is remembered for `sync`, close idle descriptors; until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self.options.prefetch * (PREFETCHERS if self._local else 1)):
                nursery.start_soon(self._run_prefetch)
            nursery.start_soon(self._run_bounding)
            if self.staging is not None:
                nursery.start_soon(self._uploader.run)
            nursery.start_soon(self._run_giving_back)
            task_status.started()
            while True:
                await trio.sleep(IDLE_SWEEP_S)
                self._descriptors.drop_idle()
                if self._cache is not None:
                    self._cache.drop_idle()

    async def _run_giving_back(self) -> None:
        """When no block has come or gone for a while, the memory that is kept for them goes back to the system."""
        seen = given_back = 0
        while True:
            await trio.sleep(HEAP_IDLE_S)
            requests = self.stats.get.requests + self.stats.put.requests
            if requests == seen != given_back:
                await trio.to_thread.run_sync(heap.give_back)
                given_back = requests
            seen = requests

    async def _run_prefetch(self) -> None:
        while True:
            key, size, wanted = await self._prefetches.receive()
            if not wanted and not self._caching:
                path = self._store.local_path(key)
                if path is not None:
                    await trio.to_thread.run_sync(partial(bring_in, path, 0, 0, wait=False))
            elif self._cache is not None and not self._cache.holds(key):
                try:
                    block = await self._load(key, size, wanted)
                    if not self.keeps(size):  # whole, but for the sake of a part
                        self._cache.add(key, bytes(block))
                except StoreError as error:
                    log.debug("prefetch %s: %s", key, error)
                except Exception:  # nobody waits for it, and it must not end the mount
                    log.exception("prefetch %s", key)

    async def _run_bounding(self) -> None:
        while True:
            await self._many_unsynced.wait()
            try:
                await self.sync()
            except StoreError as error:
                self._sync_error = error  # the next caller of sync must hear of it

    def hurry(self) -> None:
        """What still waits for a store that does not answer gives up: nothing that has to be kept is under way any more."""
        self._store.close()

    async def close(self) -> None:
        """Let go of everything; what must be durable has been synced before."""
        self._descriptors.close()
        if self.staging is not None:
            self.staging.say_what_stays()
        if self._cache is not None:
            await trio.to_thread.run_sync(self._cache.close)
        await trio.to_thread.run_sync(self._store.close)


async def _mark(data: Buffer) -> bytes:
    if len(data) <= INLINE_FINGERPRINT:
        return fingerprint_of(data)
    return await trio.to_thread.run_sync(fingerprint_of, data)


def _counted(counts: ObjectCounts, call: Callable[[], T]) -> T:
    """Run one request and book it."""
    start = time.perf_counter()
    try:
        return call()
    except StoreError:
        counts.errors += 1
        raise
    finally:
        counts.requests += 1
        counts.seconds += time.perf_counter() - start
