"""`compact`: either program's command on either program's mount, and what nobody may lose by it."""

import os
import random
import threading
from itertools import count
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.conftest import assert_clean
from tests.interop.several import several_mounts
from tests.mounts import JFS, PEER, Client, Mount, Volume, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address

MIB = 1 << 20
PAGE = 4096
PAGES = 64
COMPACTIONS = 6


def pieces(path: Path, count: int) -> bytes:
    """A file of so many slices, some hidden by later ones."""
    content = bytearray()
    with path.open("wb", buffering=0) as file:
        for number in range(count):
            data = b"%05d," % number * 20
            file.seek(number * 100)
            file.write(data)
            os.fsync(file.fileno())
            content[number * 100 :] = data
    return bytes(content)


def slice_objects(volume: Volume) -> int:
    return len(volume.objects)


@pytest.mark.parametrize("commander", [JFS, PEER], ids=lambda client: client.name)
@pytest.mark.parametrize("server", [JFS, PEER], ids=lambda client: client.name)
def test_either_command_on_either_mount(tmp_path: Path, commander: Client, server: Client) -> None:
    volume = format_volume(PEER, tmp_path, "vol", "--trash-days", "0")
    with volume.mounted(server) as mount:
        (mount.path / "d/e").mkdir(parents=True)
        files = [mount.path / "d/one", mount.path / "d/e/two", mount.path / "other"]
        # The peer's own triggers would compact what is read; four records are below them.
        contents = [pieces(path, 4) for path in files]
        assert slice_objects(volume) == 12
        done = commander.run("compact", files[0], "--threads", "2")
        assert f'compact [{files[0].stat().st_ino}:"{files[0]}"] success.' in done.stderr
        eventually_objects(volume, 9)
        done = commander.run("compact", mount.path / "d", mount.path / "other")
        assert done.stderr.count("success.") == 2
        eventually_objects(volume, 3)
        assert [path.read_bytes() for path in files] == contents
    assert_clean(volume)


def eventually_objects(volume: Volume, count: int) -> None:
    eventually(lambda: slice_objects(volume) == count, 30, f"{count} objects")


def gaps(path: Path) -> bytes:
    """A file of few slices, and more zeros; the third chunk holds nothing else."""
    content = bytearray(129 * MIB)
    with path.open("wb", buffering=0) as file:
        for length in (190 * MIB, 150 * MIB, 0, 129 * MIB):
            file.truncate(length)
        for number, base in enumerate((0, 20 * MIB, 60 * MIB, 100 * MIB)):
            for offset in (base, base + 50)[: number + 1]:  # the first is one slice, and whole
                content[offset : offset + 100] = data = b"%05d" % number * 20
                os.pwrite(file.fileno(), data, offset)
                os.fsync(file.fileno())
    return bytes(content)


@pytest.mark.parametrize("days", ["0", "1"], ids=["no trash", "trash"])
def test_zeros_between_the_data(tmp_path: Path, days: str) -> None:
    """Compacted by jfs, they take no space, and mean the same to either program; which may compact the rest in its way."""
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", days)
    with volume.mounted(JFS) as mount:
        content = gaps(mount.path / "f")
        JFS.run("compact", mount.path / "f")
        assert (mount.path / "f").read_bytes() == content
    assert max(path.stat().st_size for path in volume.objects) == 150
    assert slice_objects(volume) == (4 if days == "0" else 10)
    assert_clean(volume)
    with volume.mounted(PEER) as mount, (mount.path / "f").open("rb+", buffering=0) as file:
        assert file.read(len(content) + 1) == content
        file.truncate(128 * MIB + 10)
        for offset in (128 * MIB + 5, 128 * MIB + 100, 30 * MIB):
            os.pwrite(file.fileno(), b"later", offset)
            os.fsync(file.fileno())
        changed = bytearray(content[: 128 * MIB + 10]).ljust(128 * MIB + 100, b"\0") + b"later"
        for offset in (128 * MIB + 5, 30 * MIB):
            changed[offset : offset + 5] = b"later"
        PEER.run("compact", mount.path / "f")
        assert (mount.path / "f").read_bytes() == changed
    assert_clean(volume)
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == changed
        JFS.run("compact", mount.path / "f")
        assert (mount.path / "f").read_bytes() == changed
    assert_clean(volume)


def test_what_trash_keeps(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "1")
    with volume.mounted(JFS) as mount:
        content = pieces(mount.path / "f", 4)
        JFS.run("compact", mount.path / "f")
        assert (mount.path / "f").read_bytes() == content
    assert slice_objects(volume) == 5
    assert_clean(volume)


def test_what_cannot_be_compacted(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol")
    with volume.mounted(JFS, expect_log=["compacting"]) as mount:
        (mount.path / "f").write_bytes(b"whole")
        os.mkfifo(mount.path / "fifo")
        JFS.run("compact", mount.path / "f", mount.path / "fifo", mount.path)
        refused = JFS.run("compact", tmp_path, mount.path / "f", mount.path / "none", ok=False)
        assert refused.returncode == 1
        assert f"{tmp_path} is not in a mounted volume" in refused.stderr
        assert f"{mount.path}/none: No such file or directory" in refused.stderr
        assert "success" in refused.stderr
        assert JFS.run("compact", "-p", "0", mount.path, ok=False).returncode == 1
    with volume.mounted(JFS, "--read-only") as mount:
        refused = JFS.run("compact", mount.path, ok=False)
        assert refused.returncode == 1
        assert "Read-only file system" in refused.stderr


class Writers:
    """Each writes pages of its own of one file, over and over, from its own mount."""

    def __init__(self, mounts: list[Mount]) -> None:
        self.mounts = mounts
        self.enough = threading.Event()
        self.pages = [bytes([0]) * PAGE for _ in range(PAGES)]
        self.failures: list[BaseException] = []

    def write(self, number: int) -> None:
        rng = random.Random(number)
        try:
            fd = os.open(self.mounts[number].path / "f", os.O_WRONLY)
            try:
                for turn in count():
                    if self.enough.is_set():
                        break
                    at = rng.randrange(PAGES // len(self.mounts)) * len(self.mounts) + number
                    self.pages[at] = bytes([turn % 251 + 1]) * PAGE
                    os.pwrite(fd, self.pages[at], at * PAGE)
                    if turn % 2:
                        os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException as error:
            self.failures.append(error)

    def run(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self.write, args=(number,)) for number in range(len(self.mounts))]
        for thread in threads:
            thread.start()
        return threads


@pytest.mark.parametrize("peers", [0, 1], ids=["two jfs", "jfs and juicefs"])
@pytest.mark.parametrize("days", ["0", "1"], ids=["no trash", "trash"])
def test_writers_on_several_mounts_beside_compaction(
    tmp_path: Path, tikv_cluster: Cluster, peers: int, days: str
) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", days, address=fresh_address(tikv_cluster))
    with several_mounts(volume, 2 - peers, peers) as mounts:
        (mounts[0].path / "f").write_bytes(bytes(PAGE) * PAGES)
        writers = Writers(mounts)
        threads = writers.run()
        try:
            # The peer's command goes on for as long as somebody writes; its mount compacts in the background.
            ours = mounts[: 2 - peers]
            for turn in range(COMPACTIONS):
                mount = ours[turn % len(ours)]
                mount.client.run("compact", mount.path / "f")
        finally:
            writers.enough.set()
            for thread in threads:
                thread.join()
        assert not writers.failures
        for mount in mounts:
            with (mount.path / "f").open("rb") as file:
                assert file.read() == b"".join(writers.pages), mount.path
    assert_clean(volume, mounts[2 - peers :])
