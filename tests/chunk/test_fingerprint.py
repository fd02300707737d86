"""Blocks with fingerprints: made when a block is put, checked whenever one is read from the store, mended from copies."""

from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.chunk.cache import DiskCache
from jfs.chunk.fingerprint import fingerprint_of
from jfs.chunk.layout import block_key
from jfs.chunk.memory_cache import MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.store import BlockStore
from jfs.errors import BadObject
from jfs.object.file import FileStore
from jfs.object.memory import MemoryStore
from jfs.object.store import ObjectStore
from tests.vfs.mounted import pattern

BLOCK = 1 << 20
"""Its fingerprint is made in a thread, a smaller one's on the loop."""

DATA = pattern(BLOCK + 1000)
UUID = "a-uuid"
WRONG = "bytes are not those that were written"


@pytest.fixture(params=["file", "mem"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return FileStore(f"{tmp_path}/obj/") if request.param == "file" else MemoryStore()


async def put(blocks: BlockStore, slice_id: int = 1) -> bytes:
    """Store the data as a slice; its fingerprint."""
    marks = [await blocks.put(slice_id, number, DATA[number * BLOCK :][:BLOCK], mark=True) for number in (0, 1)]
    return b"".join(marks)


def key_of(index: int, slice_id: int = 1) -> str:
    return block_key(slice_id, index, BLOCK if index == 0 else len(DATA) - BLOCK)


def flip(store: ObjectStore, key: str, at: int = -1) -> bytes:
    """Change one bit of an object; what it was before."""
    good = store.get(key)
    bad = bytearray(good)
    bad[at] ^= 1
    store.put(key, bytes(bad))
    return good


async def test_a_mark_is_the_fingerprint_of_each_block(store: ObjectStore) -> None:
    blocks = BlockStore(store, ChunkOptions(block_size=BLOCK))
    assert await put(blocks) == fingerprint_of(DATA[:BLOCK]) + fingerprint_of(DATA[BLOCK:])
    assert await blocks.put(2, 0, DATA[:10]) == b""
    await blocks.close()


@pytest.mark.logs(WRONG)
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("cached", [False, True])
async def test_no_read_gives_wrong_bytes(store: ObjectStore, compression: str, cached: bool) -> None:
    cache = MemoryCache(1 << 30) if cached else None
    blocks = BlockStore(store, ChunkOptions(block_size=BLOCK, compression=compression), cache)
    mark = await put(blocks)
    other = BlockStore(store, blocks.options)
    assert await blocks.read(1, len(DATA), 10, len(DATA) - 10, mark) == DATA[10:]
    checked = blocks.stats.fingerprints_checked
    assert await blocks.read(1, len(DATA), BLOCK - 10, 20, mark) == DATA[BLOCK - 10 : BLOCK + 10]
    assert blocks.stats.fingerprints_checked == checked > 0  # the blocks are still there
    wrong = bytearray(DATA[:BLOCK])
    wrong[BLOCK // 2] ^= 1
    await other.put(1, 0, wrong)
    for offset, length in ((0, BLOCK), (BLOCK - 10, 10), (100, 10), (0, len(DATA))):  # wherever the flipped bit is
        with pytest.raises(BadObject, match=f"^{key_of(0)}: "):
            await other.read(1, len(DATA), offset, length, mark)
    assert await other.read(1, len(DATA), BLOCK + 5, 100, mark) == DATA[BLOCK + 5 : BLOCK + 105]
    assert other.stats.fingerprints_wrong == 4
    assert await other.read(1, len(DATA), 0, BLOCK) == wrong  # not asked to check
    await blocks.close()
    await other.close()


@pytest.mark.logs(WRONG)
async def test_who_wants_a_check_joins_no_fetch_without_one() -> None:
    """The volume's fingerprints were turned on meanwhile: what one reader knows of the slice the other does not."""

    class Slow(MemoryStore):
        def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
            data = super().get(key, offset, length)
            trio.from_thread.run_sync(asked.set)
            trio.from_thread.run(go.wait)
            return data

    asked, go = trio.Event(), trio.Event()
    store = Slow()
    blocks = BlockStore(store, ChunkOptions(block_size=BLOCK))
    mark = await put(blocks)
    go.set()
    good = await trio.to_thread.run_sync(flip, store, key_of(0))
    asked, go = trio.Event(), trio.Event()

    async def unchecked() -> None:
        assert await blocks.read(1, len(DATA), 0, BLOCK) != good

    async def checked() -> None:
        with pytest.raises(BadObject, match=WRONG):
            await blocks.read(1, len(DATA), 0, BLOCK, mark)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unchecked)
        await asked.wait()
        nursery.start_soon(checked)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    await blocks.close()


@pytest.mark.logs(WRONG)
async def test_a_block_fetched_ahead_is_checked(store: ObjectStore) -> None:
    cache = MemoryCache(1 << 30)
    writer = BlockStore(store, ChunkOptions(block_size=BLOCK))
    mark = await put(writer)
    flip(store, key_of(0))
    blocks = BlockStore(store, ChunkOptions(block_size=BLOCK), cache)
    async with trio.open_nursery() as nursery:
        await nursery.start(blocks.run)
        blocks.prefetch(1, len(DATA), 0, mark)
        with trio.fail_after(30):
            while not blocks.stats.fingerprints_wrong:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not cache.holds(key_of(0))
    await blocks.close()
    await writer.close()


def with_cache(store: ObjectStore, folder: Path, **options: object) -> BlockStore:
    chosen = ChunkOptions(
        block_size=BLOCK,
        uuid=UUID,
        cache_dirs=[str(folder)],
        cache_large_write=True,
        free_space_ratio=0.0,
        **options,  # type: ignore[arg-type]
    )
    return BlockStore(store, chosen, DiskCache(chosen))


async def in_cache_only(store: ObjectStore, folder: Path) -> tuple[bytes, bytes]:
    """A slice whose blocks are cached, and whose first object is bad then; its fingerprint and the good object."""
    blocks = with_cache(store, folder)
    mark = await put(blocks)
    await trio.to_thread.run_sync(blocks._cache.wait_written)  # type: ignore[union-attr]
    await blocks.close()
    return mark, flip(store, key_of(0))


@pytest.mark.logs("is bad: ", "is mended: ")
@pytest.mark.parametrize("kind", ["raw", "rawstaging"])
async def test_a_bad_object_is_mended_from_a_copy(store: ObjectStore, tmp_path: Path, kind: str) -> None:
    """The reader's cache does not know of the file: its index is not built yet, or the block is staged by another."""
    mark, good = await in_cache_only(store, tmp_path / "cache")
    folder = tmp_path / "cache" / UUID
    if kind == "rawstaging":
        (folder / "raw").rename(folder / "rawstaging")
    options = ChunkOptions(block_size=BLOCK, uuid=UUID, cache_dirs=[str(tmp_path / "cache")])
    blocks = BlockStore(store, options)
    assert await blocks.read(1, len(DATA), 100, 10, mark) == DATA[100:110]
    assert store.get(key_of(0)) == good
    assert (blocks.stats.fingerprints_wrong, blocks.stats.fingerprints_mended) == (1, 1)
    await blocks.verify(key_of(0), BLOCK, mark[:16])
    await blocks.close()


@pytest.mark.logs("is bad: ", "stays bad: nothing may be changed")
async def test_a_reader_that_may_change_nothing_mends_nothing(store: ObjectStore, tmp_path: Path) -> None:
    mark, good = await in_cache_only(store, tmp_path / "cache")
    options = ChunkOptions(block_size=BLOCK, uuid=UUID, cache_dirs=[str(tmp_path / "cache")], read_only=True)
    blocks = BlockStore(store, options)
    assert await blocks.read(1, len(DATA), 100, 10, mark) == DATA[100:110]
    assert store.get(key_of(0)) != good
    with pytest.raises(BadObject, match=WRONG):
        await blocks.verify(key_of(0), BLOCK, mark[:16])
    assert blocks.stats.fingerprints_mended == 0
    await blocks.close()


@pytest.mark.logs(WRONG)
async def test_a_copy_that_is_wrong_too_mends_nothing(store: ObjectStore, tmp_path: Path) -> None:
    mark, _ = await in_cache_only(store, tmp_path / "cache")
    copy = tmp_path / "cache" / UUID / "raw" / key_of(0)
    copy.write_bytes(bytes(BLOCK))  # without a checksum tail, as other programs may leave it
    options = ChunkOptions(block_size=BLOCK, uuid=UUID, cache_dirs=[str(tmp_path / "cache")])
    blocks = BlockStore(store, options)
    with pytest.raises(BadObject, match=WRONG):
        await blocks.read(1, len(DATA), 100, 10, mark)
    await blocks.close()


@pytest.mark.logs("is mended: ")
async def test_verify_reads_past_the_cache_and_mends(store: ObjectStore, tmp_path: Path) -> None:
    mark, good = await in_cache_only(store, tmp_path / "cache")
    blocks = with_cache(store, tmp_path / "cache")
    await blocks.verify(key_of(0), BLOCK, mark[:16])
    assert store.get(key_of(0)) == good
    await blocks.verify(key_of(1), len(DATA) - BLOCK, mark[16:])
    assert (blocks.stats.fingerprints_checked, blocks.stats.fingerprints_wrong) == (2, 1)
    await blocks.close()
