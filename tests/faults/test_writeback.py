"""Writeback: what fsync acknowledged is in the cache folder or in the store, whatever happens to mount, store or disk."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.conftest import writing
from tests.faults.test_store import drop_caches, immutable, noise, write_and_sync
from tests.faults.writer import acknowledged, losses
from tests.mounts import JFS, PEER, Mount, Volume, format_volume
from tests.s3server import S3Server

MIB = 1 << 20
STAYS = "are staged and not uploaded yet"
DEAD = "left by a mount that died"
# a deleted file's blocks may be staged by the mount that was killed and gone with the next one's clean-up
WAITING = ("--upload-delay", "1h")


def staged(folder: Path) -> list[Path]:
    """The staged files of a cache folder; not those that were being written when a mount was killed."""
    return sorted(path for path in folder.glob("*/rawstaging/**/*") if path.is_file() and path.suffix != ".tmp")


def key_of(block: Path) -> str:
    """The key of a staged file: which ids a mount gives to its first slices is its own affair."""
    return str(block).partition("/rawstaging/")[2]


def check_everything(volume: Volume) -> None:
    for client in (JFS, PEER):
        client.run("fsck", volume.url)


def flush(mount: Mount) -> str:
    """`jfs umount --flush`, and the end of the mount."""
    done = JFS.run("umount", "--flush", mount.path)
    assert mount.process.wait(60) == 0
    return done.stdout


@pytest.mark.parametrize("seed", range(6))
def test_nothing_acknowledged_is_lost_by_kill(tmp_path: Path, seed: int) -> None:
    volume = format_volume(JFS, tmp_path / "v", "killed")
    cache, log = tmp_path / "cache", tmp_path / "log"
    options = ["--writeback", "--cache-dir", str(cache), *(WAITING if seed % 3 == 0 else ())]
    sync = ("--sync",) if seed % 2 else ()
    with volume.mounted(JFS, *options) as mount:
        root = mount.path / "work"
        root.mkdir()
        with writing(root, log, seed + 100, *sync):
            moment = random.Random(seed).randrange(40, 160)
            eventually(lambda: acknowledged(log) > moment, 60, f"{moment} steps", pause=0.001)
            mount.kill()
    if seed % 3 == 0:
        assert staged(cache)
    with volume.mounted(JFS, *options, expect_log=[DEAD]) as mount:
        assert losses(mount.path / "work", log) == []
        assert "All staging chunks are flushed" in flush(mount)
    assert staged(cache) == []
    check_everything(volume)
    drop_caches()
    with volume.mounted(JFS) as mount:
        assert losses(mount.path / "work", log) == []


def test_an_unmount_leaves_staged_blocks_to_the_next_mount(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path / "v", "left")
    options = ("--writeback", "--cache-dir", str(tmp_path / "cache"))
    with volume.mounted(JFS, *options, *WAITING, expect_log=[f"4 blocks .* {STAYS}"]) as mount:
        write_and_sync(mount.path / "f", noise(1, 9 * MIB))
        write_and_sync(mount.path / "g", noise(2, 1000))
        assert (mount.figure("staging_blocks"), mount.figure("staging_block_bytes")) == (4, 9 * MIB + 1000)
        assert volume.objects == []
        drop_caches()
        assert (mount.path / "f").read_bytes() == noise(1, 9 * MIB)
    assert STAYS in mount.log.read_text()
    assert len(staged(tmp_path / "cache")) == 4
    with volume.mounted(JFS, *options) as mount:
        eventually(lambda: mount.figure("staging_blocks") == 0, 60, "the uploads")
        eventually(lambda: not staged(tmp_path / "cache"), 30)
        assert mount.figure("staging_block_delay_seconds") > 0
    assert len(volume.objects) == 4
    check_everything(volume)


def test_flush_waits_for_no_delay(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path / "v", "flushed")
    with volume.mounted(JFS, "--writeback", "--cache-dir", str(tmp_path / "cache"), *WAITING) as mount:
        (mount.path / "f").write_bytes(noise(1, 9 * MIB))
        with (mount.path / "g").open("wb") as file:
            busy = JFS.run("umount", "--flush", mount.path, ok=False)
            assert "busy" in busy.stderr
            assert staged(tmp_path / "cache") == []
            file.write(noise(2, 1000))  # the refused unmount has given staging back
        assert len(staged(tmp_path / "cache")) == 1
        assert "All staging chunks are flushed" in flush(mount)
    assert staged(tmp_path / "cache") == []
    check_everything(volume)


def test_the_peers_flush_waits_for_a_mount_of_ours(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path / "v", "theirs")
    with volume.mounted(JFS, "--writeback", "--cache-dir", str(tmp_path / "cache"), "--upload-delay", "3s") as mount:
        (mount.path / "f").write_bytes(noise(1, MIB))
        PEER.run("umount", "--flush", mount.path)
        assert mount.process.wait(60) == 0
    assert staged(tmp_path / "cache") == []
    assert len(volume.objects) == 1


def test_a_store_that_is_away_stops_nobody(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """Writes are acknowledged, survive kill -9, and are uploaded when the store is back."""
    disk = small_disk("ext4", "300M")
    volume = format_volume(JFS, disk / "v", "away")
    log, cache = tmp_path / "log", tmp_path / "cache"
    options = ("--writeback", "--cache-dir", str(cache))
    immutable(volume.store, on=True)
    try:
        with volume.mounted(JFS, *options, at=tmp_path / "mp", expect_log=["cannot be uploaded yet"]) as mount:
            root = mount.path / "work"
            root.mkdir()
            with writing(root, log, 7, "--sync"):
                eventually(lambda: acknowledged(log) > 150, 60, "150 steps")
                assert mount.figure("staging_blocks") > 0
                mount.kill()
        with volume.mounted(
            JFS, *options, at=tmp_path / "mp", expect_log=[DEAD, "cannot be uploaded yet", STAYS]
        ) as mount:
            assert losses(mount.path / "work", log) == []
            eventually(lambda: mount.figure("staging_block_errors") > 0, 60, "a refused upload")
            assert mount.figure("staging_blocks") > 0
            immutable(volume.store, on=False)
            assert "All staging chunks are flushed" in flush(mount)
    finally:
        immutable(volume.store, on=False)
    check_everything(volume)


def test_an_s3_server_that_freezes_stops_nobody(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load; what was acknowledged meanwhile is in the bucket after the flush."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = s3_server.bucket_url("freezing")
    flags = (*s3_server.format_flags, "--bucket", bucket, "--compress", "lz4", "--hash-prefix")
    volume = format_volume(JFS, tmp_path / "v", "frozen", *flags)
    log = tmp_path / "log"
    options = ("--writeback", "--cache-dir", str(tmp_path / "cache"), "--put-timeout", "2s")
    late = ["cannot be uploaded yet", "trying again", "stay until the next"]
    assert s3_server.process is not None
    with volume.mounted(JFS, *options, expect_log=late) as mount:
        root = mount.path / "work"
        root.mkdir()
        with writing(root, log, 300, "--sync"):
            eventually(lambda: acknowledged(log) > 30, 60, "30 steps")
            os.killpg(s3_server.process.pid, signal.SIGSTOP)
            try:
                frozen_at = acknowledged(log)
                eventually(lambda: acknowledged(log) > frozen_at + 100, 60, "100 steps without the server")
                eventually(lambda: mount.figure("staging_block_errors") > 0, 30, "an upload that timed out")
            finally:
                os.killpg(s3_server.process.pid, signal.SIGCONT)
            eventually(lambda: mount.figure("staging_block_delay_seconds") > 0, 30, "uploads")
        assert "All staging chunks are flushed" in flush(mount)
    assert staged(tmp_path / "cache") == []
    check_everything(volume)
    with volume.mounted(JFS, "--cache-dir", str(tmp_path / "cold")) as mount:
        assert losses(mount.path / "work", log) == []


def test_a_hanging_store_holds_up_neither_fsync_nor_the_unmount(tmp_path: Path) -> None:
    """The store lies on another volume whose mount is stopped."""
    outer = format_volume(PEER, tmp_path / "outer", "outer")
    options = ("--writeback", "--cache-dir", str(tmp_path / "cache"))
    with outer.mounted(PEER) as below:
        volume = Volume(tmp_path / "inner", "inner")
        volume.folder.mkdir()
        volume.store.symlink_to(below.path)
        format_volume(JFS, volume.folder, "inner")
        with volume.mounted(JFS, *options, expect_log=[STAYS]) as mount:
            for pid in below.pids():
                os.kill(pid, signal.SIGSTOP)
            write_and_sync(mount.path / "f", noise(1, 9 * MIB))
            assert (mount.path / "f").read_bytes() == noise(1, 9 * MIB)
            subprocess.run(["umount", mount.path], check=True)
            assert mount.process.wait(60) == 0
            for pid in below.pids():
                os.kill(pid, signal.SIGCONT)
        with volume.mounted(JFS, *options) as mount:
            assert (mount.path / "f").read_bytes() == noise(1, 9 * MIB)
            flush(mount)
        assert len(volume.objects) == 3


def test_a_full_staging_disk_only_costs_speed(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    volume = format_volume(JFS, tmp_path / "v", "full")
    cache = small_disk("tmpfs", "20m")
    with volume.mounted(
        JFS, "--writeback", "--cache-dir", str(cache), *WAITING, expect_log=["blocks go to the store", STAYS]
    ) as mount:
        write_and_sync(mount.path / "f", noise(1, 60 * MIB))
        assert volume.objects, "what the disk has no room for went to the store"
        drop_caches()
        assert (mount.path / "f").read_bytes() == noise(1, 60 * MIB)
        write_and_sync(mount.path / "g", noise(2, 5 * MIB))
        assert (mount.path / "g").read_bytes() == noise(2, 5 * MIB)
        flush(mount)
    check_everything(volume)
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == noise(1, 60 * MIB)


def test_a_full_disk_and_a_store_that_is_away_are_an_error(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """Neither takes the block: the writer hears of it, and nothing that was acknowledged is touched."""
    volume = format_volume(JFS, small_disk("ext4", "300M") / "v", "pressed")
    cache = small_disk("tmpfs", "20m")
    expected = ["blocks go to the store", "cannot be uploaded yet", "Operation not permitted", "given up", "are lost"]
    with volume.mounted(
        JFS, "--writeback", "--cache-dir", str(cache), "--io-retries", "1", at=tmp_path / "mp", expect_log=expected
    ) as mount:
        immutable(volume.store, on=True)
        try:
            write_and_sync(mount.path / "before", noise(1, 6 * MIB))
            with pytest.raises(OSError, match="Input/output error"):
                write_and_sync(mount.path / "refused", noise(2, 60 * MIB))
            assert (mount.path / "before").read_bytes() == noise(1, 6 * MIB)
        finally:
            immutable(volume.store, on=False)
        eventually(lambda: mount.figure("staging_blocks") == 0, 60, "the uploads")
        write_and_sync(mount.path / "after", noise(3, 60 * MIB))
        assert (mount.path / "after").read_bytes() == noise(3, 60 * MIB)
        flush(mount)
    check_everything(volume)


def test_a_cache_folder_deleted_under_the_mount(tmp_path: Path) -> None:
    """What was staged in it is named as lost; the mount goes on, straight to the store."""
    volume = format_volume(JFS, tmp_path / "v", "vanished")
    cache = tmp_path / "cache"
    expected = ["cache folder", "is not used any more", "in memory", "staged block .* is lost", "is missing in", STAYS]
    expected += ["staging folder"]
    with volume.mounted(JFS, "--writeback", "--cache-dir", str(cache), *WAITING, expect_log=expected) as mount:
        write_and_sync(mount.path / "f", noise(1, 1000))
        (block,) = staged(cache)
        shutil.rmtree(cache)
        eventually(lambda: "is not used any more" in mount.log.read_text(), 30, "the folder to be given up")
        write_and_sync(mount.path / "g", noise(2, 5 * MIB))
        assert len(volume.objects) == 2
        assert (mount.path / "g").read_bytes() == noise(2, 5 * MIB)
        flush(mount)
        assert f"staged block {key_of(block)} is lost" in mount.log.read_text()


def test_a_staging_disk_that_turns_read_only(tmp_path: Path, small_disk: Callable[..., Path]) -> None:
    """What lies there is uploaded, new blocks go to the store."""
    volume = format_volume(JFS, tmp_path / "v", "readonly")
    cache = small_disk("ext4", "200M")
    expected = [
        "staging folder",
        "cache folder",
        "staged files stay behind",
        "is not used any more",
        "in memory",
        STAYS,
    ]
    with volume.mounted(JFS, "--writeback", "--cache-dir", str(cache), *WAITING, expect_log=expected) as mount:
        write_and_sync(mount.path / "f", noise(1, 9 * MIB))
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        write_and_sync(mount.path / "g", noise(2, 9 * MIB))
        assert (mount.path / "f").read_bytes() == noise(1, 9 * MIB)
        assert (mount.path / "g").read_bytes() == noise(2, 9 * MIB)
        flush(mount)
    subprocess.run(["mount", "-o", "remount,rw", cache], check=True)
    check_everything(volume)
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == noise(1, 9 * MIB)


def test_another_mount_waits_for_a_block_that_is_not_uploaded(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path / "v", "elsewhere")
    options = ("--writeback", "--cache-dir", str(tmp_path / "cache"), *WAITING)
    with (
        volume.mounted(JFS, *options, at=tmp_path / "writer") as writer,
        volume.mounted(JFS, at=tmp_path / "reader", expect_log=["is missing in .*waiting up to"]) as reader,
        ThreadPoolExecutor() as pool,
    ):
        write_and_sync(writer.path / "f", noise(1, 5 * MIB))
        assert volume.objects == []
        read = pool.submit((reader.path / "f").read_bytes)
        eventually(lambda: "waiting up to" in reader.log.read_text(), 30, "the reader to wait")
        flush(writer)
        assert read.result() == noise(1, 5 * MIB)


def test_another_mount_gives_up_on_a_block_and_names_it(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path / "v", "nowhere")
    options = ("--writeback", "--cache-dir", str(tmp_path / "cache"), *WAITING)
    with (
        volume.mounted(JFS, *options, at=tmp_path / "writer", expect_log=[STAYS]) as writer,
        volume.mounted(JFS, at=tmp_path / "reader", expect_log=["is missing in"]) as reader,
    ):
        write_and_sync(writer.path / "f", noise(1, 1000))
        (block,) = staged(tmp_path / "cache")
        with pytest.raises(OSError, match="Input/output error"):
            (reader.path / "f").read_bytes()
        assert f"<ERROR>: inode 2: object {key_of(block)} is missing in" in reader.log.read_text()


def test_files_deleted_before_their_upload_leave_nothing(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path / "v", "deleted", "--trash-days", "0")
    with volume.mounted(JFS, "--writeback", "--cache-dir", str(tmp_path / "cache"), *WAITING) as mount:
        for number in range(20):
            write_and_sync(mount.path / f"{number}", noise(number, 100_000))
        assert len(staged(tmp_path / "cache")) == 20
        for number in range(20):
            os.unlink(mount.path / f"{number}")
        eventually(lambda: not staged(tmp_path / "cache"), 60, "the staged files to go")
        flush(mount)
    assert volume.objects == []
