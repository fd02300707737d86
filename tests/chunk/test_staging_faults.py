"""Writeback where a folder, a file or an earlier mount's leavings are not what they should be."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.chunk.layout import block_key
from jfs.chunk.staging import Staging
from jfs.chunk.staging_dir import StagingDir
from jfs.chunk.store import BlockStore
from jfs.errors import StoreError
from jfs.object.store import Buffer
from tests.chunk.test_staging import Mounted, Running, Store, pattern, staged
from tests.deadline import eventually_async


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


def books(blocks: BlockStore) -> Staging:
    assert blocks.staging is not None
    return blocks.staging


# -- a slice id that is drawn again: an older block has the key


@pytest.mark.logs("are staged and not uploaded")
@pytest.mark.parametrize("left", ["staged", "cached"])
async def test_a_new_block_replaces_an_older_one_of_its_key(mounted: Mounted, left: str) -> None:
    key = block_key(1, 0, 1000)
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000, 1))
    await blocks.close()
    if left == "cached":
        os.unlink(mounted.folder / "cache/u/rawstaging" / key)
    blocks = mounted.open()
    assert await blocks.read(1, 1000, 0, 1000) == pattern(1000, 1), "its descriptor is open now"
    await blocks.put(1, 0, pattern(1000, 2))
    assert await blocks.read(1, 1000, 0, 1000) == pattern(1000, 2)
    (file,) = mounted.folder.glob(f"cache/u/raw/{key}")
    assert file.samefile(mounted.folder / "cache/u/rawstaging" / key)
    async with Running(blocks):
        await eventually_async(lambda: not mounted.staged)
    assert mounted.store.get(key) == pattern(1000, 2)


@pytest.mark.parametrize("under_way", [False, True])
async def test_a_new_block_takes_the_place_of_one_of_its_key_in_the_books(mounted: Mounted, under_way: bool) -> None:
    """Neither does the older one's upload come last, nor does its end remove the new one's file."""
    key = block_key(1, 0, 1000)
    blocks = mounted.open(upload_delay=0.0 if under_way else 3600.0)
    mounted.store.gate.clear()
    async with Running(blocks), trio.open_nursery() as nursery:
        await blocks.put(1, 0, pattern(1000, 1))
        if under_way:
            await eventually_async(lambda: mounted.store.started)
        nursery.start_soon(blocks.put, 1, 0, pattern(1000, 2))
        await trio.testing.wait_all_tasks_blocked()
        mounted.store.gate.set()
        books(blocks).drain(on=True)
        await eventually_async(lambda: not mounted.staged and nursery.child_tasks == frozenset())
        await eventually_async(lambda: not staged(blocks))
    assert mounted.store.get(key) == pattern(1000, 2)
    assert books(blocks).counts.bytes == 0


async def test_a_block_whose_key_is_just_leaving_the_folder_goes_to_the_store(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file would go with that of the older one."""
    key = block_key(1, 0, 1000)
    removing, go_on = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    remove = StagingDir.remove

    def slow(folder: StagingDir, key: str) -> None:
        trio.from_thread.run_sync(removing.set, trio_token=token)
        trio.from_thread.run(go_on.wait, trio_token=token)
        remove(folder, key)

    blocks = mounted.open()
    async with Running(blocks):
        with monkeypatch.context() as patch:
            patch.setattr(StagingDir, "remove", slow)
            await blocks.put(1, 0, pattern(1000, 1))
            await removing.wait()
            await blocks.put(1, 0, pattern(1000, 2))
            go_on.set()
            await eventually_async(lambda: not mounted.staged)
    assert mounted.store.get(key) == pattern(1000, 2)
    assert staged(blocks) == 0


# -- blocks and folders that cannot be read


def break_reads(monkeypatch: pytest.MonkeyPatch, broken: Callable[[StagingDir, str], bool]) -> None:
    load = StagingDir.load

    def read(folder: StagingDir, key: str, size: int) -> bytes:
        if broken(folder, key):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return load(folder, key, size)

    monkeypatch.setattr(StagingDir, "load", read)


@pytest.mark.logs("cannot be uploaded yet")
@pytest.mark.parametrize("workers", [1, 4])
async def test_blocks_that_cannot_be_read_hold_up_no_others(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    bad = {block_key(number, 0, 100) for number in range(5)}
    blocks = mounted.open(max_uploads=workers)
    for number in range(20):
        await blocks.put(number, 0, pattern(100, number))
    with monkeypatch.context() as patch:
        break_reads(patch, lambda _, key: key in bad)
        async with Running(blocks):
            await eventually_async(lambda: len(mounted.store.keys) == 15)
            assert bad.isdisjoint(mounted.store.keys)
            assert staged(blocks) == 5
            patch.undo()
            await eventually_async(lambda: not staged(blocks))
    assert mounted.store.get(block_key(3, 0, 100)) == pattern(100, 3)


@pytest.mark.logs("cannot be uploaded yet", "are staged and not uploaded")
async def test_a_block_that_the_store_refuses_holds_up_no_others(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = block_key(0, 0, 100)
    put = Store.put

    def choosy(store: Store, key: str, data: Buffer) -> None:
        if key == refused:
            raise StoreError("403")
        put(store, key, data)

    monkeypatch.setattr(Store, "put", choosy)
    blocks = mounted.open(max_uploads=1)
    for number in range(20):
        await blocks.put(number, 0, pattern(100, number))
    async with Running(blocks):
        await eventually_async(lambda: len(mounted.store.keys) == 19)
        assert staged(blocks) == 1


@pytest.mark.logs("cannot be uploaded yet", "are staged and not uploaded")
async def test_a_folder_whose_reads_fail_holds_up_no_other(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = mounted.open(folders=2, max_uploads=1)
    tried: list[tuple[str, int]] = []
    """With how many were uploaded before."""

    def broken(folder: StagingDir, key: str) -> bool:
        bad = folder.cache.folder.endswith("cache/u")
        if bad:
            tried.append((key, len(mounted.store.keys)))
        return bad

    for number in range(60):
        await blocks.put(number, 0, pattern(100, number))
    healthy = len(list((mounted.folder / "cache1").glob("u/rawstaging/**/*_100")))
    assert 10 < healthy < 50
    break_reads(monkeypatch, broken)
    async with Running(blocks):
        await eventually_async(lambda: len({key for key, _ in tried}) == 60 - healthy)
    assert len(mounted.store.keys) == healthy
    assert len([key for key, before in tried if before < healthy]) <= 2, "the first, and perhaps another now and then"
