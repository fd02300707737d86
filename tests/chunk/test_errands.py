"""Small blocks that the loop fetches by itself, and the thread that knows better when that fails."""

import socket
import time

import pytest
import trio
import trio.testing

from jfs.chunk.fingerprint import fingerprint_of
from jfs.chunk.layout import block_key
from jfs.chunk.memory_cache import MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.store import INLINE_READ, BlockStore
from jfs.errors import ObjectMissing, StoreError
from jfs.object.memory import MemoryStore
from jfs.object.store import Errand

DATA = bytes(range(256)) * 16
SIZE = len(DATA)
KEY = block_key(1, 0, SIZE)
BLOCK = 4 << 20


class Scripted:
    """An errand that ends as it is told, once `arrive` was called."""

    def __init__(self, outcome: bytes | StoreError, deadline: float) -> None:
        self.deadline = deadline
        self.outcome = outcome
        self.dropped = False
        self._near, self._far = socket.socketpair()
        self.fileno = self._near.fileno

    def arrive(self) -> None:
        self._far.send(b"x")

    def go_on(self) -> bytes | None:
        self.close()
        if isinstance(self.outcome, StoreError):
            raise self.outcome
        return self.outcome

    def drop(self) -> None:
        self.dropped = True
        self.close()

    def close(self) -> None:
        self._near.close()
        self._far.close()


class Errands(MemoryStore):
    """Runs errands; `gets` are what threads asked for."""

    def __init__(self, outcome: bytes | StoreError = DATA, *, arrived: bool = True, seconds: float = 60.0) -> None:
        super().__init__()
        self.put(KEY, DATA)
        self.outcome = outcome
        self.seconds = seconds
        self.arrived = arrived
        self.gets: list[str] = []
        self.asked: list[tuple[str, int]] = []
        self.errands: list[Scripted] = []

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets.append(key)
        return super().get(key, offset, length)

    def errand(self, key: str, size: int) -> Errand | None:
        self.asked.append((key, size))
        errand = Scripted(self.outcome, time.monotonic() + self.seconds)
        if self.arrived:
            errand.arrive()
        self.errands.append(errand)
        return errand


def open_blocks(store: Errands, cache: MemoryCache | None = None, *, compression: str = "none") -> BlockStore:
    return BlockStore(store, ChunkOptions(block_size=BLOCK, compression=compression, max_downloads=2), cache)


async def test_a_small_block_needs_no_thread_and_is_cached() -> None:
    store, cache = Errands(), MemoryCache(1 << 20)
    blocks = open_blocks(store, cache)
    assert await blocks.read(1, SIZE, 0, 50) == DATA[:50]
    assert (store.asked, store.gets) == ([(KEY, SIZE)], [])
    assert cache.get(KEY, SIZE, 0, SIZE) == DATA
    assert (blocks.stats.get.requests, blocks.stats.get.bytes, blocks.stats.get.errors) == (1, SIZE, 0)
    await blocks.close()


async def test_without_a_cache_a_whole_block_is() -> None:
    store = Errands()
    blocks = open_blocks(store)
    assert await blocks.read(1, SIZE, 0, SIZE) == DATA
    assert (len(store.asked), store.gets) == (1, [])
    assert await blocks.read(1, SIZE, 0, 10) == DATA[:10]
    assert (len(store.asked), store.gets) == (1, [KEY])
    await blocks.close()


@pytest.mark.parametrize("outcome", [DATA[:-1], DATA + b"!", StoreError("no"), ObjectMissing("not here")])
async def test_what_fails_is_fetched_by_a_thread(outcome: bytes | StoreError) -> None:
    store = Errands(outcome)
    blocks = open_blocks(store, MemoryCache(1 << 20))
    assert await blocks.read(1, SIZE, 0, SIZE) == DATA
    assert store.gets == [KEY]
    assert blocks.stats.get.errors == isinstance(outcome, StoreError)
    await blocks.close()


async def test_fingerprints_count_on_the_loop_too() -> None:
    store = Errands()
    blocks = open_blocks(store, MemoryCache(1 << 20))
    assert await blocks.read(1, SIZE, 0, SIZE, fingerprint_of(DATA)) == DATA
    assert (store.gets, blocks.stats.fingerprints_checked) == ([], 1)
    await blocks.close()


async def test_a_wrong_fingerprint_is_for_the_thread_to_judge() -> None:
    store = Errands(bytes(SIZE))
    blocks = open_blocks(store, MemoryCache(1 << 20))
    assert await blocks.read(1, SIZE, 0, SIZE, fingerprint_of(DATA)) == DATA
    assert (store.gets, blocks.stats.fingerprints_checked) == ([KEY], 1)
    await blocks.close()


async def test_large_and_compressed_blocks_are_for_threads() -> None:
    store = Errands()
    large = bytes(INLINE_READ + 1)
    store.put(block_key(2, 0, len(large)), large)
    blocks = open_blocks(store, MemoryCache(1 << 20))
    assert await blocks.read(2, len(large), 0, len(large)) == large
    await blocks.close()
    blocks = open_blocks(store, MemoryCache(1 << 20), compression="zstd")
    await blocks.put(3, 0, DATA)
    assert await blocks.read(3, SIZE, 0, SIZE) == DATA
    assert store.asked == []
    await blocks.close()


async def test_readers_of_one_block_share_the_errand() -> None:
    store = Errands(arrived=False)
    blocks = open_blocks(store, MemoryCache(1 << 20))
    found: list[object] = []

    async def read() -> None:
        found.append(await blocks.read(1, SIZE, 0, SIZE))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        store.errands[0].arrive()
    assert found == [DATA] * 3
    assert len(store.asked) == 1
    await blocks.close()


async def test_no_more_than_max_downloads_at_once() -> None:
    store = Errands(arrived=False)
    keys = [block_key(number, 0, SIZE) for number in range(1, 4)]
    blocks = open_blocks(store, MemoryCache(1 << 20))
    async with trio.open_nursery() as nursery:
        for number in range(1, 4):
            store.put(keys[number - 1], DATA)
            nursery.start_soon(blocks.read, number, SIZE, 0, SIZE)
            await trio.testing.wait_all_tasks_blocked()
        assert [key for key, _ in store.asked] == keys[:2]
        store.errands[0].arrive()
        await trio.testing.wait_all_tasks_blocked()
        assert [key for key, _ in store.asked] == keys
        for errand in store.errands[1:]:
            errand.arrive()
    await blocks.close()


async def test_an_errand_that_takes_too_long_is_dropped() -> None:
    store = Errands(arrived=False, seconds=0.05)
    blocks = open_blocks(store, MemoryCache(1 << 20))
    assert await blocks.read(1, SIZE, 0, SIZE) == DATA
    assert store.errands[0].dropped
    assert store.gets == [KEY]
    await blocks.close()


async def test_an_errand_of_a_reader_who_is_gone_is_dropped() -> None:
    store = Errands(arrived=False)
    blocks = open_blocks(store, MemoryCache(1 << 20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocks.read, 1, SIZE, 0, SIZE)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert store.errands[0].dropped
    assert store.gets == []
    await blocks.close()
