"""Both programs have the volume mounted at once, on one SQLite file or in one TiKV cluster."""

import json
import os
import random
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.conftest import assert_clean, both_mounted
from tests.mounts import JFS, PEER, Client, Mount, Volume, format_volume

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path: Path, new_address: Callable[[], str]) -> Volume:
    return format_volume(JFS, tmp_path, "both", address=new_address())


@pytest.fixture
def mounts(volume: Volume) -> Generator[tuple[Mount, Mount], None, None]:
    with both_mounted(volume) as both:
        yield both
    assert_clean(volume)


@pytest.fixture(params=["jfs writes", "juicefs writes"])
def hands(request: pytest.FixtureRequest, mounts: tuple[Mount, Mount]) -> tuple[Path, Path]:
    """Where it is written, and where it is read."""
    ours, theirs = (mount.path for mount in mounts)
    return (ours, theirs) if request.param == "jfs writes" else (theirs, ours)


def gone(path: Path) -> Callable[[], bool]:
    return lambda: not os.path.lexists(path)


def assert_reads(path: Path, data: bytes) -> None:
    """At the first look; the peer soon after: its kernel hears of others' changes beside the open, not before its end."""
    if "juicefs" in path.parent.name:
        eventually(lambda: path.read_bytes() == data, 15, f"{path} to read as it was written")
    else:
        assert path.read_bytes() == data


def test_files_are_read_as_written(hands: tuple[Path, Path]) -> None:
    here, there = hands
    data = random.Random(3).randbytes(13 * MIB + 5)
    (here / "big").write_bytes(data)
    assert (there / "big").read_bytes() == data
    with (there / "big").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"patched there")
    expected = data[: 5 * MIB] + b"patched there" + data[5 * MIB + 13 :]
    assert_reads(here / "big", expected)
    os.truncate(here / "big", 6 * MIB)
    eventually(lambda: (there / "big").stat().st_size == 6 * MIB, 15, "the new size")
    assert_reads(there / "big", expected[: 6 * MIB])
    with (here / "hole").open("wb") as file:
        file.truncate(100 * MIB)
        file.seek(99 * MIB)
        file.write(b"end")
    with (there / "hole").open("rb") as file:
        file.seek(99 * MIB - 3)
        assert file.read(9) == b"\0\0\0end\0\0\0"


def test_fsync_is_enough_to_be_seen(hands: tuple[Path, Path]) -> None:
    here, there = hands
    with (here / "open").open("wb", buffering=0) as file:
        file.write(b"seen")
        os.fsync(file.fileno())
        assert (there / "open").read_bytes() == b"seen"
        file.write(b" more")
        os.fsync(file.fileno())
        assert_reads(there / "open", b"seen more")


def test_names_follow(hands: tuple[Path, Path]) -> None:
    here, there = hands
    (here / "d/e").mkdir(parents=True)
    (here / "d/f").write_text("f")
    os.link(here / "d/f", here / "d/e/hard")
    (here / "soft").symlink_to("d/f")
    os.setxattr(here / "d/f", "user.k", b"v")
    assert (there / "soft").read_text() == "f"
    assert (there / "d/e/hard").stat().st_nlink == 2
    assert os.getxattr(there / "d/f", "user.k") == b"v"
    os.rename(there / "d", there / "moved")
    eventually(gone(here / "d"), 15, "the old name to go")
    assert (here / "moved/e/hard").read_text() == "f"
    os.unlink(here / "moved/f")
    eventually(gone(there / "moved/f"), 15, "the removed name to go")
    os.rename(there / "moved/e/hard", there / "moved/over")
    (here / "moved/other").write_text("other")
    os.replace(here / "moved/other", here / "moved/over")
    eventually(lambda: (there / "moved/over").read_text() == "other", 15, "the replaced file")
    eventually(lambda: sorted(os.listdir(there / "moved")) == ["e", "over"], 15, "the listing")


def test_file_unlinked_elsewhere_stays_readable(hands: tuple[Path, Path]) -> None:
    """Close to what a local disk gives: the trash keeps the data of a file that is open elsewhere."""
    here, there = hands
    (here / "f").write_bytes(b"still here" * 1000)
    with (there / "f").open("rb") as file:
        os.unlink(here / "f")
        assert file.read() == b"still here" * 1000
    eventually(gone(there / "f"), 15, "the name to go")


def test_trash_is_common(hands: tuple[Path, Path]) -> None:
    here, there = hands
    (here / "d").mkdir()
    (here / "d/f").write_text("precious")
    inode, parent = (here / "d/f").stat().st_ino, (here / "d").stat().st_ino
    os.unlink(here / "d/f")
    name = f"{parent}-{inode}-f"
    kept = eventually(lambda: list((there / ".trash").glob(f"*/{name}")), 15, "the file in the trash")
    assert kept[0].read_text() == "precious"
    os.rename(kept[0], there / "d/back")
    eventually((here / "d/back").exists, 15, "the file to be back")
    assert (here / "d/back").read_text() == "precious"


def test_both_write_at_once(mounts: tuple[Mount, Mount], volume: Volume) -> None:
    """Two writers on one database: every operation of both is there, none failed, no number was given twice."""
    failures: list[BaseException] = []

    def work(root: Path, who: str) -> None:
        try:
            dice = random.Random(who)
            (root / who).mkdir()
            for number in range(120):
                (root / who / f"{number}").write_bytes(dice.randbytes(dice.randrange(60_000)))
                (root / "common" / f"{who}-{number}").write_text(who)
                if number % 5 == 4:
                    os.rename(root / who / f"{number}", root / "common" / f"{who}-moved-{number}")
                    os.unlink(root / who / f"{number - 1}")
        except BaseException as error:
            failures.append(error)

    (mounts[0].path / "common").mkdir()
    eventually((mounts[1].path / "common").exists, 15, "the common directory")
    threads = [threading.Thread(target=work, args=(mount.path, mount.client.name)) for mount in mounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures

    def content(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("[cj]*/*")}

    eventually(lambda: content(mounts[0].path) == content(mounts[1].path), 15, "both to show the same")
    assert len(content(mounts[0].path)) == 2 * (120 + 120 - 24)
    inodes = [path.stat().st_ino for path in mounts[0].path.glob("[cj]*/*")]
    assert len(inodes) == len(set(inodes))


def test_a_name_that_went_to_the_trash_elsewhere(mounts: tuple[Mount, Mount]) -> None:
    """The kernel still knows it for a while: an open for writing must not meet the file in the trash, which is not to change."""
    here, there = (mount.path for mount in mounts)
    for name in ("written", "cut"):
        (here / name).write_text("old")
        eventually((there / name).exists, 15, "the file")
        (here / name).stat()
        os.unlink(there / name)
        if name == "written":
            (here / name).write_text("new")
            assert (here / name).read_text() == "new"
        else:
            with pytest.raises(FileNotFoundError):
                os.truncate(here / name, 1)
    kept = next((here / ".trash").glob("*/*-written"))
    for _ in range(2):
        with pytest.raises(PermissionError):
            kept.write_text("changed")
        with pytest.raises(PermissionError):
            os.truncate(kept, 1)
    assert kept.read_text() == "old"


@pytest.mark.parametrize("client", [JFS, PEER], ids=lambda client: client.name)
def test_sessions_are_told_alike(mounts: tuple[Mount, Mount], volume: Volume, client: Client) -> None:
    sessions = json.loads(client.run("status", volume.url).stdout)["Sessions"]
    assert sorted(session["MountPoint"] for session in sessions) == sorted(str(mount.path) for mount in mounts)
    for mount in mounts:
        (session,) = [s for s in sessions if s["MountPoint"] == str(mount.path)]
        assert session["ProcessID"] in mount.pids()
        assert session["HostName"] == os.uname().nodename
