"""Writeback where a folder, a file or an earlier mount's leavings are not what they should be."""

import errno
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.chunk.cache_dir import CacheDir
from jfs.chunk.layout import block_key
from jfs.chunk.staging import Staging, _Rest
from jfs.chunk.staging_dir import FolderGone, StagingDir
from jfs.chunk.store import BlockStore
from jfs.errors import StoreError
from jfs.object.memory import MemoryStore
from jfs.object.store import Buffer
from tests.chunk.test_cache import break_scans, fail_io
from tests.chunk.test_staging import BLOCK, Mounted, Running, Store, pattern, staged
from tests.deadline import eventually_async


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


def books(blocks: BlockStore) -> Staging:
    assert blocks.staging is not None
    return blocks.staging


# -- a disk that hangs


@pytest.mark.logs("no answer within 0.1 s; blocks go to the store")
@pytest.mark.parametrize("hangs", ["before", "after"])
async def test_a_disk_that_hangs_is_gone_past_and_leaves_nothing(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """The block's memory is another's by the time that the disk goes on: no staged file may be made of that."""
    monkeypatch.setattr("jfs.chunk.disk_threads.PATIENCE_S", 0.1)
    gate = threading.Event()
    write, ended = StagingDir.write, threading.Event()

    def hanging(folder: StagingDir, key: str, data: Buffer, wanted: Callable[[], bool]) -> None:
        try:
            if hangs == "before":
                assert gate.wait(60)
            write(folder, key, data, wanted)
            assert gate.wait(60)
        finally:
            ended.set()

    blocks = mounted.open(upload_delay=3600.0)
    with monkeypatch.context() as patch:
        patch.setattr(StagingDir, "write", hanging)
        memory = bytearray(pattern(1000))
        await blocks.put(1, 0, memoryview(memory))
        memory[:] = bytes(1000)
        assert mounted.store.get(block_key(1, 0, 1000)) == pattern(1000)
        (folder,) = books(blocks).dirs
        assert folder.disk.hangs
        await blocks.put(2, 0, pattern(1000))  # at once: the folder is known to hang
        assert staged(blocks) == 0
        gate.set()
        await eventually_async(lambda: not folder.disk.hangs)
    assert ended.is_set()
    assert mounted.staged == []
    books(blocks)._rests = {folder.cache.folder: _Rest() for folder in books(blocks).dirs}
    await blocks.put(3, 0, pattern(1000))
    assert mounted.staged == [block_key(3, 0, 1000)]
    assert await blocks.read(1, 1000, 0, 1000) == pattern(1000)
    async with Running(blocks):
        books(blocks).drain(on=True)
        await eventually_async(lambda: not mounted.staged)


@pytest.mark.logs("flush: no answer within 0.1 s", "flushing", "are staged and not uploaded")
@pytest.mark.parametrize("ends", ["well", "badly"])
async def test_a_flush_that_hangs_is_an_error_and_made_good_later(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Whoever asks is told, commits go on, and blocks that the disk has dropped in the end go to the store."""
    monkeypatch.setattr("jfs.chunk.uploader.FLUSH_PATIENCE_S", 0.1)
    gate = threading.Event()
    sync = StagingDir.sync

    def hanging(folder: StagingDir, keys: Iterable[str]) -> None:
        assert gate.wait(60)
        if ends == "badly":
            raise StoreError("the disk has lost it")
        sync(folder, keys)

    blocks = mounted.open(upload_delay=3600.0)
    (folder,) = books(blocks).dirs
    await blocks.put(1, 0, pattern(1000))
    with monkeypatch.context() as patch:
        patch.setattr(StagingDir, "sync", hanging)
        with pytest.raises(StoreError, match="does not answer"):
            await blocks.sync()
        with pytest.raises(StoreError, match="does not answer"):
            await blocks.sync()  # at once
        await blocks.put(2, 0, pattern(1000))
        assert mounted.store.keys == [block_key(2, 0, 1000)], "nothing more is asked of the disk"
        gate.set()
        await eventually_async(lambda: not folder.disk.hangs)
    await blocks.sync()
    assert (block_key(1, 0, 1000) in mounted.store.keys) == (ends == "badly")
    assert blocks._unsynced == set()
    await blocks.close()


async def test_an_older_block_is_taken_away_in_a_thread(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the scan any block may lie in the cache, and its disk may hang."""
    loop_thread = threading.get_ident()
    remove = CacheDir.remove

    def watched(folder: CacheDir, key: str) -> None:
        assert threading.get_ident() != loop_thread
        remove(folder, key)

    monkeypatch.setattr(CacheDir, "remove", watched)
    blocks = mounted.open(writeback=False)
    blocks._cache.dirs[0]._scanned = False  # type: ignore[union-attr]
    await blocks.put(1, 0, pattern(1000))
    assert await blocks.read(1, 1000, 0, 1000) == pattern(1000)
    await blocks.close()


@pytest.mark.logs("look for free space")
async def test_a_folder_that_does_not_tell_its_room_is_not_full(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delay of all blocks would be void."""
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        await blocks.put(1, 0, pattern(1000))
        with monkeypatch.context() as patch:
            patch.setattr(StagingDir, "free_share", fail_io)
            books(blocks).look_for_room()
        await trio.testing.wait_all_tasks_blocked()
        assert mounted.staged
        books(blocks).drain(on=True)
        await eventually_async(lambda: not mounted.staged)


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


async def test_whoever_puts_a_block_past_the_folder_can_make_way_for_it(mounted: Mounted) -> None:
    key = block_key(1, 0, 100)
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(100))
    assert not await books(blocks).make_way(key), "nobody has begun to upload it"
    assert mounted.staged == []
    assert staged(blocks) == 0
    await blocks.close()


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
            await eventually_async(lambda: staged(blocks) == 5)
            assert len(mounted.store.keys) == 15
            assert bad.isdisjoint(mounted.store.keys)
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
        await eventually_async(lambda: staged(blocks) == 1)
        assert len(mounted.store.keys) == 19


@pytest.mark.logs("cannot be uploaded yet", "are staged and not uploaded")
async def test_a_folder_whose_reads_fail_holds_up_no_other(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.chunk.upload_queue.FOLDER_PAUSE_S", 60.0)
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
    assert len([key for key, before in tried if before < healthy]) <= 1


# -- a cache folder that goes away and comes back


class Disk:
    """A cache folder whose disk can be unmounted: its mount point stays, empty."""

    def __init__(self, mounted: Mounted) -> None:
        self.place = mounted.folder / "cache"
        self._away = mounted.folder / "away"

    def unmount(self) -> None:
        self.place.rename(self._away)
        self.place.mkdir()

    def mount(self, blocks: BlockStore) -> None:
        assert list(self.place.iterdir()) == [], "nothing is made below the mount point"
        self.place.rmdir()
        self._away.rename(self.place)
        books(blocks).dirs[0].cache.try_again()


GONE = ("is not used any more", "looking for staged blocks", "cannot be uploaded yet", "look for free space")


@pytest.mark.logs(*GONE)
async def test_blocks_of_a_disk_that_goes_away_wait_for_its_return(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jfs.chunk.uploader.LOOK_S", 0.01)
    monkeypatch.setattr("jfs.chunk.upload_queue.FIRST_PAUSE_S", 60.0)
    blocks = mounted.open(max_uploads=1)
    disk = Disk(mounted)
    for number in range(3):
        await blocks.put(number, 0, pattern(100, number))
    MemoryStore.put(mounted.store, block_key(0, 0, 100), b"what an earlier try left")
    disk.unmount()
    async with Running(blocks):
        await eventually_async(lambda: books(blocks).counts.errors >= 3)
        assert staged(blocks) == 3
        disk.mount(blocks)
        await eventually_async(lambda: not mounted.staged)
    assert mounted.store.keys == [block_key(number, 0, 100) for number in range(3)]


@pytest.mark.logs(*GONE, "are staged and not uploaded")
async def test_what_lies_in_a_folder_that_comes_back_is_found(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jfs.chunk.uploader.LOOK_S", 0.01)
    before = mounted.open()
    await before.put(1, 0, pattern(100))
    await before.close()
    blocks = mounted.open()
    disk = Disk(mounted)
    disk.unmount()
    async with Running(blocks):
        await eventually_async(lambda: not books(blocks).dirs[0].cache.usable)
        assert not books(blocks).scanned
        disk.mount(blocks)
        await eventually_async(lambda: not mounted.staged)
        assert books(blocks).scanned
    assert mounted.store.keys == [block_key(1, 0, 100)]


@pytest.mark.logs(*GONE, "flushing", "go to the store", "are staged and not uploaded")
async def test_no_fsync_is_true_for_blocks_of_a_disk_that_went_away(mounted: Mounted) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(100))
    Disk(mounted).unmount()
    with pytest.raises(StoreError, match="has gone"):
        await blocks.sync()
    assert staged(blocks) == 1
    await blocks.close()


@pytest.mark.logs(*GONE, "blocks go to the store", "are staged and not uploaded")
async def test_nothing_is_made_where_a_disk_was(mounted: Mounted) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(100))
    disk = Disk(mounted)
    disk.unmount()
    await blocks.put(2, 0, pattern(100))
    assert mounted.store.keys == [block_key(2, 0, 100)]
    with pytest.raises(FolderGone):
        books(blocks).dirs[0].set_aside(block_key(1, 0, 100))
    assert list(disk.place.iterdir()) == []
    await blocks.close()


# -- what cannot be scanned or removed


@pytest.mark.logs("looking for staged blocks", "are staged and not uploaded")
async def test_a_directory_that_cannot_be_read_hides_no_other(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jfs.chunk.uploader.SCAN_AGAIN_S", 0.05)
    before = mounted.open()
    for number in (1, 1001, 2001):
        await before.put(number, 0, pattern(100))
    await before.close()
    blocks = mounted.open()
    with monkeypatch.context() as patch:
        break_scans(patch, "rawstaging/chunks/0/1")
        async with Running(blocks):
            await eventually_async(lambda: len(mounted.store.keys) == 2)
            assert not books(blocks).scanned
            patch.undo()
            await eventually_async(lambda: len(mounted.store.keys) == 3)
            await eventually_async(lambda: books(blocks).scanned)


@pytest.mark.logs("stay behind")
async def test_staged_files_that_cannot_be_removed_are_tried_again_and_hold_up_no_others(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jfs.chunk.uploader.TIDY_S", 0.05)
    bad = {block_key(number, 0, 100) for number in range(0, 20, 2)}
    remove = StagingDir.remove

    def choosy(folder: StagingDir, key: str) -> None:
        if key in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        remove(folder, key)

    blocks = mounted.open()
    for number in range(20):
        await blocks.put(number, 0, pattern(100, number))
    with monkeypatch.context() as patch:
        patch.setattr(StagingDir, "remove", choosy)
        async with Running(blocks):
            await eventually_async(lambda: not staged(blocks) and len(mounted.staged) == 10)
            assert set(mounted.staged) == bad
            await eventually_async(lambda: books(blocks)._moving == bad)
            patch.undo()
            await eventually_async(lambda: not mounted.staged)
            await eventually_async(lambda: not books(blocks)._moving)
    assert len(mounted.store.keys) == 20, "none of them is uploaded twice"


@pytest.mark.logs(*GONE, "stay behind")
async def test_a_block_that_is_uploaded_while_its_disk_goes_away_is_not_uploaded_again(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jfs.chunk.uploader.LOOK_S", 0.01)
    monkeypatch.setattr("jfs.chunk.uploader.TIDY_S", 0.05)
    blocks = mounted.open()
    disk = Disk(mounted)
    mounted.store.gate.clear()
    async with Running(blocks):
        await blocks.put(1, 0, pattern(100))
        await eventually_async(lambda: mounted.store.started)
        disk.unmount()
        mounted.store.gate.set()
        await eventually_async(lambda: not books(blocks).dirs[0].cache.usable)
        await eventually_async(lambda: not staged(blocks))
        disk.mount(blocks)
        await eventually_async(lambda: not mounted.staged)
    assert mounted.store.keys == mounted.store.started == [block_key(1, 0, 100)]


@pytest.mark.parametrize("size", [1000, BLOCK])
@pytest.mark.parametrize("scanned", [False, True])
async def test_a_new_block_is_not_hidden_by_a_cached_one_of_its_key(mounted: Mounted, size: int, scanned: bool) -> None:
    """Where it goes to the store at once."""
    blocks = mounted.open(writeback=False, cache_large_write=True)
    await blocks.put(1, 0, pattern(size, 1))
    await blocks.close()
    assert mounted.cached == [block_key(1, 0, size)]
    blocks = mounted.open(writeback=False)
    if scanned:
        books(blocks).dirs[0].cache.scan()
    assert await blocks.read(1, size, 0, size) == pattern(size, 1), "its descriptor is open now"
    await blocks.put(1, 0, pattern(size, 2))
    assert await blocks.read(1, size, 0, size) == pattern(size, 2)
    await blocks.close()
    assert (mounted.folder / "cache/u/raw" / block_key(1, 0, size)).read_bytes()[:size] == pattern(size, 2)


@pytest.mark.logs("are staged and not uploaded")
async def test_an_older_staged_block_is_not_uploaded_over_one_that_went_to_the_store(mounted: Mounted) -> None:
    key = block_key(1, 0, 100)
    before = mounted.open()
    await before.put(1, 0, pattern(100, 1))
    await before.close()
    blocks = mounted.open(writeback=False)
    mounted.store.gate.clear()
    async with Running(blocks), trio.open_nursery() as nursery:
        await eventually_async(lambda: staged(blocks) == 1)
        nursery.start_soon(blocks.put, 1, 0, pattern(100, 2))
        await trio.testing.wait_all_tasks_blocked()
        mounted.store.gate.set()
        await eventually_async(lambda: not staged(blocks) and not mounted.staged)
    assert mounted.store.get(key) == pattern(100, 2)


# -- what the books do not know yet, or no longer


@pytest.mark.logs("are staged and not uploaded")
async def test_a_block_staged_in_another_folder_is_read_before_the_scan(mounted: Mounted) -> None:
    """A folder was added: on the new ring the block belongs elsewhere."""
    blocks = mounted.open(upload_delay=3600.0)
    for number in range(20):
        await blocks.put(number, 0, pattern(1000, number))
    await blocks.close()
    blocks = mounted.open(folders=3, upload_delay=3600.0)
    assert not books(blocks).scanned
    for number in range(20):
        assert await blocks.read(number, 1000, 0, 1000) == pattern(1000, number)
    with pytest.raises(StoreError):
        await blocks.read(99, 1000, 0, 1000)
    async with Running(blocks):
        books(blocks).drain(on=True)
        await eventually_async(lambda: not mounted.staged)


async def test_a_deleted_block_that_another_mount_has_uploaded_leaves_the_store_too(mounted: Mounted) -> None:
    """Both use the folder; only the books of the first say that the store was never given the block."""
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        await blocks.put(1, 0, pattern(1000))
        other = mounted.open(writeback=False)
        async with Running(other):
            await eventually_async(lambda: not mounted.staged)
        assert mounted.store.keys == [block_key(1, 0, 1000)]
        await blocks.remove(1, 1000)
    assert mounted.store.deleted == mounted.store.keys


async def test_a_folder_that_is_out_of_use_holds_up_no_deletion(mounted: Mounted, tmp_path: Path) -> None:
    """Its staged blocks are not known, so any deleted one may lie there."""
    blocks = mounted.open(folders=2, upload_delay=3600.0)
    out, used = books(blocks).dirs
    out.cache.usable = False
    remove = StagingDir.remove

    def broken(folder: StagingDir, key: str) -> bool:
        if folder is out:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return remove(folder, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagingDir, "remove", broken)
        mounted.store.put(block_key(1, 0, 1000), pattern(1000))
        await blocks.remove(1, 1000)
        assert mounted.store.deleted == [block_key(1, 0, 1000)]
        await blocks.put(2, 0, pattern(1000))
        assert used.path(block_key(2, 0, 1000)).endswith(mounted.staged[0])
        await blocks.remove(2, 1000)
    assert mounted.staged == []
    await blocks.close()
