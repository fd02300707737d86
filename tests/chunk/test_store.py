"""The block store on memory and file stores: ranges, one flight per block, durability rounds, bad objects."""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jfs.chunk.cache import DiskCache
from jfs.chunk.layout import block_key
from jfs.chunk.memory_cache import MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.promptness import Promptness
from jfs.chunk.store import INLINE_READ, BlockStore
from jfs.errors import BadObject, ObjectMissing, StoreError, StoreFull
from jfs.object.file import FileStore
from jfs.object.memory import MemoryStore
from jfs.object.retry import Retry
from jfs.object.store import Buffer, ObjectStore
from tests.deadline import eventually_async
from tests.pages import drop_pages

BLOCK = 64 << 10


def pattern(size: int, seed: int = 0) -> bytes:
    return bytes((i * 7 + i // 251 + seed) & 255 for i in range(size))


async def put_slice(blocks: BlockStore, slice_id: int, data: bytes) -> None:
    for index in range(-(-len(data) // BLOCK)):
        await blocks.put(slice_id, index, memoryview(data)[index * BLOCK : (index + 1) * BLOCK])


def make(store: ObjectStore, *, compression: str = "none", cache: MemoryCache | None = None) -> BlockStore:
    return BlockStore(store, ChunkOptions(block_size=BLOCK, compression=compression), cache)


@pytest.fixture(params=["file", "mem"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return FileStore(f"{tmp_path}/obj/") if request.param == "file" else MemoryStore()


class SlowStore(MemoryStore):
    """Gets wait for `gate`; both ways are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gets: list[str] = []
        self.synced: list[set[str]] = []

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets.append(key)
        assert self.gate.wait(60)
        return super().get(key, offset, length)

    def sync(self, keys: Iterable[str]) -> None:
        self.synced.append(set(keys))
        assert self.gate.wait(60)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_every_range_reads_back(store: ObjectStore, compression: str) -> None:
    data = pattern(3 * BLOCK + 1234)
    blocks = make(store, compression=compression)
    await put_slice(blocks, 77, data)
    for offset in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, len(data) - 1):
        for wanted in (1, 100, BLOCK, BLOCK + 1, 2 * BLOCK, len(data)):
            length = min(wanted, len(data) - offset)
            assert await blocks.read(77, len(data), offset, length) == data[offset : offset + length]
            now = blocks.read_now(77, len(data), offset, length)
            assert now is None or now == data[offset : offset + length]
    await blocks.close()


async def test_objects_are_named_as_the_format_says(tmp_path: Path) -> None:
    blocks = BlockStore(FileStore(f"{tmp_path}/"), ChunkOptions(block_size=BLOCK, hash_prefix=True))
    await put_slice(blocks, 4097, pattern(BLOCK + 10))
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["chunks/01/0/4097_0_65536", "chunks/01/0/4097_1_10"]


async def test_a_local_read_needs_no_thread(tmp_path: Path) -> None:
    blocks = make(FileStore(f"{tmp_path}/"))
    data = pattern(2 * BLOCK)
    await put_slice(blocks, 5, data)
    assert blocks.read_now(5, len(data), 10, 1000) == data[10:1010]
    assert blocks.read_now(5, len(data), BLOCK - 10, 20) == data[BLOCK - 10 : BLOCK + 10]
    assert blocks.read_now(6, 10, 0, 10) is None
    await blocks.close()


async def test_remove_takes_blocks_cached_copies_and_descriptors(store: ObjectStore) -> None:
    cache = MemoryCache(1 << 20)
    blocks = make(store, cache=cache)
    data = pattern(BLOCK + 5)
    await put_slice(blocks, 9, data)
    await blocks.read(9, len(data), 0, len(data))
    await blocks.remove(9, len(data))
    await blocks.remove(9, len(data))
    assert list(store.list()) == []
    assert cache.used == 0
    assert blocks.read_now(9, len(data), 0, 10) is None
    with pytest.raises(ObjectMissing):
        await blocks.read(9, len(data), 0, 10)


async def test_readers_of_one_block_share_a_flight() -> None:
    store = SlowStore()
    blocks = make(store, cache=MemoryCache(1 << 20))
    store.put(block_key(3, 0, 100), pattern(100))
    results: list[bytes] = []

    async def reader() -> None:
        results.append(bytes(await blocks.read(3, 100, 0, 100)))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert results == [pattern(100)] * 5
    assert len(store.gets) == 1


async def test_a_cancelled_leader_hands_over() -> None:
    store = SlowStore()
    blocks = make(store)
    store.put(block_key(3, 0, 100), pattern(100))
    results: list[bytes] = []
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            await blocks.read(3, 100, 0, 100)

    async def follow() -> None:
        results.append(bytes(await blocks.read(3, 100, 0, 100)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        leader.cancel()
        store.gate.set()
    assert results == [pattern(100)]


@pytest.mark.logs("is bad")
@pytest.mark.parametrize(
    ("compression", "damage"),
    [("none", "short"), ("lz4", "short"), ("zstd", "short"), ("lz4", "noise"), ("zstd", "noise")],
)
async def test_a_bad_object_is_named_and_never_returned(
    store: ObjectStore, compression: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = make(store, compression=compression)
    await blocks.put(8, 0, pattern(5000))
    key = block_key(8, 0, 5000)
    stored = store.get(key)
    store.put(key, stored[:-20] if damage == "short" else b"\xff" * len(stored))
    with pytest.raises(BadObject, match=key):
        await make(store, compression=compression).read(8, 5000, 100, 4900)
    assert any(key in record.getMessage() and record.levelname == "ERROR" for record in caplog.records)


async def test_a_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing, match=f"object {block_key(8, 1, BLOCK)} is missing in {store.describe()}"):
        await make(store).read(8, 3 * BLOCK, BLOCK + 100, 10)


class FailingStore(FileStore):
    """Fails the next `failures` puts and syncs."""

    failures = 0
    error: StoreError = StoreError("broken")

    def put(self, key: str, data: Buffer) -> None:
        self._maybe_fail()
        super().put(key, data)

    def sync(self, keys: Iterable[str]) -> None:
        self._maybe_fail()
        super().sync(keys)

    def _maybe_fail(self) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise self.error


@pytest.mark.logs("trying again")
@pytest.mark.parametrize("size", [100, BLOCK * 4])
async def test_a_failing_put_is_tried_again_off_the_loop(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    inner = FailingStore(f"{tmp_path}/")
    inner.failures = 3
    loop_thread = threading.get_ident()
    waited: list[bool] = []
    patient = Retry(inner, 10, wait=lambda _: waited.append(threading.get_ident() != loop_thread) or False)
    blocks = BlockStore(patient, ChunkOptions(block_size=1 << 20))
    await blocks.put(1, 0, pattern(size))
    assert waited
    assert all(waited)
    assert await blocks.read(1, size, 0, size) == pattern(size)
    assert "trying again" in caplog.text


def on_loop_disk(store: ObjectStore, folder: Path) -> BlockStore:
    """As where the metadata lies on the same disk: the loop waits for that one anyway."""
    return BlockStore(store, ChunkOptions(block_size=BLOCK, loop_disk=os.stat(folder).st_dev))


async def test_the_loop_waits_for_no_other_disk(tmp_path: Path) -> None:
    loop_thread = threading.get_ident()

    class Watched(FileStore):
        def put(self, key: str, data: Buffer) -> None:
            assert threading.get_ident() != loop_thread
            super().put(key, data)

    await make(Watched(f"{tmp_path}/")).put(1, 0, b"x")


async def test_slow_puts_leave_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[bool] = []
    loop_thread = threading.get_ident()

    class Watched(FileStore):
        def put(self, key: str, data: Buffer) -> None:
            where.append(threading.get_ident() == loop_thread)
            super().put(key, data)

    blocks = on_loop_disk(Watched(f"{tmp_path}/"), tmp_path)
    blocks._puts = Promptness(10.0)
    await blocks.put(1, 0, b"x")
    blocks._puts = Promptness(-1.0)
    await blocks.put(2, 0, b"x")
    await blocks.put(3, 0, b"x")
    blocks._puts = Promptness(10.0)
    monkeypatch.setattr("jfs.chunk.store.INLINE_PUT", 0)
    await blocks.put(4, 0, b"x")
    assert where == [True, True, False, False]


class Clock:
    """In place of `time`; stands still but for what it is told, which a busy machine's does not."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


async def test_one_slow_put_does_not_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have lost its processor for a moment; a disk that is busy is slow again and again."""
    clock = Clock()
    monkeypatch.setattr("jfs.chunk.store.time", clock)
    monkeypatch.setattr("jfs.chunk.promptness.time", clock)
    where: list[bool] = []
    loop_thread = threading.get_ident()
    delays_s = (0.4, 0.0, 0.0, 0.4, 0.4, 0.4, 0.4, 0.4, 0.0)
    delay_s = iter(delays_s)

    class Slow(FileStore):
        def put(self, key: str, data: Buffer) -> None:
            where.append(threading.get_ident() == loop_thread)
            clock.now += next(delay_s)
            super().put(key, data)

    blocks = on_loop_disk(Slow(f"{tmp_path}/"), tmp_path)
    blocks._puts = Promptness(0.2)
    for number in range(len(delays_s)):
        await blocks.put(number, 0, b"x")
    assert where[:6] == [True] * 6
    assert not where[-1]


@pytest.mark.parametrize("where", ["on the loop", "rests", "on another disk", "large"])
async def test_a_small_block_is_brought_in_from_a_quick_disk_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    threads = 0
    run_sync = trio.to_thread.run_sync

    async def counted(work: Callable[[], None], *args: Any, **options: Any) -> None:
        nonlocal threads
        threads += 1
        await run_sync(work, *args, **options)

    size = INLINE_READ + 1 if where == "large" else BLOCK
    disk = None if where == "on another disk" else os.stat(tmp_path).st_dev
    blocks = BlockStore(FileStore(f"{tmp_path}/"), ChunkOptions(block_size=1 << 20, loop_disk=disk))
    blocks._reads = Promptness(10.0)
    if where == "rests":
        blocks._reads = Promptness(-1.0)
        blocks._reads.took(0)
    await blocks.put(1, 0, pattern(size))
    path = tmp_path / block_key(1, 0, size)
    drop_pages(path)
    monkeypatch.setattr("jfs.chunk.store.trio.to_thread.run_sync", counted)
    assert blocks.lend(1, size, 100, BLOCK - 100) is None
    await blocks.bring_in(1, size, 100, BLOCK - 100)
    assert threads == (where != "on the loop")
    lent = blocks.lend(1, size, 100, BLOCK - 100)
    assert lent is not None
    assert os.pread(lent.file.fd, len(lent), lent.offset) == pattern(size)[100:BLOCK]
    path.unlink()
    await blocks.bring_in(2, size, 0, BLOCK)
    assert blocks.lend(2, size, 0, BLOCK) is None, "a missing object is the reader's error"


async def test_a_full_store_says_so_at_once(tmp_path: Path) -> None:
    inner = FailingStore(f"{tmp_path}/")
    inner.failures, inner.error = 1, StoreFull("no space")
    blocks = make(Retry(inner, 10))
    with pytest.raises(StoreFull):
        await blocks.put(1, 0, b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.logs("flushing")
async def test_sync_fails_for_all_whose_blocks_it_covered_and_only_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = FailingStore(f"{tmp_path}/")
    blocks = make(Retry(inner, 10))
    await blocks.put(1, 0, b"x")
    inner.failures = 1
    failed = []

    async def sync() -> None:
        try:
            await blocks.sync()
        except StoreError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(sync)
    assert len(failed) == 3
    await blocks.sync()
    assert "flushing" in caplog.text


async def test_sync_rounds_are_shared_and_cover_later_puts() -> None:
    store = SlowStore()
    blocks = make(store)
    await blocks.put(1, 0, b"a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocks.sync)
        await trio.testing.wait_all_tasks_blocked()
        await blocks.put(2, 0, b"b")
        for _ in range(4):
            nursery.start_soon(blocks.sync)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert store.synced == [{block_key(1, 0, 1)}, {block_key(2, 0, 1)}]
    await blocks.sync()
    assert len(store.synced) == 2


async def test_unsynced_blocks_are_bounded_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.chunk.store.MOST_UNSYNCED", 10)
    store = SlowStore()
    store.gate.set()
    blocks = make(store)
    async with trio.open_nursery() as nursery:
        await nursery.start(blocks.run)
        for number in range(10):
            await blocks.put(number, 0, b"x")
        with trio.fail_after(30):
            while not store.synced:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert len(store.synced[0]) == 10


async def test_prefetch_fills_the_cache() -> None:
    store = SlowStore()
    store.gate.set()
    cache = MemoryCache(1 << 20)
    blocks = make(store, cache=cache)
    data = pattern(2 * BLOCK)
    for index in range(2):
        store.put(block_key(1, index, BLOCK), data[index * BLOCK : (index + 1) * BLOCK])
    async with trio.open_nursery() as nursery:
        await nursery.start(blocks.run)
        blocks.prefetch(1, 2 * BLOCK, 1)
        blocks.prefetch(1, 2 * BLOCK, 2)  # past the end
        with trio.fail_after(30):
            while not cache.holds(block_key(1, 1, BLOCK)):
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert blocks.read_now(1, 2 * BLOCK, BLOCK, BLOCK) == data[BLOCK:]
    assert store.gets == [block_key(1, 1, BLOCK)]


async def test_what_the_cache_keeps() -> None:
    store = SlowStore()
    store.gate.set()
    cache = MemoryCache(1 << 20)
    blocks = make(store, cache=cache)
    await put_slice(blocks, 1, pattern(BLOCK + 10))
    assert not cache.holds(block_key(1, 0, BLOCK)), "full blocks are not cached on write"
    assert cache.holds(block_key(1, 1, 10)), "short ones are"
    await blocks.read(1, BLOCK + 10, 100, 100)
    assert not cache.holds(block_key(1, 0, BLOCK)), "a small part read from the middle is fetched alone"
    await blocks.read(1, BLOCK + 10, 0, 100)
    assert cache.holds(block_key(1, 0, BLOCK))
    assert blocks.stats.misses == 2
    await blocks.read(1, BLOCK + 10, 7, 100)
    assert blocks.stats.hits == 1


@pytest.mark.logs("flushing")
async def test_what_a_mount_left_that_died_is_flushed_once(tmp_path: Path) -> None:
    flushes: list[str] = []

    class Watched(FileStore):
        def sync(self, keys: Iterable[str]) -> None:
            flushes.append("some")
            super().sync(keys)

        def sync_all(self) -> None:
            flushes.append("all")
            if len(flushes) == 1:
                raise StoreError("broken")
            super().sync_all()

    blocks = make(Watched(f"{tmp_path}/"))
    await blocks.sync()
    assert flushes == []
    blocks.inherits = True
    with pytest.raises(StoreError, match="broken"):
        await blocks.sync()
    blocks.inherits = True
    await blocks.put(1, 0, b"x")
    await blocks.sync()
    await blocks.sync()
    assert flushes == ["all", "all", "some"]


@pytest.mark.logs("flushing", "are staged and not uploaded")
async def test_blocks_in_the_store_are_flushed_though_staged_ones_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[set[str]] = []

    class Watched(FileStore):
        def sync(self, keys: Iterable[str]) -> None:
            flushed.append(set(keys))

    options = ChunkOptions(
        block_size=BLOCK, uuid="u", cache_dirs=[f"{tmp_path}/cache"], free_space_ratio=0.0001, writeback=True
    )
    blocks = BlockStore(Watched(f"{tmp_path}/obj/"), options, DiskCache(options))

    async def broken(staged: object) -> None:
        raise StoreError("the folder and the store are away")

    await blocks.put(1, 0, b"staged")
    await blocks.put(2, 0, b"stored", stage=False)
    monkeypatch.setattr(blocks._uploader, "sync", broken)
    with pytest.raises(StoreError, match="away"):
        await blocks.sync()
    assert flushed == [{block_key(2, 0, 6)}]
    await blocks.close()


async def test_the_block_of_a_part_read_at_random_is_cached(tmp_path: Path) -> None:
    """Of those alone, with --cache-partial-only: what is read whole is read in a row, and not again."""
    options = ChunkOptions(
        block_size=1 << 20, uuid="u", cache_dirs=[f"{tmp_path}/cache"], free_space_ratio=0.0, cache_partial_only=True
    )
    cache = DiskCache(options)
    store = MemoryStore()
    blocks = BlockStore(store, options, cache)
    size = 2 << 20
    for index in (0, 1):
        store.put(block_key(1, index, 1 << 20), pattern(1 << 20))
    async with trio.open_nursery() as nursery:
        await nursery.start(blocks.run)
        await eventually_async(lambda: cache.dirs[0]._scanned)
        assert await blocks.read(1, size, 0, 1 << 20) == pattern(1 << 20)
        assert await blocks.read(1, size, (1 << 20) + 5000, 100) == pattern(1 << 20)[5000:5100]
        await eventually_async(lambda: blocks.holds(1, size, 1))
        nursery.cancel_scope.cancel()
    cache.wait_written()
    assert not blocks.holds(1, size, 0)
    await blocks.close()
