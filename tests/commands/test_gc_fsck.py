"""gc and fsck on volumes that are whole, damaged, and in use; the peer must agree."""

import os
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.mounts import JFS, PEER, Volume, format_volume

NOW = {"JFS_GC_SKIPPEDTIME": "0"}
SCANNED = re.compile(
    r"scanned (?P<scanned>\d+) objects, (?P<valid>\d+) valid, (?P<pending>\d+) pending delete \(\d+ bytes\), "
    r"(?P<compacted>\d+) compacted \(\d+ bytes\), (?P<leaked>\d+) leaked \((?P<bytes>\d+) bytes\), "
    r"(?P<delslices>\d+) delslices \(\d+ bytes\), (?P<delfiles>\d+) delfiles \(\d+ bytes\), "
    r"(?P<skipped>\d+) skipped \(\d+ bytes\)"
)


def gc(volume: Volume, *flags: str, **env: str) -> dict[str, int]:
    """What gc says that it scanned."""
    done = JFS.run("gc", volume.url, *flags, **env)
    assert done.stdout == ""
    match = SCANNED.search(done.stderr)
    assert match is not None, done.stderr
    return {name: int(number) for name, number in match.groupdict().items()}


@pytest.fixture(scope="module", params=["none", "lz4"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """A volume with a few files, a copy of which every test may spoil."""
    volume = format_volume(
        JFS, tmp_path_factory.mktemp("filled"), "vol", "--trash-days", "0", "--compress", request.param
    )
    with volume.mounted(JFS) as mount:
        (mount.path / "dir").mkdir()
        (mount.path / "dir/big").write_bytes(os.urandom(9 << 20))
        (mount.path / "small").write_bytes(b"small")
        (mount.path / "gone").write_bytes(b"gone")
        (mount.path / "gone").unlink()
        with (mount.path / "pieces").open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(os.urandom(1000))
                os.fsync(file.fileno())
    return volume


@pytest.fixture
def volume(filled: Volume, tmp_path: Path) -> Volume:
    shutil.copytree(filled.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("mp-*"))
    copy = Volume(tmp_path / "copy", filled.name)
    with sqlite3.connect(copy.database) as connection:
        connection.execute(
            "update jfs_setting set value = replace(value, ?, ?)", (str(filled.folder), str(copy.folder))
        )
    connection.close()
    return copy


def test_a_whole_volume_is_clean(volume: Volume) -> None:
    found = gc(volume, **NOW)
    assert found["valid"] == found["scanned"] == len(volume.objects)
    assert gc(volume)["skipped"] == found["scanned"]
    JFS.run("fsck", volume.url)
    JFS.run("fsck", volume.url, "--path", "/", "--recursive")
    PEER.run("fsck", volume.url)
    done = PEER.run("gc", volume.url, **NOW)
    assert f"scanned {found['scanned']} objects, {found['valid']} valid" in done.stderr


def test_leaked_objects_are_told_and_with_delete_removed(volume: Volume) -> None:
    objects = set(volume.objects)
    folder = volume.objects[0].parent
    leaked = [folder / "987654_0_6", folder / f"{volume.objects[0].name.rpartition('_')[0]}_77"]
    for path in leaked:
        path.write_bytes(b"leaked")
    (folder / "notes.txt").write_bytes(b"not ours")
    assert gc(volume)["leaked"] == 0
    assert gc(volume, **NOW)["leaked"] == 2
    assert "Please add `--delete`" in JFS.run("gc", volume.url, **NOW).stderr
    assert all(path.exists() for path in leaked)
    assert gc(volume, "--delete", **NOW)["leaked"] == 2
    assert set(volume.objects) == {*objects, folder / "notes.txt"}
    JFS.run("fsck", volume.url)


def test_delete_leaves_alone_what_a_mount_is_writing(volume: Volume) -> None:
    with volume.mounted(JFS) as mount:
        with (mount.path / "growing").open("wb", buffering=0) as file:
            data = os.urandom(20 << 20)
            file.write(data)  # its full blocks are in the store, their record is not committed yet
            gc(volume, "--delete", "--compact")
            os.fsync(file.fileno())
        assert (mount.path / "growing").read_bytes() == data
    JFS.run("fsck", volume.url)


def test_compaction(volume: Volume) -> None:
    with volume.mounted(JFS, "--read-only") as mount:
        before = {name: (mount.path / name).read_bytes() for name in ("dir/big", "small", "pieces")}
    done = JFS.run("gc", volume.url, "--compact", "--delete", **NOW)
    match = re.search(r"Compacted (\d+) chunks \((\d+) slices, (\d+) bytes\)", done.stderr)
    assert match is not None
    assert int(match[1]) >= 1
    found = gc(volume, **NOW)
    assert found["valid"] == found["scanned"]
    with volume.mounted(PEER, "--read-only") as mount:
        assert {name: (mount.path / name).read_bytes() for name in before} == before
    JFS.run("fsck", volume.url)
    PEER.run("fsck", volume.url)


def test_lost_and_short_blocks_are_found(volume: Volume) -> None:
    big = [path for path in volume.objects if path.stat().st_size > 1 << 20]
    big[0].unlink()
    os.truncate(big[1], 0)
    for words in ([], ["--path", "/dir", "-r"], ["--path", "/dir/big"]):
        done = JFS.run("fsck", volume.url, *words, ok=False)
        assert done.returncode == 1
        assert f"can't find block 0/0/{big[0].name} for file /dir/big" in done.stderr
        assert re.search(r"<FATAL>: 2 objects are lost \(\d+ bytes\), 1 broken files:\n +INODE: PATH\n", done.stderr)
        assert re.search(r"\d+: /dir/big \[", done.stderr)
    JFS.run("fsck", volume.url, "--path", "/small")


def test_wrong_records_are_found_and_repaired(volume: Volume) -> None:
    with sqlite3.connect(volume.database) as connection:
        connection.execute("update jfs_node set nlink = 9 where type = 2 and inode = 1")
        connection.execute("update jfs_counter set value = value + 4096 where name = 'usedSpace'")
    connection.close()
    done = JFS.run("fsck", volume.url, ok=False)
    assert done.returncode == 1
    assert "directory 1 has nlink 9, but should have 3" in done.stderr
    assert "1 problems in the metadata are left" in done.stderr
    assert re.search("<WARNING>: usage is .*--repair can put it right", done.stderr)
    JFS.run("fsck", volume.url, "--repair")
    done = JFS.run("fsck", volume.url)
    assert not re.search("<(ERROR|WARNING)>", done.stderr)


def test_a_corrupt_record_is_named(volume: Volume) -> None:
    with sqlite3.connect(volume.database) as connection:
        connection.execute("update jfs_chunk set slices = x'0102' where rowid = (select min(rowid) from jfs_chunk)")
    connection.close()
    for command in ("fsck", "gc"):
        done = JFS.run(command, volume.url, ok=False)
        assert done.returncode == 1
        assert re.search("corrupt record .*chunk", done.stderr), done.stderr
