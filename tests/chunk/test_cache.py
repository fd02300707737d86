"""The disk cache: the peer's files and placement, verification, limits, faults."""

import errno
import json
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from jfs.chunk import checksum
from jfs.chunk.cache import DiskCache, open_cache, parse_cache_dirs
from jfs.chunk.cache_dir import CacheDir
from jfs.chunk.cache_index import BLOCK_OVERHEAD, block_number
from jfs.chunk.folders import lock_id
from jfs.chunk.layout import block_key
from jfs.chunk.memory_cache import MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.ring import Ring, legacy_place
from jfs.chunk.stats import CacheCounts
from jfs.chunk.store import BlockStore
from jfs.errors import UserError
from jfs.object.memory import MemoryStore
from tests.deadline import eventually

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "misc.json").read_text())
GOLDEN_RINGS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "golden" / "cache-rings.json").read_text()
)
UUID = "2c0d2f5a-8a5e-4c11-9a04-0b1f00000001"
BLOCK = 64 << 10


def golden_file(path: str) -> dict[str, str]:
    found: dict[str, str] = next(each for each in GOLDEN["cache_files"] if each["path"] == path)
    return found


def pattern(size: int) -> bytes:
    return bytes((i * 7 + i // 251) & 255 for i in range(size))


def break_scans(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Make the directories whose paths end so unreadable."""
    scandir = os.scandir

    def scan(path: str) -> Any:
        if path.rstrip("/").endswith(place):
            raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def key_of(number: int, size: int = BLOCK) -> str:
    return block_key(number, 0, size)


def options(*folders: Path, **changes: Any) -> ChunkOptions:
    settings: dict[str, Any] = {
        "block_size": BLOCK,
        "uuid": UUID,
        "cache_dirs": [str(folder) for folder in folders],
        "cache_size": 1 << 30,
        "free_space_ratio": 0.0,
    }
    return ChunkOptions(**{**settings, **changes})


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    made = DiskCache(options(tmp_path))
    yield made
    made.close()


def quiet_dir(folder: Path, **changes: Any) -> CacheDir:
    """A folder whose threads are not started: the test writes and tends."""
    settings = options(folder, **changes)
    made = CacheDir(str(folder / UUID), settings, CacheCounts())
    made.open()
    return made


def fill(folder: CacheDir, count: int, size: int = BLOCK) -> list[str]:
    keys = [key_of(number, size) for number in range(count)]
    for key in keys:
        folder._write(key, pattern(size))
    return keys


# -- the format


def test_ring_placement_of_the_peer() -> None:
    ring = Ring(GOLDEN["cache_ring"]["ids"])
    for key, place in GOLDEN["cache_ring"]["keys"].items():
        assert ring.place(key) == place, key


@pytest.mark.parametrize("golden", GOLDEN_RINGS, ids=["1", "2", "3"])
def test_ring_placement_of_the_peer_on_three_folders(golden: dict[str, Any]) -> None:
    """Where its points are balanced anew."""
    ring = Ring(golden["ids"])
    places = "".join(str(ring.place(f"chunks/0/0/1_{index}_65536")) for index in range(len(golden["places"])))
    assert places == golden["places"]


def test_legacy_placement_is_fnv1() -> None:
    assert legacy_place("", 1 << 32) == 0x811C9DC5
    assert legacy_place("a", 1 << 32) == 0x050C5D7E
    assert legacy_place("foobar", 1 << 32) == 0x31F0B262


@pytest.mark.parametrize("path", ["raw/chunks/04/0/4_0_1", "raw/chunks/01/0/4097_0_65536"])
def test_files_as_the_peer_writes_them(cache: DiskCache, tmp_path: Path, path: str) -> None:
    golden = golden_file(path)
    data = bytes.fromhex(golden["hex"])[:1] if "hex" in golden else pattern(65536)
    tail = bytes.fromhex(golden["hex"])[1:] if "hex" in golden else bytes.fromhex(golden["tail_hex"])
    cache.add(path.removeprefix("raw/"), data)
    cache.wait_written()
    written = tmp_path / UUID / path
    assert written.read_bytes() == data + tail
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    for folder in (written.parent, tmp_path / UUID / "raw/chunks", tmp_path / UUID / "raw", tmp_path / UUID):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_tier_footer_is_no_damage(tmp_path: Path) -> None:
    stored = bytes.fromhex(golden_file("rawstaging/chunks/01/0/16385_0_6")["hex"])
    folder = quiet_dir(tmp_path)
    path = Path(folder.path("chunks/01/0/16385_0_6"))
    path.parent.mkdir(parents=True)
    path.write_bytes(stored)
    assert folder.get("chunks/01/0/16385_0_6", 6, 0, 6) == stored[:6]
    path.write_bytes(stored[:6] + stored[10:])
    assert folder.get("chunks/01/0/16385_0_6", 6, 0, 6) == stored[:6]


def test_a_file_without_tail_is_accepted(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path, verify_cache_checksum="none")
    key = fill(folder, 1)[0]
    assert os.path.getsize(folder.path(key)) == BLOCK
    assert quiet_dir(tmp_path).get(key, BLOCK, 10, 100) == pattern(BLOCK)[10:110]


def test_lock_names_the_folder_and_stays(tmp_path: Path) -> None:
    name = lock_id(str(tmp_path / "c"))
    assert len(name) == 36
    assert lock_id(str(tmp_path / "c")) == name
    assert stat.S_IMODE((tmp_path / "c/.lock").stat().st_mode) == 0o666
    assert os.listdir(tmp_path / "c") == [".lock"]


# -- reading


@pytest.mark.parametrize("level", ["none", "full", "shrink", "extend"])
@pytest.mark.parametrize("size", [1, 32767, 32768, 32769, 65536])
def test_every_range_reads_back(tmp_path: Path, level: str, size: int) -> None:
    cache = DiskCache(options(tmp_path, verify_cache_checksum=level))
    key, data = key_of(1, size), pattern(size)
    cache.add(key, data)
    cache.wait_written()
    for offset in {0, 1, size // 2, max(size - 7, 0)} & set(range(size)):
        for length in {1, 7, size - offset} & set(range(1, size - offset + 1)):
            assert cache.get(key, size, offset, length) == data[offset : offset + length]
            now = cache.get_now(key, size, offset, length)
            assert now == data[offset : offset + length] or (now is None and level in ("full", "shrink"))
    cache.close()


@pytest.mark.logs("corrupt and dropped")
@pytest.mark.parametrize("damage", ["flip", "cut", "cut-tail", "grow"])
def test_a_damaged_block_is_dropped(cache: DiskCache, damage: str) -> None:
    key = key_of(1)
    cache.add(key, pattern(BLOCK))
    cache.wait_written()
    path = Path(cache.dirs[0].path(key))
    stored = bytearray(path.read_bytes())
    if damage == "flip":
        stored[100] ^= 1
    path.write_bytes(
        {"flip": stored, "cut": stored[:5000], "cut-tail": stored[:-3], "grow": stored[:100] + b"x" + stored[100:]}[
            damage
        ]
    )
    assert cache.get_now(key, BLOCK, 0, BLOCK) is None
    assert cache.get(key, BLOCK, 0, BLOCK) is None
    assert not path.exists()
    assert not cache.holds(key)


def test_only_the_units_read_are_verified(tmp_path: Path) -> None:
    for level, offset, length, found in [
        ("extend", 40000, 10, True),
        ("shrink", 10, 100, True),
        ("full", 0, 40000, True),
        ("none", 0, BLOCK, True),
    ]:
        folder = quiet_dir(tmp_path / level, verify_cache_checksum=level)
        key = fill(folder, 1)[0]
        data = bytearray(pattern(BLOCK) + b"\0" * 8)
        if level != "none":
            data[BLOCK:] = Path(folder.path(key)).read_bytes()[BLOCK:]
        data[0 if level == "extend" else 20] ^= 1
        Path(folder.path(key)).write_bytes(data)
        assert (folder.get(key, BLOCK, offset, length) is not None) is found, level


@pytest.mark.logs("corrupt and dropped")
async def test_a_damaged_cached_block_is_fetched_again(tmp_path: Path) -> None:
    objects = MemoryStore()
    settings = options(tmp_path)
    cache = DiskCache(settings)
    blocks = BlockStore(objects, settings, cache)
    await blocks.put(1, 0, pattern(1000))
    cache.wait_written()
    path = Path(cache.dirs[0].path(block_key(1, 0, 1000)))
    path.write_bytes(b"\0" * 1004)
    assert await blocks.read(1, 1000, 5, 900) == pattern(1000)[5:905]
    assert await blocks.read(1, 1000, 0, 1000) == pattern(1000)
    cache.wait_written()
    assert path.read_bytes()[:1000] == pattern(1000)
    await blocks.close()


def test_removed_behind_our_back(cache: DiskCache) -> None:
    cache.add(key_of(1), pattern(BLOCK))
    cache.wait_written()
    os.unlink(cache.dirs[0].path(key_of(1)))
    assert cache.get(key_of(1), BLOCK, 0, 10) is None
    assert not cache.holds(key_of(1))
    assert cache.counts().bytes == 0


# -- several folders


def test_blocks_go_where_the_ring_says_and_legacy_places_are_read(tmp_path: Path) -> None:
    cache = DiskCache(options(tmp_path / "a", tmp_path / "b"))
    keys = [key_of(number, 100) for number in range(30)]
    for key in keys:
        cache.add(key, pattern(100))
        cache.wait_written()
    ring = Ring([each.id for each in cache.dirs])
    for key in keys:
        assert [os.path.exists(each.path(key)) for each in cache.dirs].index(True) == ring.place(key)
    moved = next(key for key in keys if ring.place(key) != legacy_place(key, 2))
    source, target = cache.dirs[ring.place(moved)], cache.dirs[legacy_place(moved, 2)]
    os.makedirs(os.path.dirname(target.path(moved)), exist_ok=True)
    os.rename(source.path(moved), target.path(moved))
    source.index.discard(moved)
    target.scan()
    assert cache.get(moved, 100, 0, 100) == pattern(100)
    cache.remove(moved)
    assert not os.path.exists(target.path(moved))
    cache.close()


@pytest.mark.logs("is not used any more|no cache folder is left")
def test_a_lost_lock_takes_a_folder_out(tmp_path: Path) -> None:
    cache = DiskCache(options(tmp_path / "a", tmp_path / "b"))
    keys = [key_of(number, 100) for number in range(20)]
    for turn, lost in enumerate(cache.dirs):
        os.unlink(f"{lost.folder}/.lock")
        eventually(lambda lost=lost: not lost.usable)  # type: ignore[misc]
        for key in keys:
            cache.add(key, pattern(100))
            cache.wait_written()
        if turn == 0:
            assert all(cache.dirs[1].holds(key) for key in keys)
    assert all(cache.get(key, 100, 0, 100) == pattern(100) for key in keys)
    cache.close()


@pytest.mark.logs("cache folder")
def test_a_failing_folder_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quiet_dir(tmp_path)

    def fail(*_: object, **__: object) -> int:
        raise OSError(5, "Input/output error")

    key = fill(folder, 1)[0]
    monkeypatch.setattr(os, "open", fail)
    for _ in range(3):
        assert folder.usable
        assert folder.get(key, BLOCK, 0, 10) is None
    assert not folder.usable
    assert not folder.holds(key)


# -- limits


@pytest.mark.parametrize("policy", ["2-random", "lru"])
def test_size_limit_evicts_to_95_percent(tmp_path: Path, policy: str) -> None:
    limit = 20 * (BLOCK + BLOCK_OVERHEAD)
    folder = quiet_dir(tmp_path, cache_size=limit, cache_eviction=policy)
    fill(folder, 20)
    assert folder.used == limit
    folder._write(key_of(100), pattern(BLOCK))
    assert folder.used <= limit * 0.95
    on_disk = sum(1 for path in (tmp_path / UUID / "raw").rglob("*") if path.is_file())
    assert on_disk == len(folder) == 19


def test_lru_drops_the_longest_unused(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path, cache_size=4 * (BLOCK + BLOCK_OVERHEAD), cache_eviction="lru")
    keys = fill(folder, 4)
    for age, key in enumerate(reversed(keys)):
        folder.index.used_at[block_number(key)] -= age * 100
    folder.touch(keys[0])
    folder._write(key_of(100), pattern(BLOCK))
    assert [folder.holds(key) for key in keys] == [True] * 4  # not scanned: any file may be there
    folder.scan()
    assert [folder.holds(key) for key in keys] == [True, False, False, True]


def test_policy_none_keeps_what_is_there(tmp_path: Path) -> None:
    settings = options(tmp_path, cache_size=2 * (BLOCK + BLOCK_OVERHEAD), cache_eviction="none")
    cache = DiskCache(settings)
    for number in range(4):
        cache.add(key_of(number), pattern(BLOCK))
        cache.wait_written()
    eventually(lambda: cache.dirs[0]._scanned)
    assert [cache.holds(key_of(number)) for number in range(4)] == [True, True, False, False]
    cache.close()


def test_item_limit(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path, cache_items=100)
    fill(folder, 101, 10)
    assert len(folder) == 99


def test_free_space_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quiet_dir(tmp_path, free_space_ratio=0.1)
    fill(folder, 10)
    shortage = 3 * BLOCK
    monkeypatch.setattr(folder, "_shortage", lambda: shortage)
    folder.tend()
    assert len(folder) == 7
    folder.add(key_of(200), pattern(BLOCK))
    assert folder._to_write.empty(), "nothing is cached while the disk is short"
    shortage = 0
    folder.tend()
    folder.add(key_of(200), pattern(BLOCK))
    assert not folder._to_write.empty()


def test_the_share_is_lowered_to_what_the_disk_may_hold(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    folder = quiet_dir(tmp_path, cache_size=1 << 60, free_space_ratio=0.25)
    assert folder.capacity == int(disk.f_blocks * disk.f_frsize * 0.75)


def test_expiry(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path, cache_expire=60.0)
    old, fresh = fill(folder, 2)
    folder.index.used_at[block_number(old)] -= 61
    folder.tend()
    assert not os.path.exists(folder.path(old))
    assert os.path.exists(folder.path(fresh))


def test_staged_blocks_are_not_evicted(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path, cache_items=1)
    keys = fill(folder, 1)
    os.link(folder.path(keys[0]), tmp_path / "staged")
    folder._write(key_of(50), pattern(BLOCK))
    assert os.path.exists(folder.path(keys[0]))


# -- the index


STRANGERS = (
    "stranger",
    "stranger.tmp",
    "9_0_10",
    "chunks/9_0_10",
    "chunks/0/0/1_2",
    "chunks/0/0/01_0_5",
    "chunks/0/0/9_0_10.tmp.tmp",
)


def test_the_index_is_rebuilt_and_leftovers_go(tmp_path: Path) -> None:
    first = quiet_dir(tmp_path)
    keys = fill(first, 5)
    raw = tmp_path / UUID / "raw"
    for name in ("chunks/0/0/7_0_10.tmp", "chunks/0/0/8_0_10.tmp", *STRANGERS):
        (raw / name).write_bytes(b"x")
        if name != "chunks/0/0/8_0_10.tmp":
            os.utime(raw / name, (1, 1))
    second = quiet_dir(tmp_path)
    second.scan()
    assert (len(second), second.used) == (5, first.used)
    assert all(second.holds(key) for key in keys)
    assert not second.holds(key_of(99))
    assert not (raw / "chunks/0/0/7_0_10.tmp").exists()
    assert (raw / "chunks/0/0/8_0_10.tmp").exists()
    assert all((raw / name).exists() for name in STRANGERS)
    os.unlink(second.path(keys[0]))
    second.index.used_at[block_number(keys[0])] -= 100
    second.scan()
    assert not second.holds(keys[0])


def test_a_full_queue_drops(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path, buffer_size=400)
    for number in range(100):
        folder.add(key_of(number, 10), pattern(10))
    assert folder._counts.drops == 68
    folder.start()
    folder.wait_written()
    assert len(folder) == 32
    folder.close()


def test_what_waits_for_its_write_is_read_from_memory(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else readers of a block just fetched fetch it again while the disk is busy."""
    (folder,) = cache.dirs
    eventually(lambda: folder._scanned)
    writing, go = threading.Event(), threading.Event()
    write = folder._write

    def slowly(key: str, data: bytes) -> None:
        writing.set()
        assert go.wait(10)
        write(key, data)

    monkeypatch.setattr(folder, "_write", slowly)
    keys = [key_of(number) for number in range(3)]
    for key in keys:
        cache.add(key, pattern(BLOCK))
    assert writing.wait(10)
    for key in keys:
        assert cache.holds(key)
        assert cache.get(key, BLOCK, 100, 10) == cache.get_now(key, BLOCK, 100, 10) == pattern(BLOCK)[100:110]
        assert cache.get_now(key, BLOCK, 0, BLOCK) == pattern(BLOCK)
        assert cache.get_now(key, BLOCK, 1, BLOCK) is None
    for key in keys[:2]:  # one that is being written, and one that is not yet
        cache.remove(key)
        assert not cache.holds(key)
    cache.add(keys[1], bytes(BLOCK))
    assert cache.get_now(keys[1], BLOCK, 0, 10) == bytes(10)
    go.set()
    cache.wait_written()
    assert not folder.waiting
    assert not cache.holds(keys[0])
    assert not os.path.exists(folder.path(keys[0]))
    assert cache.get(keys[1], BLOCK, 0, BLOCK) == bytes(BLOCK)
    assert cache.get(keys[2], BLOCK, 0, BLOCK) == pattern(BLOCK)


def test_concurrent_write_of_one_block_is_left_to_the_other(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path)
    key = key_of(1)
    os.makedirs(os.path.dirname(folder.path(key)))
    Path(folder.path(key) + ".tmp").write_bytes(b"theirs")
    folder._write(key, pattern(BLOCK))
    assert not os.path.exists(folder.path(key))
    assert Path(folder.path(key) + ".tmp").read_bytes() == b"theirs"


# -- options


def test_which_cache(tmp_path: Path) -> None:
    assert open_cache(options()) is None
    assert open_cache(options(tmp_path, cache_size=0)) is None
    assert isinstance(open_cache(ChunkOptions(cache_dirs=["memory"])), MemoryCache)
    disk = open_cache(options(tmp_path))
    assert isinstance(disk, DiskCache)
    disk.close()


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eviction policy 'fifo'"):
        open_cache(options(tmp_path, cache_eviction="fifo"))
    with pytest.raises(UserError, match="level 'some'"):
        open_cache(options(tmp_path, verify_cache_checksum="some"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="Not a directory"):
        open_cache(options(tmp_path / "file"))


def test_cache_dir_text(tmp_path: Path) -> None:
    (tmp_path / "d1").mkdir()
    (tmp_path / "d2").mkdir()
    assert parse_cache_dirs("/a:/b/") == ["/a", "/b"]
    assert parse_cache_dirs("/a,/b") == ["/a", "/b"]
    assert parse_cache_dirs("memory") == ["memory"]
    assert parse_cache_dirs(f"{tmp_path}/d*") == [f"{tmp_path}/d1", f"{tmp_path}/d2"]
    assert parse_cache_dirs(f"{tmp_path}/d2/:{tmp_path}/d?:/x") == [f"{tmp_path}/d2", f"{tmp_path}/d1", "/x"]
    with pytest.raises(UserError, match=r"no folder matches .*/e"):
        parse_cache_dirs(f"{tmp_path}/d1:{tmp_path}/e*")


def test_memory_cache_forgets_the_longest_unused() -> None:
    cache = MemoryCache(250)
    for name in ("a", "b"):
        cache.add(name, bytes(100))
    assert cache.get("a", 100, 10, 20) == bytes(20)
    cache.add("c", bytes(100))
    cache.add("huge", bytes(300))
    assert [cache.holds(name) for name in ("a", "b", "c", "huge")] == [True, False, True, False]
    counts = cache.counts()
    assert (counts.blocks, counts.bytes, counts.evicts) == (2, 200, 1)


def test_limits_of_a_memory_cache() -> None:
    few = MemoryCache(1000, items=2)
    kept = MemoryCache(250, keep=True)
    for cache in (few, kept):
        for name in ("a", "b", "c"):
            cache.add(name, bytes(100))
    assert [few.holds(name) for name in ("a", "b", "c")] == [False, True, True]
    assert [kept.holds(name) for name in ("a", "b", "c")] == [True, True, False]


def test_expiry_in_memory() -> None:
    now = [0.0]
    cache = MemoryCache(1000, expire=60, clock=lambda: now[0])
    cache.add("a", bytes(100))
    cache.add("b", bytes(100))
    now[0] = 50
    assert cache.get("a", 100, 0, 1) == b"\0"
    now[0] = 100
    cache.drop_idle()
    assert (cache.holds("a"), cache.holds("b"), cache.used) == (True, False, 100)


async def test_reads_through_a_disk_cache_need_no_thread_when_warm(tmp_path: Path) -> None:
    settings = options(tmp_path)
    cache = DiskCache(settings)
    blocks = BlockStore(MemoryStore(), settings, cache)
    await blocks.put(1, 0, pattern(1000))
    await trio.to_thread.run_sync(cache.wait_written)
    assert blocks.read_now(1, 1000, 10, 100) == pattern(1000)[10:110]
    await blocks.remove(1, 1000)
    assert blocks.read_now(1, 1000, 10, 100) is None
    await blocks.close()


def test_a_full_disk_makes_room_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quiet_dir(tmp_path)
    before = fill(folder, 4)
    folder.scan()
    monkeypatch.setattr("jfs.object.file.write_all", fail_full)
    for number in range(50, 54):
        add_now(folder, key_of(number))
        assert not folder.holds(key_of(number))
        folder.tend()
    monkeypatch.undo()
    assert folder.usable
    assert not any(folder.holds(key) for key in before)
    add_now(folder, key_of(60))
    assert folder.holds(key_of(60))


def fail_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def add_now(folder: CacheDir, key: str) -> None:
    """What the writing thread would do."""
    folder.add(key, pattern(BLOCK))
    folder._to_write.put(None)
    folder._write_loop()


# -- faults of a folder


@pytest.mark.logs("is not used any more: its .lock file is gone")
def test_nothing_is_made_where_a_folder_was(tmp_path: Path) -> None:
    """The disk below may have been unmounted: the next block must not go to the disk above."""
    folder = quiet_dir(tmp_path)
    shutil.rmtree(folder.folder)
    add_now(folder, key_of(1))
    assert not folder.usable
    assert os.listdir(tmp_path) == []


@pytest.mark.logs("is not used any more: its .lock file is gone")
def test_a_deleted_folder_is_made_again(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path)
    name, keys = folder.id, fill(folder, 3)
    shutil.rmtree(folder.folder)
    folder.tend()
    assert (folder.usable, len(folder), folder.used) == (False, 0, 0)
    assert not folder.holds(keys[0])
    folder.try_again()
    assert (folder.usable, folder.id) == (True, name)
    folder.scan()
    assert not folder.holds(keys[0])
    add_now(folder, keys[0])
    assert folder.get(keys[0], BLOCK, 0, BLOCK) == pattern(BLOCK)


@pytest.mark.logs("is not used any more: its .lock file is gone")
def test_a_folder_on_another_device_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quiet_dir(tmp_path)
    monkeypatch.setattr(folder, "disk", -1)
    folder.tend()
    folder.try_again()
    assert not folder.usable


@pytest.mark.logs("is not used any more: read .*: Input/output error")
def test_a_disk_that_works_again_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(options(tmp_path / "a", tmp_path / "b"))
    keys = [key_of(number, 100) for number in range(40)]
    for key in keys:
        cache.add(key, pattern(100))
        cache.wait_written()
    broken, other = cache.dirs
    its_keys = [key for key in keys if cache.home(key) is broken]
    with monkeypatch.context() as patched:
        patched.setattr(checksum, "read_part", fail_io)
        for key in its_keys[:3]:
            assert broken.get(key, 100, 0, 100) is None
    assert not broken.usable
    assert all(cache.home(key) is other for key in its_keys)
    monkeypatch.setattr(broken, "_retry_at", 0.0)
    eventually(lambda: broken.usable and broken._scanned)
    assert all(cache.home(key) is broken for key in its_keys)
    assert all(cache.get(key, 100, 0, 100) == pattern(100) for key in keys)
    assert cache.counts().blocks == len(keys)
    cache.close()


@pytest.mark.logs("is not used: open: No space left on device")
def test_a_disk_that_is_full_at_the_start_joins_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", fail_full)
        cache = DiskCache(options(tmp_path / "a", tmp_path / "b"))
    full, other = cache.dirs
    assert (full.usable, other.usable) == (False, False)
    cache.add(key_of(1), pattern(BLOCK))
    assert cache.get(key_of(1), BLOCK, 0, BLOCK) == pattern(BLOCK), "from memory"
    for each in cache.dirs:
        monkeypatch.setattr(each, "_retry_at", 1.0)
    eventually(lambda: full.usable and other.usable)
    assert (full.folder, full.capacity) == (f"{tmp_path}/a/{UUID}", 1 << 29)
    cache.add(key_of(1), pattern(BLOCK))
    cache.wait_written()
    home = cache.home(key_of(1))
    assert home is not None
    assert home.get(key_of(1), BLOCK, 0, BLOCK) == pattern(BLOCK)
    cache.close()


def fail_io(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.logs("is only read for now, write .*: Read-only file system")
def test_a_read_only_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quiet_dir(tmp_path, cache_items=4)
    keys = fill(folder, 3)
    create, unlink = folder._create, os.unlink

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(folder, "_create", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    for number in range(50, 60):
        add_now(folder, key_of(number))
        folder.remove(key_of(number))
        folder._evict(BLOCK)
    assert all(folder.get(key, BLOCK, 0, BLOCK) == pattern(BLOCK) for key in keys)
    assert (folder.usable, len(folder), folder._counts.drops) == (True, 3, 1)
    monkeypatch.setattr(folder, "_create", create)
    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(folder, "_refused_until", 1.0)
    add_now(folder, key_of(50))
    assert folder._refused_until == 0
    assert len(folder) == 4


def test_a_leftover_of_a_dead_writer_is_no_obstacle_for_long(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path)
    fill(folder, 1)
    temp = Path(folder.path(key_of(1)) + ".tmp")
    temp.write_bytes(b"dead")
    os.utime(temp, (1, 1))
    add_now(folder, key_of(1))
    add_now(folder, key_of(1))
    assert folder.get(key_of(1), BLOCK, 0, BLOCK) == pattern(BLOCK)
    assert not temp.exists()


async def test_removed_blocks_let_go_of_their_space(tmp_path: Path) -> None:
    cache = DiskCache(options(tmp_path))
    cache.add(key_of(1), pattern(BLOCK))
    cache.add(key_of(2), pattern(BLOCK))
    await trio.to_thread.run_sync(cache.wait_written)
    assert cache.get_now(key_of(1), BLOCK, 0, 10) == pattern(10)
    assert len(cache._descriptors) == 1
    await trio.to_thread.run_sync(cache.remove, key_of(1))
    assert cache.get_now(key_of(2), BLOCK, 0, 10) == pattern(10)
    assert len(cache._descriptors) == 1
    cache.close()


def test_a_block_that_is_fetched_twice_is_written_once(tmp_path: Path) -> None:
    folder = quiet_dir(tmp_path)
    for _ in range(3):
        folder.add(key_of(1), pattern(BLOCK))
    folder.start()
    folder.wait_written()
    assert folder._counts.writes == 1
    folder.remove(key_of(1))
    folder.add(key_of(1), pattern(BLOCK))
    folder.wait_written()
    assert folder._counts.writes == 2
    folder.close()


async def test_what_another_process_put_there_lets_go_of_its_space(tmp_path: Path) -> None:
    cache = DiskCache(options(tmp_path))
    cache.add(key_of(1), pattern(BLOCK))
    await trio.to_thread.run_sync(cache.wait_written)
    path = cache.dirs[0].path(key_of(1))
    assert cache.get_now(key_of(1), BLOCK, 0, 10) == pattern(10)
    before = os.stat(path).st_ino
    await trio.to_thread.run_sync(cache.dirs[0]._write, key_of(1), pattern(BLOCK))
    assert os.stat(path).st_ino != before
    assert cache.get_now(key_of(1), BLOCK, 0, 10) == pattern(10)
    assert os.fstat(cache._descriptors._open[path].fd).st_ino == os.stat(path).st_ino
    cache.close()


# -- which blocks are kept


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {"short write", "short read", "whole read"}),
        ({"cache_large_write": True}, {"short write", "whole write", "short read", "whole read"}),
        ({"cache_partial_only": True}, {"short write", "short read"}),
    ],
)
async def test_which_blocks_are_kept(tmp_path: Path, changes: dict[str, Any], kept: set[str]) -> None:
    settings = options(tmp_path, **changes)
    cache = DiskCache(settings)
    objects = MemoryStore()
    blocks = BlockStore(objects, settings, cache)
    sizes = {"short write": 1000, "whole write": BLOCK, "short read": 500, "whole read": BLOCK}
    for number, (what, size) in enumerate(sizes.items()):
        if what.endswith("write"):
            await blocks.put(number, 0, pattern(size))
        else:
            objects.put(block_key(number, 0, size), pattern(size))
            assert await blocks.read(number, size, 0, size) == pattern(size)
    await trio.to_thread.run_sync(cache.wait_written)
    await trio.to_thread.run_sync(cache.dirs[0].scan)
    assert {what for number, what in enumerate(sizes) if cache.holds(block_key(number, 0, sizes[what]))} == kept
    await blocks.close()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_the_mode_of_blocks(tmp_path: Path, mode: int) -> None:
    folder = quiet_dir(tmp_path, cache_mode=mode)
    (key,) = fill(folder, 1)
    assert stat.S_IMODE(os.stat(folder.path(key)).st_mode) == mode


@pytest.mark.parametrize(("interval", "again"), [(0.0, False), (0.01, True)])
def test_the_scan_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: float, *, again: bool) -> None:
    folder = quiet_dir(tmp_path, cache_scan_interval=interval)
    scans: list[float] = []
    monkeypatch.setattr(folder, "scan", lambda: scans.append(0))
    folder._scan_if_due()
    if again:
        eventually(lambda: time.monotonic() > folder._next_scan)
    folder._scan_if_due()
    assert len(scans) == 1 + again


# -- sharing


def test_two_clients_share_a_folder(tmp_path: Path) -> None:
    """Each writes, drops and reads blocks that the other does not know of, or believes to be there."""
    one, two = quiet_dir(tmp_path), quiet_dir(tmp_path)
    assert one.id == two.id
    keys = fill(one, 10)
    two.scan()
    assert all(two.get(key, BLOCK, 0, BLOCK) == pattern(BLOCK) for key in keys)
    for key in keys[:5]:
        one.remove(key)
    one.scan()
    assert [two.get(key, BLOCK, 0, BLOCK) is not None for key in keys] == [False] * 5 + [True] * 5
    assert len(two) == 5
    one._write(keys[0], pattern(BLOCK))
    two._write(keys[0], pattern(BLOCK))
    assert one.get(keys[0], BLOCK, 0, BLOCK) == two.get(keys[0], BLOCK, 0, BLOCK) == pattern(BLOCK)
    two.scan()
    assert (len(one), one.used) == (len(two), two.used) == (6, 6 * (BLOCK + BLOCK_OVERHEAD))


def test_limits_are_shared_by_the_folders(tmp_path: Path) -> None:
    cache = DiskCache(options(*(tmp_path / name for name in "abcd"), cache_size=1 << 20, cache_items=10))
    assert [(each.capacity, each._items) for each in cache.dirs] == [(1 << 18, 2)] * 4
    cache.close()


@pytest.mark.logs("cannot be read")
def test_a_directory_that_cannot_be_read_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = quiet_dir(tmp_path)
    for number in (1, 1001, 2001):
        written._write(key_of(number), pattern(BLOCK))
    folder = quiet_dir(tmp_path)
    with monkeypatch.context() as patch:
        break_scans(patch, "raw/chunks/0/1")
        folder.scan()
        assert len(folder) == 2
        assert not folder.holds(key_of(1001))
    folder.scan()
    assert folder.holds(key_of(1001))
    break_scans(monkeypatch, "/raw")
    with pytest.raises(OSError, match="needs cleaning"):
        folder.scan()
