"""Reading ahead and reading together: how many requests are on their way, how often a byte is fetched, what bounds it."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from jfs.chunk.memory_cache import MemoryCache
from jfs.errors import FsError, StoreError
from jfs.meta.engines import open_engine
from jfs.meta.types import CHUNK_SIZE, Slice
from jfs.object.retry import Retry
from jfs.vfs import read_ahead as read_ahead_module
from jfs.vfs.handles import Handle
from jfs.vfs.vfs import VfsOptions
from tests.deadline import eventually_async
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address
from tests.vfs.mounted import BLOCK, KIB, MIB, RDONLY, Mounted, ScriptedStore, mounted, pattern

LATENCY_S = 0.02


class LatentStore(ScriptedStore):
    """Each get takes a while; counts what is on its way, and what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._delay = threading.Event()
        self.under_way = 0
        self.most = 0
        self.gets: list[tuple[str, int, int | None]] = []
        self.broken: Exception | None = None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._lock:
            self.gets.append((key, offset, length))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            self._delay.wait(LATENCY_S)
            if self.broken is not None:
                raise self.broken
            return super().get(key, offset, length)
        finally:
            with self._lock:
                self.under_way -= 1

    @property
    def fetched(self) -> int:
        """Bytes that were asked for."""
        return sum(BLOCK if length is None else length for _, _, length in self.gets)


@asynccontextmanager
async def with_file(
    size: int, *, cached: bool, buffer: int = 16 * MIB, **chunk: object
) -> AsyncIterator[tuple[Mounted, LatentStore, bytes]]:
    """A mount with a file `f` of so many bytes, none of which is cached."""
    store = LatentStore()
    options = VfsOptions(buffer_size=buffer, max_readahead=8 * BLOCK)
    cache = MemoryCache(64 * MIB) if cached else None
    async with mounted(store=store, options=options, cache=cache, chunk=chunk) as m:
        content = pattern(size)
        handle = await m.create(b"f")
        await m.write(handle, 0, content)
        await m.close(handle)
        yield m, store, content


async def read_on(m: Mounted, handle: Handle, start: int, end: int, step: int = 16 * KIB) -> bytes:
    return b"".join([await m.read(handle, offset, step) for offset in range(start, end, step)])


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
async def test_a_sequential_read_keeps_several_downloads_in_flight(cached: bool) -> None:
    async with with_file(64 * BLOCK, cached=cached) as (m, store, content):
        handle = await m.open(b"f", RDONLY)
        assert await read_on(m, handle, 0, len(content)) == content
        assert 4 <= store.most <= 9  # the window of eight blocks, and the one that is waited for
        assert store.fetched <= len(content) + BLOCK  # what was read before it was known to go on
        if cached:
            assert m.vfs.reader.ahead.used == 0
        await m.close(handle)


async def test_it_does_so_over_a_database_that_makes_one_wait(tikv_cluster: Cluster) -> None:
    store = LatentStore()
    engine = open_engine(fresh_address(tikv_cluster), create=True)
    await engine.open()
    options = VfsOptions(buffer_size=16 * MIB, max_readahead=8 * BLOCK)
    async with mounted(engine=engine, store=store, options=options) as m:
        size = CHUNK_SIZE + 4 * MIB
        handle = await m.create(b"f")
        for start in range(CHUNK_SIZE - 4 * MIB, size, MIB):
            await m.write(handle, start, pattern(MIB, start))
        await m.close(handle)
        handle = await m.open(b"f", RDONLY)
        tikv_cluster.control.delay(kv_ms=10)
        try:
            for start in range(CHUNK_SIZE - 4 * MIB, size, MIB):
                assert await read_on(m, handle, start, start + MIB, 64 * KIB) == pattern(MIB, start)
        finally:
            tikv_cluster.control.delay()
        assert store.most >= 4
        await m.close(handle)
    await engine.close()


async def test_several_streams_of_one_handle() -> None:
    size = 24 * MIB
    async with with_file(size, cached=False, buffer=32 * MIB) as (m, store, content):
        handle = await m.open(b"f", RDONLY)
        begin, length, step = (0, 10 * MIB, 20 * MIB), 16 * BLOCK, 32 * KIB
        read = dict.fromkeys(begin, b"")
        for at in range(0, length, step):
            for start in begin:
                read[start] += await m.read(handle, start + at, step)
        assert all(read[start] == content[start : start + length] for start in begin)
        assert store.most >= 6
        assert store.fetched < 2 * 3 * (length + 8 * BLOCK)
        await m.close(handle)


async def test_random_reads_fetch_parts_of_blocks() -> None:
    async with with_file(24 * MIB, cached=False) as (m, store, content):
        handle = await m.open(b"f", RDONLY)
        places = [(number * 7919 * 4096 * 3) % (24 * MIB - 4096) // 4096 * 4096 for number in range(40)]
        for at in places:
            assert await m.read(handle, at, 4096) == content[at : at + 4096]
        assert all(length == 4096 for _, _, length in store.gets)
        await m.close(handle)


@pytest.mark.parametrize("prefetch", [0, 1])
async def test_a_cache_gets_the_whole_block_after_a_part_of_it(prefetch: int) -> None:
    async with with_file(24 * MIB, cached=True, prefetch=prefetch) as (m, store, content):
        handle = await m.open(b"f", RDONLY)
        at = 10 * BLOCK + 4096
        assert await m.read(handle, at, 4096) == content[at : at + 4096]
        if prefetch:
            await eventually_async(lambda: len(store.gets) == 2)
            await eventually_async(lambda: m.vfs.blocks.cache_counts().blocks == 1)
        lengths = {length for _, _, length in store.gets}
        assert lengths == ({4096, None} if prefetch else {4096})
        assert await m.read(handle, at + 8192, 4096) == content[at + 8192 : at + 12288]
        assert len(store.gets) == 2
        await m.close(handle)


async def test_a_request_over_many_blocks_fetches_them_together() -> None:
    async with with_file(16 * BLOCK, cached=False) as (m, store, content):
        handle = await m.open(b"f", RDONLY)
        assert await m.read(handle, 100, 8 * BLOCK) == content[100 : 100 + 8 * BLOCK]
        assert store.most >= 8
        await m.close(handle)


async def test_the_budget_bounds_what_is_ahead() -> None:
    async with with_file(64 * BLOCK, cached=False, buffer=10 * BLOCK) as (m, _, content):
        ahead = m.vfs.reader.ahead
        most = 0
        handles = [await m.open(b"f", RDONLY) for _ in range(3)]
        for at in range(0, 32 * BLOCK, 16 * KIB):
            for handle in handles:
                assert await m.read(handle, at, 16 * KIB) == content[at : at + 16 * KIB]
                most = max(most, ahead.used)
        assert 0 < most <= 3 * BLOCK
        for handle in handles:
            await m.close(handle)


async def test_few_downloads_leave_one_for_who_waits() -> None:
    async with with_file(64 * BLOCK, cached=False, max_downloads=4) as (m, store, _):
        handle = await m.open(b"f", RDONLY)
        await read_on(m, handle, 0, 8 * BLOCK)
        assert store.most <= 4
        assert m.vfs.reader.ahead._most == 3
        await m.close(handle)


async def test_what_nobody_came_for_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with with_file(64 * BLOCK, cached=False) as (m, _, content):
        handle = await m.open(b"f", RDONLY)
        await read_on(m, handle, 0, 4 * BLOCK)
        ahead = m.vfs.reader.ahead
        assert ahead.used
        monkeypatch.setattr(read_ahead_module, "UNUSED_S", 0.0)
        await eventually_async(lambda: ahead.used == 0, what="blocks ahead are dropped")
        monkeypatch.undo()
        assert await read_on(m, handle, 4 * BLOCK, 64 * BLOCK) == content[4 * BLOCK :]
        await m.close(handle)


@pytest.mark.logs("cannot be read", "read inode", "reading ahead, block")
@pytest.mark.parametrize("error", [StoreError("the store is away"), ZeroDivisionError("a bug")], ids=["fault", "bug"])
async def test_a_store_that_fails_ahead_is_asked_again(error: Exception) -> None:
    async with with_file(32 * BLOCK, cached=False) as (m, store, content):
        handle = await m.open(b"f", RDONLY)
        assert await read_on(m, handle, 0, 2 * BLOCK) == content[: 2 * BLOCK]
        store.broken = error
        await eventually_async(lambda: store.under_way == 0)
        with pytest.raises((FsError, ZeroDivisionError)):
            for at in range(2 * BLOCK, 32 * BLOCK, 16 * KIB):
                await m.read(handle, at, 16 * KIB)
        store.broken = None
        assert await read_on(m, handle, 2 * BLOCK, 32 * BLOCK) == content[2 * BLOCK :]
        await m.close(handle)


@pytest.mark.logs("reading ahead, inode")
async def test_records_that_fail_ahead_do_not_end_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        data = pattern(4 * BLOCK)
        handle = await m.create(b"f")
        await m.write(handle, CHUNK_SIZE - len(data), data * 2)
        await m.close(handle)
        read_chunk = m.meta.read_chunk
        failed = trio.Event()

        async def buggy(ino: int, index: int) -> list[Slice]:
            if index == 1 and not failed.is_set():
                failed.set()
                raise ZeroDivisionError
            return await read_chunk(ino, index)

        monkeypatch.setattr(m.meta, "read_chunk", buggy)
        handle = await m.open(b"f", RDONLY)
        assert await read_on(m, handle, CHUNK_SIZE - len(data), CHUNK_SIZE) == data
        await failed.wait()
        assert await m.read(handle, CHUNK_SIZE, len(data)) == data
        await m.close(handle)


async def test_readers_of_one_block_share_its_download() -> None:
    async with with_file(32 * BLOCK, cached=False) as (m, store, content):
        handles = [await m.open(b"f", RDONLY) for _ in range(4)]

        async def read(handle: Handle) -> None:
            assert await read_on(m, handle, 0, 32 * BLOCK) == content

        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(read, handle)
        keys = [key for key, _, length in store.gets if length is None or length == BLOCK]
        assert len(keys) < 2 * 32
        for handle in handles:
            await m.close(handle)


async def test_a_local_store_is_left_to_the_kernel(tmp_path: Path) -> None:
    from jfs.object.file import FileStore

    store = FileStore(f"{tmp_path}/objects/")
    store.create()
    async with mounted(store=store) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(16 * BLOCK))
        await m.close(handle)
        handle = await m.open(b"f", RDONLY)
        assert await read_on(m, handle, 0, 16 * BLOCK) == pattern(16 * BLOCK)
        assert m.vfs.reader.ahead.used == 0
        await m.close(handle)


@pytest.mark.logs("trying again", "cannot be read")
async def test_a_store_that_is_away_does_not_keep_a_mount_that_ends() -> None:
    """What is read ahead has the patience of minutes; nobody waits for it any more."""
    away = LatentStore()
    away.broken = StoreError("away")
    with trio.fail_after(60):
        async with mounted(store=Retry(away, 10)) as m:
            assert m.vfs.reader.ahead.want(1, BLOCK, 0)
            await eventually_async(lambda: len(away.gets) > 1)
