"""A local disk that stops answering (frozen, as by a controller that resets): only what needs it waits, and not for long."""

import os
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.mounts import JFS, Mount, Volume, format_volume

SmallDisk = Callable[..., Path]
MIB = 1 << 20


@contextmanager
def frozen(disk: Path) -> Generator[None, None, None]:
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)


@contextmanager
def going_on(work: Callable[[], object], limit_s: float = 60.0) -> Generator[threading.Thread, None, None]:
    """`work` in a thread; it must come to its end, and well."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(limit_s)
    assert not thread.is_alive()
    assert not failures


def names_go_on(mount: Mount, name: str) -> None:
    with going_on((mount.path / name).mkdir, 8.0):
        pass
    with going_on(lambda: os.listdir(mount.path), 8.0):
        pass


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_staging_disk_that_hangs_is_gone_past(tmp_path: Path, small_disk: SmallDisk, size: int) -> None:
    disk = small_disk("ext4", "300M")
    volume = format_volume(JFS, tmp_path / "v")
    data = os.urandom(size)
    flags = ("--writeback", "--cache-dir", str(disk))
    expected = ["no answer within 10 s; blocks go to the store", "it does not answer"]
    with volume.mounted(JFS, *flags, expect_log=expected) as mount:
        (mount.path / "before").write_bytes(b"before")
        eventually(lambda: len(volume.objects) == 1, 30, "the first upload")
        with frozen(disk):
            with going_on(lambda: (mount.path / "new").write_bytes(data)):
                names_go_on(mount, "a")
            with going_on(lambda: (mount.path / "newer").write_bytes(data), 8.0):
                names_go_on(mount, "b")
            assert len(volume.objects) == 3
        assert (mount.path / "new").read_bytes() == data
        assert (mount.path / "newer").read_bytes() == data
        assert "no answer within 10 s" in mount.log.read_text()
        staged = mount.figure("staging_write_bytes")

        def staged_again() -> bool:
            (mount.path / "after").write_bytes(data)
            return mount.figure("staging_write_bytes") > staged

        eventually(staged_again, 60, "the disk to be used again", pause=1.0)
    with volume.mounted(JFS, "--cache-dir", str(tmp_path / "cold")) as mount:
        for name in ("new", "newer", "after"):
            assert (mount.path / name).read_bytes() == data
    assert JFS.run("fsck", volume.url).returncode == 0


def test_a_store_on_a_disk_that_hangs_holds_up_no_names(tmp_path: Path, small_disk: SmallDisk) -> None:
    disk = small_disk("ext4", "300M")
    volume = Volume(tmp_path, "vol")
    JFS.run("format", volume.url, "vol", "--storage", "file", "--bucket", disk / "store")
    with volume.mounted(JFS, "--cache-dir", str(tmp_path / "cache")) as mount:
        (mount.path / "before").write_bytes(b"before")
        is_frozen = threading.Event()

        def write() -> None:
            assert is_frozen.wait(30)
            (mount.path / "small").write_bytes(b"small")

        with going_on(write) as writer, frozen(disk):
            is_frozen.set()
            writer.join(0.5)
            names_go_on(mount, "a")
            assert writer.is_alive(), "the disk that hangs is asked"
        assert (mount.path / "small").read_bytes() == b"small"
