"""What gc waits for, what it removes when the time has come, and what it must not remove.  Its report is the peer's."""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from jfs.commands.gc import Collector, command
from jfs.commands.progress import Progress
from jfs.errors import StoreError, UserError
from jfs.meta.types import ROOT, ROOT_INO, Slice
from jfs.object.store import ObjectInfo
from jfs.volume import Volume as OpenVolume
from jfs.volume import open_volume
from tests.mounts import JFS, PEER, Client, Volume, format_volume

NOW = {"JFS_GC_SKIPPEDTIME": "0"}


def report(client: Client, volume: Volume, *flags: str) -> str:
    """The line that sums up."""
    found = re.search(r"<INFO>: (scanned .*) \[", client.run("gc", volume.url, *flags, **NOW).stderr)
    assert found is not None
    return found[1]


def using(client: Client, volume: Volume) -> str:
    found = re.search(r"<INFO>: (using .*) \[", client.run("gc", volume.url, **NOW).stderr)
    assert found is not None
    return found[1]


def change(volume: Volume, *statements: str) -> None:
    with sqlite3.connect(volume.database) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def stored(volume: Volume, query: str) -> list[tuple[int, ...]]:
    with sqlite3.connect(volume.database) as connection:
        rows = connection.execute(query).fetchall()
    connection.close()
    return rows


def pieces(path: Path, count: int = 6) -> None:
    """A file of so many slices."""
    with path.open("wb", buffering=0) as file:
        for number in range(count):
            file.write(b"%05d\n" % number)
            os.fsync(file.fileno())


def test_slices_that_a_compaction_replaced_wait_as_long_as_trash(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "1")
    with volume.mounted(JFS) as mount:
        pieces(mount.path / "f")
    assert "Compacted 1 chunks (6 slices, 36 bytes)." in JFS.run("gc", volume.url, "--compact").stderr
    assert len(volume.objects) == 7
    waiting = report(JFS, volume)
    assert waiting == report(PEER, volume)
    assert " 1 valid, 0 pending delete (0 bytes), 6 compacted (36 bytes), 0 leaked (0 bytes), 0 delslices" in waiting
    assert using(JFS, volume) == using(PEER, volume) == "using 7 slices (72 bytes)"
    JFS.run("gc", volume.url, "--delete", **NOW)
    assert len(volume.objects) == 7
    change(volume, "update jfs_delslices set deleted = deleted - 86400 - 60")
    done = JFS.run("gc", volume.url, "--delete", **NOW)
    assert "Deleted 6 pending slices" in done.stderr
    assert " 6 delslices (36 bytes)" in done.stderr
    assert len(volume.objects) == 1
    assert report(JFS, volume) == report(PEER, volume)
    assert stored(volume, "select refs from jfs_chunk_ref") == [(1,)]
    JFS.run("fsck", volume.url)


def test_without_trash_compacted_slices_go_at_once(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "0")
    with volume.mounted(JFS) as mount:
        pieces(mount.path / "f")
    JFS.run("gc", volume.url, "--compact")
    assert [path.name.rpartition("_")[2] for path in volume.objects] == ["36"]
    assert stored(volume, "select refs from jfs_chunk_ref") == [(1,)]


def test_a_missing_block_stops_no_compaction(tmp_path: Path) -> None:
    """It may be staged by a mount on another machine.  A mount that is asked says it in one line."""
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "0")
    with volume.mounted(JFS) as mount:
        pieces(mount.path / "bad")
        lost = volume.objects[2]
        pieces(mount.path / "good")
        name = lost.relative_to(volume.store / "vol")
        lost.unlink()
        mount.expect_log(rf"<ERROR>: compaction of inode 2 chunk 0 failed: object {name} is missing")
        assert "Input/output error" in JFS.run("compact", mount.path / "bad", ok=False).stderr
    done = JFS.run("gc", volume.url, "--compact", **NOW)
    assert f"<WARNING>: compaction of inode 2 chunk 0 failed: object {name} is missing" in done.stderr
    assert "Compacted 1 chunks (6 slices, 36 bytes)." in done.stderr
    assert "scanned 6 objects, 6 valid" in done.stderr


def test_trash_goes_when_its_days_are_over(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "1")
    with volume.mounted(JFS) as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d/f").write_bytes(b"thrown away")
        (mount.path / "kept").write_bytes(b"kept")
        (mount.path / "d/f").unlink()
        (mount.path / "d").rmdir()
    JFS.run("gc", volume.url, "--delete", **NOW)
    assert len(volume.objects) == 2
    ((ino,),) = stored(volume, f"select inode from jfs_edge where parent = {0x7FFFFFFF10000000}")
    hour = time.strftime("%Y-%m-%d-%H", time.gmtime(time.time() - 26 * 3600))
    change(volume, f"update jfs_edge set name = cast('{hour}' as blob) where inode = {ino}")
    done = JFS.run("gc", volume.url, "--delete", **NOW)
    assert "Deleted 1 pending slices" in done.stderr
    assert [path.read_bytes() for path in volume.objects] == [b"kept"]
    assert stored(volume, f"select inode from jfs_edge where parent = {0x7FFFFFFF10000000}") == []
    assert "<WARNING>" not in JFS.run("fsck", volume.url).stderr
    PEER.run("fsck", volume.url)


@pytest.mark.parametrize("days", [100_000, 1 << 62])
def test_a_trash_that_keeps_all_there_is(tmp_path: Path, days: int) -> None:
    """The peer takes any number of days; jfs, what both can count."""
    volume = format_volume(JFS if days == 100_000 else PEER, tmp_path, "vol", "--trash-days", str(days))
    with volume.mounted(JFS) as mount:
        pieces(mount.path / "f")
        (mount.path / "f").unlink()
    assert " 0 delslices" in report(JFS, volume, "--compact", "--delete")
    assert stored(volume, "select count(*) from jfs_delslices") == [(1,)]


def test_what_a_killed_mount_left_to_delete(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "0")
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_bytes(bytes(5 << 20))
        (mount.path / "g").write_bytes(b"g")
    ((ino,),) = stored(volume, "select inode from jfs_edge where name = cast('f' as blob)")
    now = int(time.time())
    change(  # as its removal leaves it, before the mount comes to its data
        volume,
        f"delete from jfs_edge where inode = {ino}",
        f"delete from jfs_node where inode = {ino}",
        f"insert into jfs_delfile (inode, length, expire) values ({ino}, {5 << 20}, {now})",
        "update jfs_chunk_ref set refs = 0 where size = 1",
        "delete from jfs_chunk where inode <> " + str(ino),
    )
    assert report(JFS, volume) == report(PEER, volume)
    assert " 1 pending delete (1 bytes)" in report(JFS, volume)
    done = JFS.run("gc", volume.url, "--delete", **NOW)
    assert "Deleted 2 pending slices" in done.stderr
    assert " 1 delfiles (5242880 bytes)" in done.stderr
    assert volume.objects == []
    for table in ("jfs_delfile", "jfs_chunk", "jfs_chunk_ref"):
        assert stored(volume, f"select 1 from {table}") == []


def test_names_that_are_not_blocks_are_not_ours(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol")
    folder = volume.store / "vol/chunks/0/0"
    folder.mkdir(parents=True)
    for name in ("1_0_5", "notes", "1_0"):
        (folder / name).write_bytes(b"12345")
    assert report(JFS, volume) == report(PEER, volume)
    (folder / "x_0_5").write_bytes(b"12345")  # the peer takes it for a block of slice 0
    assert "scanned 1 objects, 0 valid" in report(JFS, volume)
    assert "scanned 4 objects" in JFS.run("gc", volume.url).stderr
    assert "4 skipped (20 bytes)" in JFS.run("gc", volume.url).stderr
    JFS.run("gc", volume.url, "--delete", **NOW)
    assert sorted(path.name for path in folder.iterdir()) == ["1_0", "notes", "x_0_5"]


def test_what_a_killed_put_left_is_leaked(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol")
    folder = volume.store / "vol/chunks/0/0"
    folder.mkdir(parents=True)
    for name in (".jfs.1_0_5.tmp.1", ".jfs.2_0_5.tmp.2"):
        (folder / name).write_bytes(b"12345")
    os.utime(folder / ".jfs.1_0_5.tmp.1", (1, 1))
    assert "scanned 1 objects, 0 valid" in report(JFS, volume)
    assert " 1 leaked (5 bytes)" in report(JFS, volume)
    assert not JFS.run("fsck", volume.url).returncode
    JFS.run("gc", volume.url, "--delete", **NOW)
    assert [path.name for path in folder.iterdir()] == [".jfs.2_0_5.tmp.2"]  # perhaps still being written


def collect(volume: Volume, prepare: "Prepare") -> None:
    """`gc --delete` in this process, on a volume whose store was tampered with."""

    async def run() -> None:
        async with open_volume(volume.url) as opened:
            prepare(opened)
            with Progress() as progress:
                await Collector(opened, progress, threads=2, young_s=0).collect(delete=True)

    trio.run(run)


class Prepare:
    """Puts something between gc and the store."""

    def __call__(self, opened: OpenVolume) -> None:
        raise AssertionError("to be overridden")


def test_a_record_that_comes_after_the_listing_saves_its_blocks(tmp_path: Path) -> None:
    """An upload that took longer than the grace: its record is committed while gc looks at the objects."""
    volume = format_volume(JFS, tmp_path, "vol")
    folder = volume.store / "vol/chunks/0/0"
    folder.mkdir(parents=True)
    for name in ("1_0_5", "2_0_5"):
        (folder / name).write_bytes(b"12345")

    class CommitLate(Prepare):
        def __call__(self, opened: OpenVolume) -> None:
            listing = opened.objects.list

            async def commit() -> None:
                entry = await opened.meta.mknod(ROOT, ROOT_INO, b"late", 0o100644, 0)
                await opened.meta.write_slice(entry.ino, 0, Slice(0, 1, 5, 0, 5), 1)

            def list_then_commit(prefix: str = "") -> Iterator[ObjectInfo]:
                yield from list(listing(prefix))
                trio.from_thread.run(commit)

            opened.objects.list = list_then_commit  # type: ignore[method-assign, assignment]

    collect(volume, CommitLate())
    assert sorted(path.name for path in folder.iterdir()) == ["1_0_5"]


@pytest.mark.logs("object chunks/0/0/1_0_5 stays")
def test_an_object_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol")
    folder = volume.store / "vol/chunks/0/0"
    folder.mkdir(parents=True)
    for name in ("1_0_5", "2_0_5"):
        (folder / name).write_bytes(b"12345")

    class FailToDelete(Prepare):
        def __call__(self, opened: OpenVolume) -> None:
            delete = opened.objects.delete

            def sometimes(key: str) -> None:
                if key.endswith("1_0_5"):
                    raise StoreError("no luck")
                delete(key)

            opened.objects.delete = sometimes  # type: ignore[method-assign]

    collect(volume, FailToDelete())
    assert [path.name for path in folder.iterdir()] == ["1_0_5"]


def test_the_grace_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JFS_GC_SKIPPEDTIME", "1h")
    with pytest.raises(UserError, match="JFS_GC_SKIPPEDTIME must be a number of seconds, not '1h'"):
        command.main(["sqlite3:///nowhere"], standalone_mode=False)
