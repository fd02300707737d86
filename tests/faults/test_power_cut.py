"""A power cut: ext4 on a loop device is shut down without flushing its log, mounted again, and checked.

Database, objects and cache folder lie on that ext4.  Everything that fsync acknowledged must be there and both programs' fsck must find
every block.  Two controls show that the cut is one and that the check sees it: a file that was written to the same ext4 without fsync
must be lost, and so must be what a mount under eatmydata acknowledges, whose own fsyncs do nothing.
"""

import fcntl
import logging
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.conftest import writing
from tests.faults.writer import acknowledged, losses, read_log
from tests.mounts import JFS, PEER, Mount, format_volume
from tests.trees import outcome, sh

measured = logging.getLogger("measured")

FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
# nothing reaches the disk by the kernel's own accord while a test runs
LAZY = "commit=600,noauto_da_alloc,barrier=1"
# what the mount says between the cut and its own end, and the next one about its predecessor
CUT = [
    "Input/output error",
    "disk I/O error",
    "disk image is malformed",
    "Read-only file system",
    "left by a mount that died",
    "are lost",
    "an earlier flush of blocks failed",
    "[Ss]taged block",
    "cached block .* is corrupt and dropped",
    "staging folder",
    "cache folder",
    "staged and not uploaded yet",
]

WRITEBACK = {
    "writeback, uploads at once": ("--writeback", "--upload-delay", "0s"),
    "writeback, uploads soon": ("--writeback", "--upload-delay", "1s"),
    "writeback, no uploads": ("--writeback", "--upload-delay", "1h"),
}


def cut_power(disk: Path) -> None:
    """From now on nothing that was not synced will ever have been written."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def restart(disk: Path) -> None:
    """Mount again what is on the loop device, as after a boot."""
    device = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {disk} " in line)
    image = sh(f"losetup --noheadings --output BACK-FILE {device}", "/").strip()
    eventually(lambda: subprocess.run(["umount", disk], check=False).returncode == 0, 60, f"umount {disk}", pause=0.2)
    eventually(lambda: not sh(f"losetup -j {image}", "/"), 30, f"{device} to let go")
    sh(f"mount -o loop,{LAZY} {image} {disk}", "/")


def write_until_the_cut(mount: Mount, disk: Path, log: Path, seed: int) -> None:
    """A writer at work, the control file, the cut, and the end of everything that ran."""
    root = mount.path / "work"
    root.mkdir()
    with writing(root, log, seed, "--sync") as writer:
        eventually(lambda: acknowledged(log) > 200, 120, "200 steps")
        (disk / "control").write_bytes(b"never synced" * 1000)
        cut_power(disk)
        mount.kill()
        writer.kill()


def fsync_before_the_cut(mount: Mount, disk: Path, descriptor: int) -> None:
    """One fsync, the control file, the cut, and the end of the mount."""
    os.fsync(descriptor)
    (disk / "control").write_bytes(b"never synced" * 1000)
    cut_power(disk)
    mount.kill()
    outcome(lambda: os.close(descriptor))


def assert_nothing_is_lost(mount: Mount, log: Path) -> None:
    assert losses(mount.path / "work", log) == []
    states, _ = read_log(log)
    files = sum(len(state.files) for state in states.values())
    measured.info("%d steps acknowledged by fsync, %d files left by them, 0 lost", acknowledged(log), files)


def assert_control_is_lost(disk: Path) -> None:
    assert not (disk / "control").exists() or (disk / "control").stat().st_size == 0


@pytest.mark.parametrize("seed", range(3))
def test_fsync_outlives_a_power_cut(tmp_path: Path, small_disk: Callable[..., Path], seed: int) -> None:
    disk = small_disk("ext4", "600M", LAZY)
    volume = format_volume(JFS, disk / "v", "powercut")
    subprocess.run(["sync", "-f", disk], check=True)
    log = tmp_path / "log"
    with volume.mounted(JFS, at=tmp_path / "mp", expect_log=CUT) as mount:
        write_until_the_cut(mount, disk, log, seed + 20)
    restart(disk)
    assert_control_is_lost(disk)
    for client in (JFS, PEER):
        checked = client.run("fsck", volume.url, ok=False)
        assert checked.returncode == 0, checked.stderr
    with volume.mounted(JFS, at=tmp_path / "mp", expect_log=CUT) as mount:
        assert_nothing_is_lost(mount, log)


@pytest.mark.parametrize("mode", WRITEBACK)
@pytest.mark.parametrize("seed", range(2))
def test_fsync_with_writeback_outlives_a_power_cut(
    tmp_path: Path, small_disk: Callable[..., Path], mode: str, seed: int
) -> None:
    """What was acknowledged is in the staging folder or in the store; what was not may be cut short, and is no data."""
    disk = small_disk("ext4", "600M", LAZY)
    volume = format_volume(JFS, disk / "v", "powercut")
    options = ("--cache-dir", str(disk / "cache"))
    subprocess.run(["sync", "-f", disk], check=True)
    log = tmp_path / "log"
    with volume.mounted(JFS, *options, *WRITEBACK[mode], at=tmp_path / "mp", expect_log=CUT) as mount:
        write_until_the_cut(mount, disk, log, seed + 40)
    restart(disk)
    assert_control_is_lost(disk)
    with volume.mounted(JFS, *options, "--writeback", at=tmp_path / "mp", expect_log=CUT) as mount:
        assert_nothing_is_lost(mount, log)
        JFS.run("umount", "--flush", mount.path)
        assert mount.process.wait(60) == 0
    for client in (JFS, PEER):
        checked = client.run("fsck", volume.url, ok=False)
        assert checked.returncode == 0, checked.stderr
    with volume.mounted(JFS, at=tmp_path / "mp", expect_log=CUT) as mount:
        assert losses(mount.path / "work", log) == []


@pytest.mark.parametrize("options", [(), ("--writeback", "--upload-delay", "1h")], ids=["default", "writeback"])
def test_a_mount_that_does_not_sync_loses_data(
    tmp_path: Path, small_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """The control: were this not so, the tests above would prove nothing."""
    (library,) = Path("/usr/lib").glob("*/libeatmydata.so")
    disk = small_disk("ext4", "600M", LAZY)
    volume = format_volume(JFS, disk / "v", "control")
    options = ("--cache-dir", str(disk / "cache"), *options)
    subprocess.run(["sync", "-f", disk], check=True)
    log = tmp_path / "log"
    with ExitStack() as stack:
        with monkeypatch.context() as environment:  # of the mount only: the writer's fsyncs are real
            environment.setenv("LD_PRELOAD", str(library))
            mount = stack.enter_context(volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT))
        write_until_the_cut(mount, disk, log, 60)
    restart(disk)
    assert_control_is_lost(disk)
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        lost = losses(mount.path / "work", log)
    measured.info("%d steps acknowledged, %d losses", acknowledged(log), len(lost))
    assert len(lost) > 10


def test_one_small_fsync_outlives_a_power_cut(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """One file, one fsync, nothing else that could have helped."""
    disk = small_disk("ext4", "300M", LAZY)
    volume = format_volume(JFS, disk / "v", "single")
    subprocess.run(["sync", "-f", disk], check=True)
    with volume.mounted(JFS, at=tmp_path / "mp", expect_log=CUT) as mount:
        descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(descriptor, b"precious" * 1000)
        fsync_before_the_cut(mount, disk, descriptor)
    restart(disk)
    assert_control_is_lost(disk)
    with volume.mounted(JFS, at=tmp_path / "mp", expect_log=CUT) as mount:
        assert (mount.path / "f").read_bytes() == b"precious" * 1000


def test_blocks_of_a_slice_that_the_cut_took_back_are_not_found_under_another(
    tmp_path: Path, small_disk: Callable[..., Path]
) -> None:
    """A cache on another disk keeps the block of a file that nobody synced; the id in its name must not be drawn again."""
    disk = small_disk("ext4", "300M", LAZY)
    volume = format_volume(JFS, disk / "v", "drawnagain")
    options = ("--cache-dir", str(tmp_path / "cache"))
    subprocess.run(["sync", "-f", disk], check=True)
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        (mount.path / "a").write_bytes(b"a" * 100_000)
        eventually(lambda: list((tmp_path / "cache").rglob("*_0_100000")), 30, "its block in the cache")
        (taken_back,) = (path.name for path in (tmp_path / "cache").rglob("*_0_100000"))
        cut_power(disk)
        mount.kill()
    restart(disk)
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        (mount.path / "b").write_bytes(b"b" * 100_000)
        assert volume.objects[-1].name != taken_back
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        assert (mount.path / "b").read_bytes() == b"b" * 100_000


@pytest.mark.parametrize("options", [(), ("--writeback", "--upload-delay", "1h")], ids=["default", "writeback"])
def test_fsync_covers_what_a_mount_wrote_that_died(
    tmp_path: Path, small_disk: Callable[..., Path], options: tuple[str, ...]
) -> None:
    disk = small_disk("ext4", "300M", LAZY)
    volume = format_volume(JFS, disk / "v", "heritage")
    options = ("--cache-dir", str(disk / "cache"), *options)
    subprocess.run(["sync", "-f", disk], check=True)
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        (mount.path / "f").write_bytes(b"precious" * 10_000)
        mount.kill()
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        fsync_before_the_cut(mount, disk, os.open(mount.path / "f", os.O_RDWR))
    restart(disk)
    assert_control_is_lost(disk)
    with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=CUT) as mount:
        assert (mount.path / "f").read_bytes() == b"precious" * 10_000
