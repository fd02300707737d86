"""Writeback on folders of a test's own: what is staged, when it is uploaded, and what survives which failure."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jfs.chunk.cache import DiskCache
from jfs.chunk.hours import Hours, parse_hours
from jfs.chunk.layout import block_key
from jfs.chunk.options import ChunkOptions
from jfs.chunk.staging_dir import StagingDir
from jfs.chunk.store import BlockStore
from jfs.errors import StoreError, UserError
from jfs.object.file import FileStore
from jfs.object.memory import MemoryStore
from jfs.object.retry import Retry
from jfs.object.store import Buffer, ObjectStore
from tests.deadline import eventually_async

BLOCK = 256 << 10
LARGE = 200 << 10
"""Too large for the loop: staged in a thread."""


def pattern(size: int, seed: int = 0) -> bytes:
    return bytes((i * 7 + i // 251 + seed) & 255 for i in range(size))


class Store(MemoryStore):
    """Refuses while `away`; puts can be held by `gate`; remembers the order of what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.gate = threading.Event()
        self.gate.set()
        self.started: list[str] = []
        self.keys: list[str] = []
        self.deleted: list[str] = []
        self.flushed: list[set[str]] = []

    def put(self, key: str, data: Buffer) -> None:
        self.started.append(key)
        assert self.gate.wait(60)
        if self.away:
            raise StoreError("away")
        super().put(key, data)
        self.keys.append(key)

    def delete(self, key: str) -> None:
        self.deleted.append(key)
        super().delete(key)

    def sync(self, keys: Iterable[str]) -> None:
        self.flushed.append(set(keys))


class Mounted:
    """The block store of a mount with writeback, which can end and come again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store()

    def open(self, store: ObjectStore | None = None, *, folders: int = 1, **options: Any) -> BlockStore:
        chosen = ChunkOptions(
            block_size=BLOCK,
            uuid="u",
            cache_dirs=[f"{self.folder}/cache{number or ''}" for number in range(folders)],
            free_space_ratio=options.pop("free_space_ratio", 0.0001),
            writeback=options.pop("writeback", True),
            **options,
        )
        return BlockStore(store or self.store, chosen, DiskCache(chosen))

    @property
    def staged(self) -> list[str]:
        return sorted(
            str(path.relative_to(path.parents[3])) for path in self.folder.glob("*/u/rawstaging/chunks/*/*/*")
        )

    @property
    def cached(self) -> list[str]:
        return sorted(str(path.relative_to(path.parents[3])) for path in self.folder.glob("*/u/raw/chunks/*/*/*"))


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


class Running:
    """`async with`: the background of a block store at work."""

    def __init__(self, blocks: BlockStore) -> None:
        self.blocks = blocks

    async def __aenter__(self) -> BlockStore:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        await self._nursery.start(self.blocks.run)
        return self.blocks

    async def __aexit__(self, *error: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(*error)
        await self.blocks.close()


def staged(blocks: BlockStore) -> int:
    assert blocks.staging is not None
    return len(blocks.staging)


@pytest.mark.logs("are staged and not uploaded")
@pytest.mark.parametrize("size", [100, LARGE])
async def test_a_staged_block_is_laid_out_as_the_peer_does(mounted: Mounted, size: int) -> None:
    blocks = mounted.open()
    await blocks.put(7, 0, memoryview(pattern(size)))
    key = block_key(7, 0, size)
    assert mounted.staged == mounted.cached == [key]
    (file,) = mounted.folder.glob(f"cache/u/rawstaging/{key}")
    (link,) = mounted.folder.glob(f"cache/u/raw/{key}")
    assert file.samefile(link)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == size + 4 * -(-size // (32 << 10))
    assert file.read_bytes()[:size] == pattern(size)
    assert mounted.store.keys == []
    assert await blocks.read(7, size, 10, 50) == pattern(size)[10:60]
    await blocks.close()


async def test_uploads_go_on_oldest_first_and_leave_cached_blocks(mounted: Mounted) -> None:
    blocks = mounted.open(max_uploads=1)
    for number in range(5):
        await blocks.put(number, 0, pattern(1000, number))
    async with Running(blocks):
        await eventually_async(lambda: not staged(blocks))
        await eventually_async(lambda: not mounted.staged)
    assert mounted.store.keys == [block_key(number, 0, 1000) for number in range(5)]
    assert mounted.cached == sorted(mounted.store.keys)
    assert mounted.store.get(block_key(3, 0, 1000)) == pattern(1000, 3)


@pytest.mark.logs("cannot be uploaded yet")
async def test_a_folder_gets_small_blocks_many_at_once(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    class Folder(FileStore):
        away = True

        def put(self, key: str, data: Buffer) -> None:
            if self.away:
                raise StoreError("away")
            super().put(key, data)

    monkeypatch.setattr("jfs.chunk.uploader.LOCAL_WORKERS", 1)
    store = Folder(f"{mounted.folder}/objects/")
    blocks = mounted.open(store)
    for number in range(100):
        await blocks.put(number, 0, pattern(1000, number))
    assert blocks.staging is not None
    async with Running(blocks):
        await eventually_async(lambda: blocks.staging is not None and blocks.staging.counts.errors > 1)
        assert staged(blocks) == 100
        store.away = False
        await eventually_async(lambda: not mounted.staged)
    assert len(list(store.list())) == 100
    assert store.get(block_key(7, 0, 1000)) == pattern(1000, 7)


@pytest.mark.logs("are staged and not uploaded")
async def test_the_next_mount_uploads_what_was_left(mounted: Mounted) -> None:
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        for number in range(3):
            await blocks.put(number, 0, pattern(LARGE, number))
        await eventually_async(lambda: blocks.staging is not None and blocks.staging.scanned)
        assert mounted.store.keys == []
    for number, key in enumerate(mounted.staged):
        os.utime(mounted.folder / "cache/u/rawstaging" / key, (1000.0 - number, 1000.0 - number))
    async with Running(mounted.open(max_uploads=1)):
        await eventually_async(lambda: not mounted.staged)
    assert mounted.store.keys == [block_key(number, 0, LARGE) for number in (2, 1, 0)], "oldest first"


@pytest.mark.logs("are staged and not uploaded")
async def test_a_mount_without_writeback_uploads_what_was_left(mounted: Mounted) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000))
    await blocks.close()
    async with Running(mounted.open(writeback=False, upload_delay=3600.0)) as after:
        await eventually_async(lambda: not mounted.staged)
        await after.put(2, 0, pattern(1000))
        assert block_key(2, 0, 1000) in mounted.store.keys


async def test_a_block_removed_before_its_upload_never_reaches_the_store(mounted: Mounted) -> None:
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        await blocks.put(1, 0, pattern(LARGE))
        await blocks.remove(1, LARGE)
        assert mounted.staged == mounted.cached == []
        assert staged(blocks) == 0
    assert mounted.store.keys == mounted.store.deleted == []


async def test_a_staged_file_that_cannot_be_removed_goes_with_the_next_try(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        await eventually_async(lambda: blocks.staging is not None and blocks.staging.scanned)
        await blocks.put(1, 0, pattern(BLOCK))
        await blocks.put(1, 1, pattern(10))
        with monkeypatch.context() as patch:
            break_method(patch, "remove", OSError(5, "Input/output error"))
            with pytest.raises(StoreError, match="Input/output error"):
                await blocks.remove(1, BLOCK + 10)
        assert len(mounted.staged) == 2
        await blocks.remove(1, BLOCK + 10)
        assert mounted.staged == []
        assert blocks.staging is not None
        assert blocks.staging._moving == set()


async def test_removed_blocks_do_not_pile_up(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.chunk.upload_queue.MOST_VOID", 10)
    blocks = mounted.open(upload_delay=3600.0)
    assert blocks.staging is not None
    await blocks.put(0, 0, pattern(10))
    for number in range(1, 200):
        await blocks.put(number, 0, pattern(10))
        await blocks.remove(number, 10)
    assert len(blocks.staging._queue) < 20
    oldest = blocks.staging.oldest()
    assert oldest is not None
    assert oldest.key == block_key(0, 0, 10)
    await blocks.remove(0, 10)
    await blocks.close()


async def test_a_scan_finds_nothing_that_is_leaving(mounted: Mounted) -> None:
    """What is uploaded or removed may be on the disk for another moment."""
    blocks = mounted.open()
    assert blocks.staging is not None
    await blocks.put(1, 0, pattern(1000))
    (folder,) = blocks.staging.dirs
    (found,) = folder.scan(lambda path, error: None)
    assert not blocks.staging.take_over(folder, found), "known"
    gone, never = await blocks.staging.discard([found.key])
    assert gone == never == {found.key}
    assert not blocks.staging.take_over(folder, found)
    assert staged(blocks) == 0
    await blocks.close()


async def test_a_block_removed_during_its_upload_leaves_no_object(mounted: Mounted) -> None:
    blocks = mounted.open()
    mounted.store.gate.clear()
    async with Running(blocks), trio.open_nursery() as nursery:
        await blocks.put(1, 0, pattern(1000))
        await eventually_async(lambda: mounted.store.started)
        nursery.start_soon(blocks.remove, 1, 1000)
        await trio.testing.wait_all_tasks_blocked()
        mounted.store.gate.set()
    assert list(mounted.store.list()) == []
    assert mounted.staged == []


@pytest.mark.logs("cannot be uploaded yet")
async def test_a_store_that_is_away_keeps_blocks_staged(mounted: Mounted) -> None:
    mounted.store.away = True
    blocks = mounted.open()
    async with Running(blocks):
        for number in range(10):
            await blocks.put(number, 0, pattern(1000, number))
        await blocks.sync()
        await eventually_async(lambda: blocks.staging is not None and blocks.staging.counts.errors > 20)
        assert len(mounted.staged) == 10
        mounted.store.away = False
        await eventually_async(lambda: not mounted.staged, 30)
    assert len(mounted.store.keys) == 10


async def test_an_acknowledged_block_is_flushed_in_the_store_before_its_staged_file_goes(mounted: Mounted) -> None:
    blocks = mounted.open()
    mounted.store.gate.clear()
    async with Running(blocks):
        await blocks.put(1, 0, pattern(1000))
        await blocks.sync()
        assert mounted.store.flushed == []
        mounted.store.gate.set()
        await eventually_async(lambda: not mounted.staged)
        assert mounted.store.flushed == [{block_key(1, 0, 1000)}]


async def test_a_block_nobody_has_synced_is_flushed_by_the_next_sync(mounted: Mounted) -> None:
    blocks = mounted.open()
    async with Running(blocks):
        await blocks.put(1, 0, pattern(1000))
        await eventually_async(lambda: not mounted.staged)
        assert mounted.store.flushed == []
        await blocks.sync()
        assert mounted.store.flushed == [{block_key(1, 0, 1000)}]


def break_method(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(StagingDir, name, fail)


@pytest.mark.logs("blocks go to the store")
@pytest.mark.parametrize("code", [28, 5])
async def test_a_full_or_failing_disk_means_direct_uploads(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    blocks = mounted.open()
    with monkeypatch.context() as patch:
        break_method(patch, "write", OSError(code, os.strerror(code)))
        await blocks.put(1, 0, pattern(LARGE))
    assert mounted.store.keys == [block_key(1, 0, LARGE)]
    await blocks.put(2, 0, pattern(1000))  # the folder rests
    assert mounted.staged == []
    assert await blocks.read(1, LARGE, 0, LARGE) == pattern(LARGE)
    await blocks.close()


@pytest.mark.logs("go to the store")
async def test_blocks_that_cannot_be_flushed_are_stored_before_sync_returns(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000))
    break_method(monkeypatch, "sync", StoreError("Input/output error"))
    await blocks.sync()
    assert mounted.store.keys == [block_key(1, 0, 1000)]
    assert mounted.store.flushed == [{block_key(1, 0, 1000)}]
    assert mounted.staged == []
    await blocks.close()


@pytest.mark.logs("go to the store", "flushing", "are staged and not")
async def test_sync_fails_where_neither_disk_nor_store_takes_a_block(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000))
    break_method(monkeypatch, "sync", StoreError("Input/output error"))
    mounted.store.away = True
    with pytest.raises(StoreError):
        await blocks.sync()
    assert len(mounted.staged) == 1, "what is there stays"
    await blocks.close()


@pytest.mark.logs("of its disk is free: blocks go to the store")
async def test_a_disk_short_of_room_gets_nothing_more(mounted: Mounted) -> None:
    blocks = mounted.open(free_space_ratio=0.9999999)
    await blocks.put(1, 0, pattern(1000))
    assert mounted.store.keys == [block_key(1, 0, 1000)]
    assert mounted.staged == []
    await blocks.close()


@pytest.mark.logs("of its disk is free: blocks go to the store")
async def test_a_disk_that_runs_short_of_room_overrides_the_delay(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        await blocks.put(1, 0, pattern(1000))
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(StagingDir, "free_share", lambda _: 0.0)
        await blocks.put(2, 0, pattern(1000))
        await eventually_async(lambda: not mounted.staged)


async def test_no_more_than_so_many_blocks_are_staged_at_once(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write = StagingDir.write

    def slow(folder: StagingDir, key: str, data: Buffer, wanted: Callable[[], bool]) -> None:
        assert gate.wait(60)
        write(folder, key, data, wanted)

    monkeypatch.setattr(StagingDir, "write", slow)
    blocks = mounted.open(max_stage_write=1, upload_delay=3600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocks.put, 1, 0, pattern(LARGE))
        await trio.testing.wait_all_tasks_blocked()
        await blocks.put(2, 0, pattern(LARGE))
        gate.set()
    assert mounted.store.keys == [block_key(2, 0, LARGE)]
    assert mounted.staged == [block_key(1, 0, LARGE)]
    await blocks.remove(1, LARGE)
    await blocks.close()


@pytest.mark.logs("are staged and not")
async def test_only_small_blocks_are_staged_with_a_threshold(mounted: Mounted) -> None:
    blocks = mounted.open(writeback_threshold_size=2000)
    await blocks.put(1, 0, pattern(1999))
    await blocks.put(2, 0, pattern(2000))
    assert mounted.staged == [block_key(1, 0, 1999)]
    assert mounted.store.keys == [block_key(2, 0, 2000)]
    await blocks.close()


async def test_what_is_not_to_be_staged_goes_to_the_store(mounted: Mounted) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000), stage=False)
    assert mounted.store.keys == [block_key(1, 0, 1000)]
    await blocks.close()


def cut_short(path: Path) -> None:
    os.truncate(path, 500)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


@pytest.mark.logs("is no block", "are staged and not")
@pytest.mark.parametrize("harm", [cut_short, flip])
async def test_a_damaged_file_is_moved_aside_and_not_uploaded(mounted: Mounted, harm: Callable[[Path], None]) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000, 1))
    await blocks.put(2, 0, pattern(1000, 2))
    await blocks.close()
    bad, good = block_key(1, 0, 1000), block_key(2, 0, 1000)
    harm(mounted.folder / "cache/u/rawstaging" / bad)
    async with Running(mounted.open()):
        await eventually_async(lambda: not mounted.staged)
    assert mounted.store.keys == [good]
    assert (mounted.folder / "cache/u/rawdamaged" / bad).exists()
    assert mounted.cached == [good]


@pytest.mark.logs("is lost", "are staged and not")
@pytest.mark.parametrize("left", ["store", "second link", "nothing"])
async def test_a_staged_file_that_is_gone(mounted: Mounted, left: str) -> None:
    """Uploaded by another mount of the folder, or deleted by somebody."""
    key = block_key(1, 0, 1000)
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000))
    os.unlink(mounted.folder / "cache/u/rawstaging" / key)
    if left != "second link":
        os.unlink(mounted.folder / "cache/u/raw" / key)
    if left == "store":
        MemoryStore.put(mounted.store, key, pattern(1000))
    async with Running(blocks):
        await eventually_async(lambda: not staged(blocks))
    assert mounted.store.keys == ([key] if left == "second link" else [])


@pytest.mark.logs("are staged and not")
async def test_temporary_files_of_a_dead_mount_go(mounted: Mounted) -> None:
    blocks = mounted.open()
    await blocks.put(1, 0, pattern(1000))
    await blocks.close()
    old = mounted.folder / "cache/u/rawstaging/chunks/0/0/9_0_100.tmp"
    old.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    async with Running(mounted.open()):
        await eventually_async(lambda: not mounted.staged)
    assert not old.exists()


async def test_a_block_whose_cached_link_is_gone_is_read_from_its_staged_file(mounted: Mounted) -> None:
    blocks = mounted.open(upload_delay=3600.0)
    await blocks.put(1, 0, pattern(LARGE))
    os.unlink(mounted.folder / "cache/u/raw" / block_key(1, 0, LARGE))
    assert await blocks.read(1, LARGE, 1000, LARGE - 1000) == pattern(LARGE)[1000:]
    await blocks.remove(1, LARGE)
    await blocks.close()


async def test_blocks_lie_in_the_folders_that_the_ring_gives_them(mounted: Mounted) -> None:
    blocks = mounted.open(folders=3)
    async with Running(blocks):
        for number in range(60):
            await blocks.put(number, 0, pattern(100, number))
        await eventually_async(lambda: not mounted.staged)
    assert all(len(list((mounted.folder / name).rglob("*_0_100"))) > 3 for name in ("cache", "cache1", "cache2"))
    assert len(mounted.store.keys) == 60


@pytest.mark.logs("are staged and not")
async def test_draining_stages_nothing_and_waits_for_no_delay(mounted: Mounted) -> None:
    blocks = mounted.open(upload_delay=3600.0)
    async with Running(blocks):
        await blocks.put(1, 0, pattern(1000))
        assert blocks.staging is not None
        blocks.staging.drain(on=True)
        await blocks.put(2, 0, pattern(1000))
        await eventually_async(lambda: not mounted.staged)
        blocks.staging.drain(on=False)
        await blocks.put(3, 0, pattern(1000))
        assert mounted.staged == [block_key(3, 0, 1000)]


@pytest.mark.logs("is staged since", "are staged and not")
async def test_a_block_staged_for_too_long_is_named_once_an_hour(
    mounted: Mounted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jfs.chunk.uploader.LOOK_S", 0.01)
    blocks = mounted.open(upload_delay=100.0)
    await blocks.put(1, 0, pattern(1000))
    assert blocks.staging is not None
    blocks.staging._clock = lambda: time.time() + 50.0
    monkeypatch.setattr("jfs.chunk.uploader.STALE_S", -80.0)
    late = mounted.open(upload_delay=100.0)
    async with Running(late):
        await eventually_async(lambda: staged(late) == 1)
        assert late.staging is not None
        late.staging._clock = lambda: time.time() + 50.0
        await eventually_async(lambda: "is staged since" in caplog.text)
        await trio.sleep(0.05)
        assert caplog.text.count("is staged since") == 1
        assert block_key(1, 0, 1000) in caplog.text
    await blocks.close()


@pytest.mark.logs("are staged and not")
async def test_figures(mounted: Mounted) -> None:
    blocks = mounted.open()
    assert blocks.staging is not None
    await blocks.put(1, 0, pattern(1000))
    await blocks.put(2, 0, pattern(500))
    counts = blocks.staging.snapshot()
    assert (counts.blocks, counts.bytes, counts.write_bytes, counts.writing) == (2, 1500, 1500, 0)
    blocks.staging._clock = lambda: time.time() + 100
    assert 100 <= blocks.staging.snapshot().oldest_s < 150
    async with Running(blocks):
        await eventually_async(lambda: not staged(blocks))
        counts = blocks.staging.snapshot()
        assert (counts.blocks, counts.bytes, counts.oldest_s) == (0, 0, 0)
        assert counts.delay_s >= 200
    again = mounted.open(Retry(mounted.store))
    assert again.stats.uploading == 0
    await again.close()


def test_writeback_needs_a_folder() -> None:
    with pytest.raises(UserError, match="--cache-dir"):
        BlockStore(MemoryStore(), ChunkOptions(writeback=True))


@pytest.mark.parametrize(
    ("text", "hours"),
    [("", None), ("23,5", Hours(23, 5)), ("1-6", Hours(1, 6)), ("20,24", Hours(20, 0)), (" 1 , 6 ", Hours(1, 6))],
)
def test_upload_hours(text: str, hours: Hours | None) -> None:
    assert parse_hours(text) == hours


@pytest.mark.parametrize("text", ["5", "5,5", "5,25", "-1,4", "a,b", "1,2,3", "0,24"])
def test_wrong_upload_hours(text: str) -> None:
    with pytest.raises(UserError, match="upload-hours"):
        parse_hours(text)


@pytest.mark.parametrize(
    ("hours", "at", "wait"),
    [
        (Hours(1, 6), "00:30", 1800),
        (Hours(1, 6), "01:00", 0),
        (Hours(1, 6), "05:59", 0),
        (Hours(1, 6), "06:00", 19 * 3600),
        (Hours(23, 5), "23:30", 0),
        (Hours(23, 5), "04:59", 0),
        (Hours(23, 5), "22:15", 2700),
        (Hours(23, 0), "23:59", 0),
        (Hours(23, 0), "00:00", 23 * 3600),
    ],
)
def test_waiting_for_the_hours(hours: Hours, at: str, wait: int) -> None:
    now = time.mktime(time.strptime(f"2026-02-03 {at}", "%Y-%m-%d %H:%M"))
    assert hours.wait(now) == wait


@pytest.mark.logs("are staged and not uploaded")
async def test_blocks_behind_the_oldest_wake_nobody_and_are_not_forgotten(mounted: Mounted) -> None:
    """One worker waits for the oldest block; as it takes that it calls another for the next."""
    blocks = mounted.open(upload_delay=3.0)  # the puts and the looks come before, on any machine
    staging = blocks.staging
    assert staging is not None
    taken: list[str] = []
    woken = 0
    waits = staging._wait_for_next

    def counted() -> float:
        nonlocal woken
        woken += 1
        return waits()

    staging._wait_for_next = counted  # type: ignore[method-assign]

    async def work() -> None:
        taken.extend(block.key for block in await staging.next_due())
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        before = woken
        for number in range(3):
            await blocks.put(number + 1, 0, memoryview(pattern(100)))
            await trio.testing.wait_all_tasks_blocked()
        assert woken - before <= 3 + 1, "each put looks once, and the first wakes one worker, who looks once more"
        with trio.fail_after(60):
            while len(taken) < 3:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert taken == [block_key(number + 1, 0, 100) for number in range(3)]
    await blocks.close()
