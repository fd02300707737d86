"""kill -9 of the mount at any moment: whatever fsync, close or a call's return acknowledged is there afterwards."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.conftest import writing
from tests.faults.writer import acknowledged, losses
from tests.mounts import JFS, PEER, format_volume, is_mounted, is_ready
from tests.trees import outcome


@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    volume = format_volume(JFS, tmp_path / "v", "killed")
    log = tmp_path / "log"
    flags = ("--sync",) if seed % 2 else ()
    with volume.mounted(JFS) as mount:
        root = mount.path / "work"
        root.mkdir()
        with writing(root, log, seed, *flags):
            moment = random.Random(seed).randrange(40, 160)
            eventually(lambda: acknowledged(log) > moment, 60, f"{moment} steps", pause=0.001)
            mount.kill()
        assert is_mounted(mount.path)  # dead, and replaced by the next mount as it is
    with volume.mounted(JFS, expect_log=["left by a mount that died"]) as mount:
        assert losses(mount.path / "work", log) == []
    for client in (JFS, PEER):
        client.run("fsck", volume.url)


def test_stale_mount_point_is_replaced(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "stale")
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_text("kept")
        mount.kill()
        eventually(lambda: not is_ready(mount.path), 5, "the mount to be dead")
        with volume.mounted(JFS, expect_log=["left by a mount that died"]) as again:
            assert again.path == mount.path
            assert (again.path / "f").read_text() == "kept"


def test_file_held_open_by_a_killed_mount_goes(tmp_path: Path) -> None:
    """The session of a killed mount expires; another mount then removes what only that session held."""
    volume = format_volume(JFS, tmp_path, "sustained", "--trash-days", "0")
    with volume.mounted(JFS, "--heartbeat", "1", at=tmp_path / "other") as other:
        with volume.mounted(JFS, "--heartbeat", "1", at=tmp_path / "doomed") as doomed:
            descriptor = os.open(doomed.path / "f", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, bytes(3 << 20))
            os.fsync(descriptor)
            os.unlink(doomed.path / "f")
            assert volume.objects
            doomed.kill()
            assert "not connected" in str(outcome(lambda: os.close(descriptor)))
        eventually(lambda: not volume.objects, 60, "the data of the file that nobody holds to go", pause=0.2)
        assert os.listdir(other.path)
        other.expect_log("stale session", "session")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_cleanly(tmp_path: Path, number: int) -> None:
    """Open files with unflushed bytes are saved first."""
    volume = format_volume(JFS, tmp_path, "signals")
    with volume.mounted(JFS) as mount:
        file = (mount.path / "f").open("wb", buffering=0)
        file.write(b"never flushed" * 100_000)
        os.kill(mount.process.pid, number)
        assert mount.process.wait(20) == 0
        assert not is_mounted(mount.path)
        with pytest.raises(OSError):
            file.write(b"x")
        try:
            file.close()
        except OSError as error:
            assert error.errno  # noqa: PT017
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == b"never flushed" * 100_000
    assert '"Sessions": []' in JFS.run("status", volume.url).stdout


def test_plain_umount_says_busy(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "busy")
    with volume.mounted(JFS) as mount, (mount.path / "f").open("w"):
        done = JFS.run("umount", mount.path, ok=False)
        assert done.returncode == 1
        assert "busy" in done.stderr
        assert is_ready(mount.path)


@contextmanager
def database_held(database: Path, seconds: float) -> Generator[None, None, None]:
    """Another process has the database for itself for a while."""
    program = (
        "import sqlite3, sys, threading; d = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20);"
        "d.execute('begin immediate'); print('held', flush=True); threading.Event().wait(float(sys.argv[2]));"
        "d.execute('commit')"
    )
    command = [sys.executable, "-c", program, database, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        assert process.wait(20) == 0


def test_database_busy_for_a_while_is_only_slow(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "locked")
    with volume.mounted(JFS) as mount:
        (mount.path / "before").write_text("x")
        with database_held(volume.database, 3):
            assert (mount.path / "before").read_text() == "x"  # readers do not wait
            (mount.path / "during").write_text("waited")
        assert (mount.path / "during").read_text() == "waited"
