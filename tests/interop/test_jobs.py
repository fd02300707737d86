"""Clean-up is shared: each program does what the other's dead mounts left, and respects the other's turn."""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.conftest import both_mounted
from tests.mounts import JFS, PEER, Client, Volume, format_volume

BRISK = ("--heartbeat", "1s")
LATE = "had been ended as stale by another client"
"""What a mount says that stood still for five seconds, as any may on a busy machine; it goes on."""


def change(volume: Volume, statement: str) -> None:
    connection = sqlite3.connect(volume.database, timeout=20)
    with connection:
        connection.execute(statement)
    connection.close()


def expiries(volume: Volume) -> dict[int, int]:
    """When each session lapses, as its client said last."""
    connection = sqlite3.connect(volume.database, timeout=20)
    rows = dict(connection.execute("select sid, expire from jfs_session2").fetchall())
    connection.close()
    return rows


def dies_with_an_open_file(volume: Volume, client: Client) -> int:
    """A mount is killed while it holds a file that has lost its name; its session."""
    before = set(expiries(volume))
    with volume.mounted(client, *BRISK, at=volume.folder / "dying", expect_log=[LATE]) as mount:
        (sid,) = set(expiries(volume)) - before
        fd = os.open(mount.path / "f", os.O_RDWR | os.O_CREAT)
        try:
            os.write(fd, b"without a name")
            os.fsync(fd)
            os.unlink(mount.path / "f")
            assert len(volume.objects) == 1
            mount.kill()
        finally:
            with suppress(OSError):
                os.close(fd)
    return sid


def assert_nothing_left(volume: Volume) -> None:
    """No blocks are missing or too many; what a killed mount had not yet booked is none of the jobs' business."""
    for client in (PEER, JFS):
        swept = client.run("gc", volume.url, JFS_GC_SKIPPEDTIME="0")
        assert "scanned 0 objects" in swept.stderr, swept.stderr
    PEER.run("fsck", volume.url)


@pytest.mark.parametrize("dying", [JFS, PEER], ids=lambda client: client.name)
def test_a_dead_mounts_files_go(tmp_path: Path, dying: Client) -> None:
    volume = format_volume(PEER, tmp_path, "vol", "--trash-days", "0")
    living = PEER if dying is JFS else JFS
    with volume.mounted(living, *BRISK, expect_log=[LATE]):
        sid = dies_with_an_open_file(volume, dying)
        eventually(lambda: sid not in expiries(volume), 40, "the dead session is ended")
        eventually(lambda: not volume.objects, 30, "its file is removed")
    assert_nothing_left(volume)


def test_both_respect_that_a_job_was_done(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "0")
    change(volume, f"insert or replace into jfs_counter values ('lastCleanupSessions', {int(time.time()) + 1000})")
    with both_mounted(volume, *BRISK) as (ours, _):
        ours.expect_log(LATE)
        sid = dies_with_an_open_file(volume, JFS)
        alive = set(expiries(volume)) - {sid}
        assert len(alive) == 2
        eventually(lambda: expiries(volume)[sid] < time.time(), 30, "the dead session lapses")
        seen = expiries(volume)
        eventually(
            lambda: all(expiries(volume)[each] >= seen[each] + 3 for each in alive), 30, "some heartbeats of both"
        )
        assert sid in expiries(volume)
        change(volume, "update jfs_counter set value = 0 where name = 'lastCleanupSessions'")
        eventually(lambda: sid not in expiries(volume), 30, "the dead session is ended")
        eventually(lambda: not volume.objects, 30, "its file is removed")
    assert_nothing_left(volume)


def test_a_mount_without_background_jobs_leaves_them_to_others(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "0")
    with volume.mounted(JFS, *BRISK, "--no-bgjob", expect_log=[LATE]):
        sid = dies_with_an_open_file(volume, JFS)
        (alive,) = set(expiries(volume)) - {sid}
        eventually(lambda: expiries(volume)[sid] < time.time(), 30, "the dead session lapses")
        seen = expiries(volume)[alive]
        eventually(lambda: expiries(volume)[alive] >= seen + 3, 30, "some heartbeats")
        assert sid in expiries(volume)
        with volume.mounted(PEER, *BRISK):
            eventually(lambda: sid not in expiries(volume), 40, "the dead session is ended")
    assert_nothing_left(volume)
