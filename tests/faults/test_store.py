"""An object store that is full, refuses, hangs, loses, or returns something else than was put."""

import fcntl
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.mounts import JFS, PEER, Mount, Volume, format_volume

MIB = 1 << 20
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10


def drop_caches() -> None:
    """The kernel forgets what it read."""
    Path("/proc/sys/vm/drop_caches").write_text("1")


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def write_and_sync(path: Path, data: bytes) -> None:
    """Raises what write, fsync or close says, descriptor closed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view[:MIB]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_full_store_is_reported_and_forgiven(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    volume = Volume(tmp_path / "v", "full")
    volume.folder.mkdir()
    volume.store.symlink_to(small_disk("tmpfs", "48m"))
    format_volume(JFS, volume.folder, "full", "--trash-days", "0")
    with volume.mounted(JFS, "--io-retries", "2") as mount:
        write_and_sync(mount.path / "before", noise(1, 10 * MIB))
        with pytest.raises(OSError) as caught:
            write_and_sync(mount.path / "too-big", noise(2, 80 * MIB))
        assert caught.value.strerror in ("No space left on device", "Input/output error")
        mount.expect_log("No space left on device", "ENOSPC", "too-big", "write")
        assert (mount.path / "before").read_bytes() == noise(1, 10 * MIB)
        os.unlink(mount.path / "too-big")
        eventually(
            lambda: sum(path.stat().st_size for path in volume.objects) <= 11 * MIB, 60, "space to be free again"
        )
        write_and_sync(mount.path / "after", noise(3, 20 * MIB))
        assert (mount.path / "after").read_bytes() == noise(3, 20 * MIB)
    assert JFS.run("fsck", volume.url).returncode == 0


def immutable(folder: Path, *, on: bool) -> None:
    """chattr [+-]i of a folder and the folders in it, without a child process: one would close, and so flush, our files."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = bytearray(8)
            fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
            value = int.from_bytes(flags, sys.byteorder) & ~FS_IMMUTABLE_FL | (FS_IMMUTABLE_FL if on else 0)
            fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, value.to_bytes(8, sys.byteorder))
        finally:
            os.close(descriptor)


def test_store_that_refuses_writes(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("ext4", "100M")
    volume = format_volume(JFS, disk / "v", "refusing")
    with volume.mounted(JFS, "--io-retries", "2", at=tmp_path / "mp") as mount:
        (mount.path / "before").write_bytes(noise(1, MIB))
        immutable(volume.store, on=True)
        try:
            with pytest.raises(OSError, match="Input/output error"):
                write_and_sync(mount.path / "refused", noise(2, MIB))
            mount.expect_log("Operation not permitted", "refused", "put")
            assert (mount.path / "before").read_bytes() == noise(1, MIB)
            (mount.path / "folder").mkdir()  # metadata goes on
        finally:
            immutable(volume.store, on=False)
        write_and_sync(mount.path / "refused", noise(3, MIB))
        assert (mount.path / "refused").read_bytes() == noise(3, MIB)


def test_store_that_refuses_for_a_moment_is_retried(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("ext4", "100M")
    volume = format_volume(JFS, disk / "v", "moment")
    with volume.mounted(JFS, at=tmp_path / "mp") as mount:
        (mount.path / "before").write_bytes(noise(1, MIB))
        immutable(volume.store, on=True)
        relief = threading.Timer(2, immutable, [volume.store], {"on": False})
        relief.start()
        mount.expect_log("Operation not permitted")
        try:
            write_and_sync(mount.path / "retried", noise(2, MIB))
        finally:
            relief.join()
        assert (mount.path / "retried").read_bytes() == noise(2, MIB)


def test_hanging_store_holds_only_what_needs_it(tmp_path: Path) -> None:
    """The store lies on another volume whose mount is stopped for a while: writers wait, names and statistics do not."""
    outer = format_volume(PEER, tmp_path / "outer", "outer")
    with outer.mounted(PEER) as below:
        volume = Volume(tmp_path / "inner", "inner")
        volume.folder.mkdir()
        volume.store.symlink_to(below.path)
        format_volume(JFS, volume.folder, "inner")
        with volume.mounted(JFS) as mount:
            write_and_sync(mount.path / "known", noise(1, 3 * MIB))
            pids = below.pids()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            writer = threading.Thread(target=write_and_sync, args=(mount.path / "waiting", noise(2, 9 * MIB)))
            try:
                writer.start()
                (mount.path / "folder").mkdir()
                for number in range(50):
                    (mount.path / f"folder/{number}").symlink_to("target")
                assert len(os.listdir(mount.path / "folder")) == 50
                assert (mount.path / "known").stat().st_size == 3 * MIB
                writer.join(2)
                assert writer.is_alive()  # fsync acknowledges nothing that is not stored
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            writer.join(60)
            assert not writer.is_alive()
            mount.expect_log("slow", "timed? ?out")
            drop_caches()
            assert (mount.path / "waiting").read_bytes() == noise(2, 9 * MIB)


@pytest.fixture
def damaged(tmp_path: Path) -> Generator[tuple[Volume, Mount, list[Path]], None, None]:
    """A file of three blocks, not in any cache, and the objects that hold it."""
    volume = format_volume(JFS, tmp_path, "damaged", "--compress", "zstd")
    with volume.mounted(JFS) as mount:
        (mount.path / "good").write_bytes(noise(1, 100_000))
        before = set(volume.objects)
        (mount.path / "bad").write_bytes(noise(2, 10 * MIB))
    with volume.mounted(JFS, "--io-retries", "2") as mount:
        yield volume, mount, sorted(set(volume.objects) - before, key=lambda path: int(path.name.split("_")[1]))
        assert (mount.path / "good").read_bytes() == noise(1, 100_000)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


HARM: dict[str, Callable[[Path], None]] = {
    "deleted": os.unlink,
    "cut short": truncate,
    "empty": lambda path: os.truncate(path, 0),
    "a bit flipped in its head": lambda path: flip(path, 1),
    "replaced by another": lambda path: path.write_bytes(noise(9, path.stat().st_size)),
}


@pytest.mark.parametrize("harm", HARM)
def test_damaged_object_is_an_error_never_wrong_bytes(damaged: tuple[Volume, Mount, list[Path]], harm: str) -> None:
    volume, mount, objects = damaged
    assert len(objects) == 3
    victim = objects[1]
    saved = victim.read_bytes()
    HARM[harm](victim)
    mount.expect_log(victim.name)
    with (mount.path / "bad").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 1000, 0) == noise(2, 10 * MIB)[:1000]
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 1000, 5 * MIB)
    assert victim.name in mount.log.read_text()
    if harm == "deleted":
        checked = JFS.run("fsck", volume.url, ok=False)
        assert checked.returncode == 1
        assert victim.name in checked.stderr
    victim.write_bytes(saved)
    drop_caches()
    with (mount.path / "bad").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 1000, 5 * MIB) == noise(2, 10 * MIB)[5 * MIB : 5 * MIB + 1000]


@pytest.mark.parametrize("harm", ["deleted", "cut short", "empty"])
def test_damaged_raw_object_is_an_error(tmp_path: Path, harm: str) -> None:
    """Without compression an object has no redundancy but its length; that is what is checked."""
    volume = format_volume(JFS, tmp_path, "raw")
    with volume.mounted(JFS) as mount:
        (mount.path / "bad").write_bytes(noise(2, 3 * MIB))
    (victim,) = volume.objects
    HARM[harm](victim)
    with volume.mounted(JFS, "--io-retries", "2", expect_log=[victim.name]) as mount:
        with (mount.path / "bad").open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), MIB, 2 * MIB)
        assert victim.name in mount.log.read_text()


def test_damaged_cached_block_is_fetched_again(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "cached")
    cache = tmp_path / "jfs-cache"
    data = noise(4, 3 * MIB)
    with volume.mounted(JFS, "--cache-dir", str(cache)) as mount:
        (mount.path / "f").write_bytes(data)
        drop_caches()
        assert (mount.path / "f").read_bytes() == data
        (block,) = eventually(lambda: list(cache.rglob("raw/chunks/*/*/*_0_*")), 30, "the block in the cache")
        eventually(lambda: block.stat().st_size > 3 * MIB, 30, "the whole block in the cache")
    flip(block, 1_000_000)
    with volume.mounted(JFS, "--cache-dir", str(cache), expect_log=[block.name]) as mount:
        assert (mount.path / "f").read_bytes() == data
