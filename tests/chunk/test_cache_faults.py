"""Cache folders that cannot be used from the start, and what is staged in them beyond the cache's limits."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from jfs.chunk import cache_dir
from jfs.chunk.cache import DiskCache
from jfs.chunk.cache_dir import CacheDir
from jfs.chunk.cache_index import BLOCK_OVERHEAD
from jfs.chunk.eviction import Rest
from jfs.chunk.folders import lock_id
from jfs.chunk.layout import block_key
from jfs.errors import UserError
from tests.chunk.test_cache import BLOCK, UUID, fail_full, fail_io, key_of, options, quiet_dir
from tests.chunk.test_cache import pattern as bytes_of
from tests.chunk.test_staging import Mounted, Running, pattern
from tests.deadline import eventually, eventually_async

COST = BLOCK + BLOCK_OVERHEAD


# -- folders that cannot be used


def break_opening(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let the folder below the path of that name fail."""

    def lock(folder: str, wanted: str | None = None) -> str:
        if f"/{name}/" in folder:
            raise OSError(code, os.strerror(code), folder)
        return lock_id(folder, wanted)

    monkeypatch.setattr(cache_dir, "lock_id", lock)


@pytest.mark.logs("cache folder .*/a/.* is not used: open: .* .it is tried again in 10 s")
@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO, errno.EACCES, errno.ENOTDIR, errno.ELOOP])
def test_one_folder_that_fails_at_the_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patched:
        break_opening(patched, "a", code)
        cache = DiskCache(options(tmp_path / "a", tmp_path / "b"))
    failing, good = cache.dirs
    assert (failing.usable, good.usable) == (False, True)
    keys = [key_of(number) for number in range(10)]
    for key in keys:
        cache.add(key, bytes_of(BLOCK))
    cache.wait_written()
    assert all(good.get(key, BLOCK, 0, BLOCK) == bytes_of(BLOCK) for key in keys)
    for key in keys:
        cache.remove(key)
    monkeypatch.setattr(failing, "_retry_at", 0.0)
    eventually(lambda: failing.usable)
    cache.close()


@pytest.mark.logs("cache folder .*/file/.* is not used: open: Not a directory")
def test_a_folder_below_a_file_is_left_out_until_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = DiskCache(options(tmp_path / "file", tmp_path / "good"))
    below, good = cache.dirs
    assert (below.usable, good.usable) == (False, True)
    (tmp_path / "file").unlink()
    below.try_again()
    assert below.usable
    assert (tmp_path / "file" / UUID / ".lock").exists()
    cache.close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOTDIR, errno.ENOENT, errno.ELOOP])
def test_nothing_but_wrong_folders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    break_opening(monkeypatch, "a", code)
    with pytest.raises(UserError, match=f"cache folder .*/a/{UUID}: {os.strerror(code)}"):
        DiskCache(options(tmp_path / "a"))
    with pytest.raises(UserError, match=os.strerror(code)):
        DiskCache(options(tmp_path / "a" / "1", tmp_path / "a" / "2"))


@pytest.mark.logs("is not used: open", "no cache folder is left")
@pytest.mark.parametrize(
    "code", [errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN, errno.ESTALE]
)
def test_a_dead_disk_alone_means_a_cache_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with monkeypatch.context() as patched:
        break_opening(patched, "a", code)
        cache = DiskCache(options(tmp_path / "a"))
    cache.add(key_of(1), bytes_of(BLOCK))
    assert cache.get(key_of(1), BLOCK, 0, BLOCK) == bytes_of(BLOCK)
    cache.close()


# -- staged blocks beyond the limits


@pytest.mark.parametrize("policy", ["none", "lru", "2-random"])
@pytest.mark.parametrize("limit", [{"cache_size": 2 * (100 + BLOCK_OVERHEAD)}, {"cache_items": 2}])
async def test_uploaded_blocks_stay_within_the_limits(mounted: Mounted, policy: str, limit: dict[str, int]) -> None:
    blocks = mounted.open(cache_eviction=policy, **limit)
    mounted.store.gate.clear()
    async with Running(blocks):
        for number in range(10):
            await blocks.put(number, 0, pattern(100, number))
        assert len(mounted.staged) == len(mounted.cached) == 10
        mounted.store.gate.set()
        await eventually_async(lambda: not mounted.staged and len(mounted.cached) <= 2)
        assert len(mounted.cached) >= 1
        for number in range(10):
            assert await blocks.read(number, 100, 0, 100) == pattern(100, number)


async def test_uploaded_blocks_make_room_on_a_short_disk(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is evicted, too."""
    blocks = mounted.open(cache_eviction="none")
    mounted.store.gate.clear()
    async with Running(blocks):
        for number in range(5):
            await blocks.put(number, 0, pattern(100, number))
        monkeypatch.setattr(CacheDir, "_shortage", lambda self: 1)
        mounted.store.gate.set()
        await eventually_async(lambda: not mounted.staged and not mounted.cached)


async def test_uploaded_blocks_that_fit_stay_cached(mounted: Mounted) -> None:
    blocks = mounted.open(cache_eviction="none")
    async with Running(blocks):
        for number in range(5):
            await blocks.put(number, 0, pattern(100, number))
        await eventually_async(lambda: not mounted.staged)
        await trio.sleep(0.1)
        assert len(mounted.cached) == 5


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


# -- looking for what could go, where nothing can


class Crowded:
    """A folder for 4 blocks, with 10 staged ones; counts what is looked at."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.cache = quiet_dir(folder, cache_size=4 * COST, **changes)
        self._staged = folder / "staged"
        self._staged.mkdir()
        self.keys = [key_of(number) for number in range(10)]
        for number, key in enumerate(self.keys):
            path = Path(self.cache.path(key))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes_of(BLOCK))
            os.link(path, self._staged / str(number))
            self.cache.adopt(key, BLOCK)
        self.looks = 0
        stat = os.stat

        def counted(path: Any, **options: Any) -> os.stat_result:
            self.looks += "/raw/" in str(path) and options == {"follow_symlinks": False}
            return stat(path, **options)

        monkeypatch.setattr(os, "stat", counted)

    def upload(self, *numbers: int) -> list[str]:
        """Their keys."""
        for number in numbers:
            (self._staged / str(number)).unlink()
        return [self.keys[number] for number in numbers]

    def end_rest(self) -> None:
        self.cache._rest._until = 0.0

    @property
    def on_disk(self) -> int:
        return sum(os.path.exists(self.cache.path(key)) for key in self.keys)


@pytest.mark.parametrize("changes", [{}, {"cache_eviction": "lru"}, {"cache_items": 3}])
def test_what_cannot_go_is_not_looked_at_every_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    scene = Crowded(tmp_path, monkeypatch, **changes)
    for _ in range(10):
        scene.cache.tend()
    assert scene.looks == 10
    scene.cache.add(key_of(100), bytes_of(BLOCK))
    assert scene.cache._to_write.empty(), "there is no room for it"
    scene.cache._write(key_of(100), bytes_of(BLOCK))
    assert not os.path.exists(scene.cache.path(key_of(100)))
    assert scene.looks == 10


def test_blocks_that_are_uploaded_meanwhile_go_until_the_rest_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Crowded(tmp_path, monkeypatch)
    scene.cache.tend()
    scene.looks = 0
    for key in scene.upload(*range(9)):
        scene.cache.released(key)
        scene.cache.tend()
    assert (scene.on_disk, scene.looks) == (4, 6)
    scene.cache.add(key_of(100), bytes_of(BLOCK))
    assert not scene.cache._to_write.empty(), "there is room again"


def test_blocks_that_another_process_uploads_go_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Crowded(tmp_path, monkeypatch)
    scene.cache.tend()
    scene.upload(*range(10))
    scene.cache.tend()
    assert scene.on_disk == 10
    scene.end_rest()
    scene.cache.tend()
    assert scene.on_disk == 3


def test_a_disk_short_of_room_for_what_is_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Crowded(tmp_path, monkeypatch)
    monkeypatch.setattr(scene.cache, "capacity", 1 << 30)
    monkeypatch.setattr(scene.cache, "_shortage", lambda: 10 * COST)
    for _ in range(10):
        scene.cache.tend()
    assert scene.looks == 10
    for key in scene.upload(*range(10)):
        scene.cache.released(key)
    assert scene.on_disk == 0


def test_rests_grow_until_there_was_room() -> None:
    rest, now, lengths = Rest(), 1000.0, []
    for _ in range(12):
        assert not rest.lasts(now)
        rest.begin(now)
        start = now
        while rest.lasts(now):
            now += 1.0
        lengths.append(now - start)
    assert lengths == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    rest.begin(now)
    rest.end()
    assert not rest.lasts(now)
    rest.begin(now)
    assert rest.lasts(now + 1)
    assert not rest.lasts(now + 2)


def test_what_is_released_in_a_folder_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quiet_dir(tmp_path, cache_eviction="none", cache_items=1)
    key = block_key(1, 0, 10)
    folder.adopt(key, 10)
    folder.adopt(block_key(2, 0, 10), 10)
    folder.released(key)
    assert len(folder) == 1

    folder.adopt(key, 10)
    monkeypatch.setattr(os, "stat", fail_io)
    folder.released(key)
    assert folder.usable


def test_an_error_while_a_full_disk_makes_room_is_one_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the thread that writes."""
    folder = quiet_dir(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_create", fail_full)
        patch.setattr(folder, "_shortage", fail_io)
        folder.add(key_of(1), bytes_of(BLOCK))
        folder.start()
        folder.wait_written()
    folder.tend()
    folder.add(key_of(2), bytes_of(BLOCK))
    folder.wait_written()
    assert folder.holds(key_of(2))
    assert os.path.exists(folder.path(key_of(2)))
    folder.close()
