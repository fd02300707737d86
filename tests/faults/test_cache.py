"""Faults of the disk cache under a mount: reads go on from the store, the log says so once, and nobody gets an error."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.test_store import drop_caches, flip, immutable, noise
from tests.mounts import JFS, PEER, Mount, Volume, format_volume

MIB = 1 << 20
FILES = 12


def cached_blocks(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("raw/chunks/*/*/*") if path.is_file() and path.suffix != ".tmp")


def content(number: int) -> bytes:
    return noise(number, MIB + number)


class Load:
    """Reads all files again and again, and writes a new one now and then, until it is told to stop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rounds = 0
        self.failures: list[BaseException] = []
        self._stop = threading.Event()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
                self.rounds += 1
        except BaseException as error:
            self.failures.append(error)

    def _round(self) -> None:
        for number in range(FILES):
            descriptor = os.open(self.root / f"f{number}", os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(descriptor, 2 * MIB, 0) == content(number), f"f{number}"
            finally:
                os.close(descriptor)
        fresh = self.root / f"new{self.rounds % 8}"
        fresh.write_bytes(noise(self.rounds, 300_000))
        assert fresh.read_bytes() == noise(self.rounds, 300_000)


@contextmanager
def loaded(mount: Mount) -> Generator[Load, None, None]:
    """A load on the mount that must not see any failure."""
    load = Load(mount.path)
    load.start()
    try:
        some_rounds(load)
        yield load
        some_rounds(load)
    finally:
        load.stop()
    assert load.failures == []


def some_rounds(load: Load, count: int = 2) -> None:
    target = load.rounds + count
    eventually(lambda: load.rounds >= target or load.failures, 120, "rounds of the load")
    assert load.failures == []


def warnings(mount: Mount) -> list[str]:
    """Lines at WARNING and above, after which none but these came."""
    return [line for line in mount.log.read_text().splitlines() if "<WARNING>" in line or "<ERROR>" in line]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    made = format_volume(
        JFS, tmp_path / "v", "cached", "--trash-days", "0", "--compress", "lz4"
    )  # no way past the cache
    with made.mounted(JFS) as mount:
        for number in range(FILES):
            (mount.path / f"f{number}").write_bytes(content(number))
    return made


def flags(cache: Path, *more: str) -> tuple[str, ...]:
    return ("--cache-dir", str(cache), *more)


def remove(folder: Path) -> None:
    """The mount may put a block into it meanwhile."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    eventually(gone, 30, f"{folder} to be removed")


def test_folder_deleted(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with volume.mounted(JFS, *flags(cache), expect_log=["its .lock file is gone"]) as mount:
        with loaded(mount):
            eventually(lambda: len(cached_blocks(cache)) >= FILES, 60, "blocks in the cache")
            remove(cache)
            eventually(lambda: warnings(mount), 60, "a line in the log")
        assert len(warnings(mount)) == 1
        with loaded(mount):
            eventually(lambda: len(cached_blocks(cache)) >= FILES, 30, "the folder to be made again")
        assert len(warnings(mount)) == 1


def test_one_folder_of_two_deleted(volume: Volume, tmp_path: Path) -> None:
    lost, kept = tmp_path / "cache-1", tmp_path / "cache-2"
    lost.mkdir()
    kept.mkdir()
    with volume.mounted(JFS, *flags(tmp_path / "cache-*"), expect_log=["its .lock file is gone"]) as mount:
        with loaded(mount):
            eventually(lambda: len(cached_blocks(lost)) + len(cached_blocks(kept)) >= FILES, 60, "blocks in the cache")
            eventually(lambda: cached_blocks(lost), 60, "one in either folder")
            remove(lost)
            eventually(lambda: len(cached_blocks(kept)) >= FILES, 60, "all blocks in the other folder")
        assert len(warnings(mount)) == 1


def test_folder_is_read_only(volume: Volume, tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("ext4", "100M")
    with volume.mounted(JFS, *flags(disk), expect_log=["is only read for now"]) as mount:
        with loaded(mount):
            eventually(lambda: len(cached_blocks(disk)) >= FILES, 60, "blocks in the cache")
            immutable(disk, on=True)
            try:
                eventually(lambda: warnings(mount), 60, "a line in the log")
                reads = mount.figure("blockcache_hits")
                eventually(lambda: mount.figure("blockcache_hits") > reads + 10, 60, "reads of what it holds")
            finally:
                immutable(disk, on=False)
        assert len(warnings(mount)) == 1


def test_disk_turns_read_only(volume: Volume, tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """As the kernel does it to a disk with errors."""
    disk = small_disk("tmpfs", "100m")
    with volume.mounted(JFS, *flags(disk), expect_log=["is only read for now"]) as mount:
        with loaded(mount):
            eventually(lambda: len(cached_blocks(disk)) >= FILES, 60, "blocks in the cache")
            eventually(lambda: remount(disk, "ro"), 60, "a moment without a write")
            eventually(lambda: warnings(mount), 60, "a line in the log")
            remount(disk, "rw")
        assert len(warnings(mount)) == 1


def remount(disk: Path, options: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{options}", disk], capture_output=True).returncode == 0


def test_disk_is_unmounted(volume: Volume, tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """What lies below its mount point gets no block."""
    disk = small_disk("tmpfs", "100m")
    cache = disk / "cache"
    with volume.mounted(JFS, *flags(cache), expect_log=["its .lock file is gone"]) as mount:
        with loaded(mount):
            eventually(lambda: len(cached_blocks(cache)) >= FILES, 60, "blocks in the cache")
            subprocess.run(["umount", "-l", disk], check=True)
            eventually(lambda: warnings(mount), 60, "a line in the log")
        assert list(disk.iterdir()) == []
        assert len(warnings(mount)) == 1


def test_blocks_are_corrupted(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with volume.mounted(JFS, *flags(cache), expect_log=["corrupt and dropped"]) as mount:
        with loaded(mount) as load:
            eventually(lambda: len(cached_blocks(cache)) >= FILES, 60, "blocks in the cache")
            for path in cached_blocks(cache):
                with suppress(FileNotFoundError):  # the load replaces some
                    flip(path, 1000)
            some_rounds(load)
        assert len(warnings(mount)) >= FILES


def test_files_are_cut_short_and_replaced(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with volume.mounted(JFS, *flags(cache), expect_log=["corrupt and dropped", "cache folder"]) as mount:
        with loaded(mount):
            blocks = eventually(
                lambda: len(found := cached_blocks(cache)) >= FILES and found, 60, "blocks in the cache"
            )
            for number, path in enumerate(blocks):
                if number % 3 == 0:
                    os.truncate(path, 1000)
                elif number % 3 == 1:
                    path.write_bytes(os.urandom(path.stat().st_size))
                else:
                    path.unlink()


def test_disk_is_full(volume: Volume, tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """By our own blocks, and by others' files: the cache gets smaller, and the mount does not notice."""
    disk = small_disk("tmpfs", "8m")
    with volume.mounted(JFS, "--cache-dir", str(disk), "--free-space-ratio", "0") as mount:
        with loaded(mount) as load:
            some_rounds(load, 5)
            assert mount.figure("blockcache_evicts") > 0
            with pytest.raises(OSError, match="No space left"):
                (disk / "others").write_bytes(bytes(9 * MIB))
            some_rounds(load, 3)
            (disk / "others").unlink()
            eventually(lambda: len(cached_blocks(disk)) >= 3, 60, "blocks in the cache again")
        assert warnings(mount) == []


def test_foreign_files_are_left_alone(volume: Volume, tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """The disk's own lost+found, others' folders and files, and things in our folder that are no blocks."""
    disk = small_disk("ext4", "60M")
    with volume.mounted(JFS, *flags(disk)) as mount:
        assert (mount.path / "f0").read_bytes() == content(0)
        (folder,) = eventually(lambda: list(disk.glob("*/raw")), 30, "the folder")
    strangers = [
        disk / "other/raw/chunks/0/0/1_0_5",
        folder / "chunks/notes.txt",
        folder.parent / "README",
        folder / "x.tmp",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
        os.utime(path, (1, 1))
    with (
        volume.mounted(
            JFS, *flags(disk, "--cache-size", "2M", "--cache-scan-interval", "1s", "--cache-expire", "1s")
        ) as mount,
        loaded(mount) as load,
    ):
        some_rounds(load, 3)
        eventually(lambda: mount.figure("blockcache_evicts") > 0, 60, "evictions")
    assert [path.read_bytes() for path in strangers] == [b"12345"] * len(strangers)
    assert (disk / "lost+found").is_dir()


@pytest.mark.parametrize("other", [JFS, PEER], ids=["jfs", "juicefs"])
def test_two_mounts_share_a_small_folder(volume: Volume, tmp_path: Path, other: object) -> None:
    """Each throws out what the other has just cached."""
    assert other is JFS or other is PEER
    cache = tmp_path / "cache"
    small = flags(cache, "--cache-size", "6M", "--cache-scan-interval", "1s")
    with (
        volume.mounted(JFS, *small, at=tmp_path / "one") as one,
        volume.mounted(other, *small, at=tmp_path / "two") as two,
    ):
        (two.path / "theirs").mkdir()
        for number in range(FILES):
            shutil.copyfile(two.path / f"f{number}", two.path / f"theirs/f{number}")
        second = Load(two.path / "theirs")
        with loaded(one):
            second.start()
            some_rounds(second, 4)
            second.stop()
    assert second.failures == []


def test_warm_cache_is_used_after_a_restart(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with volume.mounted(JFS, *flags(cache)) as mount:
        for number in range(FILES):
            assert (mount.path / f"f{number}").read_bytes() == content(number)
        eventually(lambda: len(cached_blocks(cache)) >= FILES, 60, "blocks in the cache")
    with volume.mounted(JFS, *flags(cache)) as mount:
        drop_caches()
        for number in range(FILES):
            assert (mount.path / f"f{number}").read_bytes() == content(number)
        assert mount.figure("object_request_data_bytes_GET") == 0
        assert mount.figure("blockcache_hit_bytes") >= FILES * MIB
        eventually(lambda: mount.figure("blockcache_blocks") == FILES, 30, "the index to be rebuilt")
        assert mount.figure("blockcache_bytes") == sum(MIB + number + 4096 for number in range(FILES))


def test_disk_hangs(volume: Volume, tmp_path: Path) -> None:
    """It lies on another volume, whose mount is stopped for a while: readers wait for it once, and never again."""
    outer = format_volume(PEER, tmp_path / "outer", "outer")
    with outer.mounted(PEER) as below:
        disk, image = tmp_path / "disk", below.path / "image"
        disk.mkdir()
        subprocess.run(["truncate", "-s", "60M", image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, disk], check=True)
        pids = below.pids()
        try:
            with volume.mounted(JFS, *flags(disk), expect_log=["it does not answer"]) as mount:
                with loaded(mount) as load:
                    eventually(lambda: len(cached_blocks(disk)) >= FILES, 60, "blocks in the cache")
                    some_rounds(load)
                subprocess.run(["sync", "-f", disk], check=True)
                signal_all(pids, signal.SIGSTOP)
                drop_caches()
                with loaded(mount) as load:
                    some_rounds(load, 3)
                assert len(warnings(mount)) == 1
                signal_all(pids, signal.SIGCONT)
                eventually(lambda: "is used again" in mount.log.read_text(), 40, "the disk in use again")
        finally:
            signal_all(pids, signal.SIGCONT)
            subprocess.run(["umount", disk], check=True)


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)
