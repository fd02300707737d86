"""Values of mount options that make no sense: as with JuiceFS the mount is made, with others, and a warning tells which.

A line of fstab that worked shall not keep a machine from its files.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jfs.commands.mount import command
from jfs.commands.mount_options import check_numbers
from jfs.errors import UserError
from tests.commands.test_gc_fsck import NOW, gc
from tests.mounts import JFS, PEER, Volume, format_volume


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return format_volume(JFS, tmp_path, "vol", "--trash-days", "0")


def checked(line: str) -> dict[str, Any]:
    """The options of a mount with these words."""
    words = [word for option in line.split() for word in option.split("=", 1)]
    options: dict[str, Any] = command.make_context("mount", [*words, "sqlite3://x.db", "/mnt"]).params
    check_numbers(options)
    return options


@pytest.mark.logs("instead")
@pytest.mark.parametrize(
    ("line", "used", "message"),
    [
        ("--max-uploads=0", 1, "a number from 1 to 10000 is wanted; 1 is used instead"),
        ("--max-uploads=20000", 10_000, "a number from 1 to 10000 is wanted; 10000 is used instead"),
        ("--max-downloads=0", 200, "200 is used instead"),
        ("--max-deletes=-1", 10, "10 is used instead"),
        ("--prefetch=-1", 0, "0 is used instead"),
        ("--cache-items=-1", 0, "a number from 0 on is wanted; 0 is used instead"),
        ("--max-stage-write=-1", 0, "0 is used instead"),
        ("--cache-size=-5", 100 << 30, "100 GiB is used instead"),
        ("--max-readahead=-5M", 32 << 20, "32 MiB is used instead"),
        ("--writeback-threshold-size=-5", 0, "0 B is used instead"),
        ("--upload-limit=-5", None, "the volume's setting is used instead"),
        ("--download-limit=-1G", None, "the volume's setting is used instead"),
        ("--get-timeout=0", 60.0, "60 s is used instead"),
        ("--put-timeout=soon", 60.0, "60 s is used instead"),
        ("--free-space-ratio=1.5", 1.0, "nothing is kept on one; 1 is used instead"),
        ("--free-space-ratio=-0.1", 0.1, "0.1 is used instead"),
        ("--cache-eviction=LRU", "2-random", "must be one of 2-random, lru, none; 2-random is used instead"),
        ("--verify-cache-checksum=foo", "extend", "extend is used instead"),
        ("--atime-mode=never", "noatime", "noatime is used instead"),
        ("--cache-mode=0999", 0o600, "octal permissions are wanted; 0600 is used instead"),
        ("--cache-mode=60", 0o600, "0600 is used instead"),
        ("--upload-hours=25,3", "", "blocks are uploaded at any time instead"),
        ("--upload-hours=3,3", "", "blocks are uploaded at any time instead"),
        ("--upload-hours=0,24", "", "blocks are uploaded at any time instead"),
    ],
)
def test_another_value_is_used(caplog: pytest.LogCaptureFixture, line: str, used: object, message: str) -> None:
    name, given = line[2:].split("=")
    assert checked(line)[name.replace("-", "_")] == used
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f'Invalid value "{given}" for "{name}": ')
    assert said.endswith(message)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--max-deletes=0", 0),
        ("--free-space-ratio=1", 1.0),
        ("--cache-mode=640", 0o640),
        ("--upload-hours=22-6", "22-6"),
    ],
)
def test_values_that_mean_something(caplog: pytest.LogCaptureFixture, line: str, value: object) -> None:
    caplog.set_level(logging.WARNING)
    name = line[2:].partition("=")[0].replace("-", "_")
    assert checked(line)[name] == value
    assert not caplog.records


@pytest.mark.logs("no folder matches|no cache folder is there")
def test_patterns_that_match_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "a1").mkdir()
    options = checked(f"--writeback=true --cache-dir={tmp_path}/none*:{tmp_path}/a*:/b")
    assert options["cache_dir"] == f"{tmp_path}/a*:/b"
    options = checked(f"--cache-dir={tmp_path}/none*")
    assert (options["cache_dir"], options["cache_size"]) == ("memory", 100 << 20)
    assert [record.getMessage() for record in caplog.records] == [
        f"no folder matches {tmp_path}/none* of --cache-dir",
        f"no folder matches {tmp_path}/none* of --cache-dir",
        "no cache folder is there: up to 100 MiB are cached in memory instead",
    ]
    assert checked(f"--cache-dir={tmp_path}/none* --cache-size=1M")["cache_size"] == 1 << 20
    with pytest.raises(UserError, match=r"--writeback keeps blocks in a cache folder: no folder matches .*none\*"):
        checked(f"--writeback=true --cache-dir={tmp_path}/none*")


def test_a_mount_with_odd_values_works(volume: Volume, tmp_path: Path) -> None:
    line = (
        "--max-uploads 0 --max-downloads 0 --prefetch -1 --cache-items -1 --upload-limit -5 --cache-eviction foo "
        "--verify-cache-checksum foo --cache-mode 0999 --free-space-ratio 1.5 --writeback --upload-hours 3,3"
    )
    flags = (*line.split(), "--cache-dir", str(tmp_path / "cache"))
    with volume.mounted(JFS, *flags, expect_log=["instead", "not enough space", "blocks go to the store"]) as mount:
        data = os.urandom(9 << 20)
        (mount.path / "f").write_bytes(data)
        assert (mount.path / "f").read_bytes() == data
        assert mount.log.read_text().count(" instead") == 10


@pytest.mark.parametrize("client", [JFS, PEER], ids=["jfs", "juicefs"])
def test_a_mount_that_deletes_no_blocks(volume: Volume, client: Any) -> None:
    """They wait for another mount, or for gc."""
    with volume.mounted(client, "--max-deletes", "0") as mount:
        (mount.path / "f").write_bytes(b"data")
        (mount.path / "f").unlink()
        time.sleep(2)
    assert len(volume.objects) == 1
    JFS.run("fsck", volume.url)
    assert gc(volume, **NOW)["pending"] == 1
    assert "Deleted 1 pending slices" in JFS.run("gc", volume.url, "--delete", **NOW).stderr
    assert volume.objects == []
