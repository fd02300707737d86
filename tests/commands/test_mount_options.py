"""Options of a mount that say nothing in their company are named; places that the mount would wait for are refused."""

import logging
from pathlib import Path
from typing import Any

import pytest

from jfs.chunk.options import ChunkOptions
from jfs.commands.mount import command
from jfs.commands.mount_options import check_numbers, warn_of_options, warn_of_store, warn_of_words
from jfs.meta.settings import Settings
from jfs.volume import warn_of_full_disks
from tests.commands.test_refusals import refused, snapshot
from tests.deadline import eventually
from tests.mounts import JFS, Volume, format_volume, is_mounted

LOCAL = Settings.fresh("vol", storage="file", bucket="/store/")
REMOTE = Settings.fresh("vol", storage="s3", bucket="http://host/bucket")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return format_volume(JFS, tmp_path_factory.mktemp("options"))


def said(caplog: pytest.LogCaptureFixture, line: str, settings: Settings) -> list[str]:
    """The names of the options that are warned of, and why."""
    words = [word for option in line.split() for word in option.split("=", 1)]
    context = command.make_context("mount", [*words, "sqlite3://x.db", "/mnt"])
    options: dict[str, Any] = context.params
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    check_numbers(options)
    caplog.clear()
    warn_of_options(options, given)
    warn_of_store(options, given, settings)
    return [record.getMessage().removeprefix("option --") for record in caplog.records]


@pytest.mark.logs("has no effect")
@pytest.mark.parametrize(
    ("line", "settings", "names", "why"),
    [
        ("", LOCAL, "", ""),
        (
            "--cache-dir=/c --cache-size=1G --cache-mode=0600 --free-space-ratio=0.2 --cache-large-write=true",
            LOCAL,
            "",
            "",
        ),
        ("--cache-size=1G --cache-eviction=lru --get-timeout=5", REMOTE, "", ""),
        ("--writeback=true --cache-size=1G --max-stage-write=5 --upload-delay=5", LOCAL, "", ""),
        ("--max-stage-write=5 --upload-delay=5", LOCAL, "max-stage-write upload-delay", "without --writeback"),
        (
            "--cache-dir=memory --cache-size=1G --cache-mode=0600 --free-space-ratio=0.2 --verify-cache-checksum=full "
            "--cache-scan-interval=5",
            REMOTE,
            "cache-mode free-space-ratio verify-cache-checksum cache-scan-interval",
            "with --cache-dir memory",
        ),
        ("--cache-size=1G --cache-large-write=true", LOCAL, "cache-size cache-large-write", "without a cache: "),
        ("--cache-dir= --cache-size=1G --get-timeout=5", REMOTE, "cache-size", "without a cache: "),
        ("--cache-size=0 --cache-expire=5", LOCAL, "cache-expire", "with --cache-size 0"),
        ("--storage-class=COLD --put-timeout=5", LOCAL, "storage-class put-timeout", "on file storage"),
        ("--open-cache-limit=5", LOCAL, "open-cache-limit", "without --open-cache"),
        ("--log=/tmp/x", LOCAL, "log", "without --background"),
        ("--log=/tmp/x --background=true --foreground=true", LOCAL, "foreground", "with --background"),
    ],
)
def test_options_that_do_nothing(
    caplog: pytest.LogCaptureFixture, line: str, settings: Settings, names: str, why: str
) -> None:
    told = [message.split(" has no effect ") for message in said(caplog, line, settings)]
    assert sorted(name for name, _ in told) == sorted(names.split())
    assert all(reason.startswith(why) for _, reason in told)


@pytest.mark.logs("has no effect in jfs")
def test_words_that_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_words(["rw", "_netdev", "uid=5", "noatime", "debug", "comment=uid", ""])
    assert [record.getMessage() for record in caplog.records] == [
        'mount option "uid=5" has no effect in jfs',
        'mount option "debug" has no effect in jfs',
    ]


@pytest.mark.logs("not enough space")
def test_a_disk_that_is_fuller_than_it_may_be(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    folders = [str(tmp_path), "memory", f"{tmp_path}/none"]
    caplog.set_level(logging.WARNING)
    warn_of_full_disks(ChunkOptions(cache_dirs=folders, free_space_ratio=0.0))
    assert not caplog.records
    warn_of_full_disks(ChunkOptions(cache_dirs=folders, free_space_ratio=1.0))
    (record,) = caplog.records
    assert f"for caching in {tmp_path}: --free-space-ratio wants 100%" in record.getMessage()


def test_a_background_mount_has_the_warnings_in_its_log(volume: Volume, tmp_path: Path) -> None:
    words = (
        "attr-cache=soon,max-stage-write=5,backup-meta=1,cache-dir={tmp}/cache,free-space-ratio=0.9999,log={tmp}/log"
    )
    done = JFS.run(volume.url, tmp_path / "m", "-o", words.format(tmp=tmp_path), CALL_VIA_MOUNT="1")
    try:
        log = (tmp_path / "log").read_text()
        for warning in (
            "option --attr-cache: malformed duration 'soon'; examples: 30, 1.5s, 100ms, 1h30m, 2d; taken as 0",
            "option --max-stage-write has no effect without --writeback",
            "option --backup-meta has no effect in jfs",
        ):
            assert done.stderr.count(warning) == 1
            assert log.count(f"<WARNING>: {warning}") == 1
        assert log.count("<WARNING>: not enough space") == 1
    finally:
        JFS.run("umount", tmp_path / "m")
    eventually(lambda: "exit successfully" in (tmp_path / "log").read_text(), 60, "the mount ended")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cache-dir {tmp}/m/cache --writeback", "cache folder {tmp}/m/cache lies in the mount point {tmp}/m, where"),
        (
            "--cache-dir {tmp}/a:{tmp}/link/cache",
            "cache folder {tmp}/link/cache lies in the mount point {tmp}/m, where",
        ),
        ("--cache-dir {tmp}/m", "cache folder {tmp}/m lies in the mount point {tmp}/m, where"),
        ("--bucket {tmp}/m/b", "bucket {tmp}/m/b lies in the mount point {tmp}/m, where"),
        ("-d --log {tmp}/m/log", "log file {tmp}/m/log lies in the mount point {tmp}/m, where"),
    ],
)
def test_what_the_mount_needs_may_not_lie_in_it(volume: Volume, tmp_path: Path, flags: str, message: str) -> None:
    (tmp_path / "link").symlink_to("m")
    before = snapshot(tmp_path)
    words = [word.format(tmp=tmp_path) for word in flags.split()]
    assert message.format(tmp=tmp_path) in refused("mount", volume.url, tmp_path / "m", *words)
    assert snapshot(tmp_path) == before
    assert not is_mounted(tmp_path / "m")


def test_the_metadata_may_not_lie_in_the_mount(volume: Volume) -> None:
    assert "metadata database" in refused("mount", "--force", volume.url, volume.folder)
    assert not is_mounted(volume.folder)


def test_a_mount_point_may_be_a_symlink(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("m")
    JFS.run("mount", "-d", "--log", tmp_path / "log", volume.url, tmp_path / "link")
    assert is_mounted(tmp_path / "m")
    JFS.run("umount", tmp_path / "link")
    assert not is_mounted(tmp_path / "m")
    eventually(lambda: "exit successfully" in (tmp_path / "log").read_text(), 60, "the mount ended")
