"""What fsck counts as a failure, what it repairs, and what it only tells."""

import re
import sqlite3
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.mounts import JFS, PEER, Volume, format_volume


def change(volume: Volume, *statements: str) -> None:
    with sqlite3.connect(volume.database) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = format_volume(JFS, tmp_path, "vol")
    with volume.mounted(JFS) as mount:
        (mount.path / "d/e").mkdir(parents=True)
        (mount.path / "d/f").write_bytes(b"one")
        (mount.path / "d/e/g").write_bytes(b"three")
    return volume


def said(volume: Volume, *flags: str, code: int = 0) -> str:
    done = JFS.run("fsck", volume.url, *flags, ok=False)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_a_killed_mount_leaves_no_error(volume: Volume) -> None:
    """Its last second of bookkeeping is lost, which is told, and can be repaired."""
    with volume.mounted(JFS) as mount:
        for number in range(50):
            (mount.path / f"d/{number}").write_bytes(b"x")
        eventually(lambda: len(list((mount.path / "d").iterdir())) >= 52, 30)
        mount.kill()
    assert "<ERROR>" not in said(volume)
    PEER.run("fsck", volume.url)
    said(volume, "--repair")
    assert not re.search("<(WARNING|ERROR)>", said(volume))


def test_directory_statistics(volume: Volume) -> None:
    change(volume, "update jfs_dir_stats set used_space = 12345 where inode = 1")
    told = "directory 1 counts 12345 bytes, 1 inodes, but should count 4096 bytes, 1 inodes"
    assert f"<WARNING>: {told}" in said(volume, "--path", "/")
    assert f"<ERROR>: {told}" in said(volume, "--path", "/", "--sync-dir-stat", code=1)
    assert PEER.run("fsck", volume.url, "--path", "/", "--sync-dir-stat", ok=False).returncode == 1
    assert f"<WARNING>: {told}: repaired" in said(volume, "--path", "/", "--sync-dir-stat", "--repair")
    said(volume, "--path", "/", "--sync-dir-stat")
    PEER.run("fsck", volume.url, "--path", "/", "--sync-dir-stat")


def test_repair_of_statistics_leaves_the_rest(volume: Volume) -> None:
    change(
        volume,
        "update jfs_dir_stats set used_space = 12345 where inode = 1",
        "update jfs_node set nlink = 9 where inode = 1",
    )
    stderr = said(volume, "--repair", "--sync-dir-stat", code=1)
    assert "directory 1 counts 12345 bytes" in stderr
    assert "<ERROR>: directory 1 has nlink 9, but should have 3 (--repair can put it right)" in stderr
    said(volume, "--repair")
    assert PEER.run("fsck", volume.url, "--path", "/", "--recursive", "--sync-dir-stat").returncode == 0


def test_only_the_named_part_is_checked(volume: Volume) -> None:
    change(volume, "update jfs_node set nlink = 9 where inode = 1")
    stderr = said(volume, "--path", "/d", "--recursive")
    assert "Checked 4 nodes" in stderr
    assert "Found 2 blocks (8 bytes)" in stderr
    assert "Used by 2 slices (8 bytes)" in stderr
    assert "Checked 3 nodes" in said(volume, "--path", "/d")
    assert "Found 1 blocks (5 bytes)" in said(volume, "--path", "/d/e/g")
    said(volume, "--path", "/", code=1)


def test_a_path_that_does_not_exist(volume: Volume) -> None:
    assert "<FATAL>: path /d/none: No such file or directory" in said(volume, "--path", "/d/none", code=1)
    assert 'Invalid value "d" for "path"' in said(volume, "--path", "d", code=1)


def test_a_block_that_several_records_need_is_lost_once(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol")
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_bytes(b"12345")
        (mount.path / "g").write_bytes(b"")
    change(  # as a clone does it
        volume,
        "insert into jfs_chunk (inode, indx, slices) select e.inode, 0, c.slices from jfs_edge e, jfs_chunk c "
        "where e.name = cast('g' as blob)",
        "update jfs_node set length = 5 where type = 1",
        "update jfs_chunk_ref set refs = 2",
    )
    said(volume, "--repair")
    (block,) = volume.objects
    name = block.relative_to(volume.store / "vol/chunks")
    block.unlink()
    stderr = said(volume, code=1)
    assert stderr.count(f"can't find block {name} for file") == 2
    assert "1 objects are lost (5 bytes), 2 broken files:" in stderr
    peer = PEER.run("fsck", volume.url, ok=False)
    assert peer.returncode == 1
