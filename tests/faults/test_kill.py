"""kill -9 of the mount at any moment: whatever fsync, close or a call's return acknowledged is there afterwards."""

import logging
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
from tests.faults.test_store import drop_caches
from tests.faults.writer import acknowledged, losses
from tests.mounts import JFS, PEER, Volume, format_volume, is_mounted, is_ready
from tests.s3server import S3Server
from tests.tikv.fixtures import fresh_address
from tests.trees import outcome

measured = logging.getLogger("measured")


ROUNDS = int(os.environ.get("JFS_KILL_ROUNDS", "50"))
"""In all; most of them on SQLite and a folder, the rest on TiKV and S3."""
DEAD = "left by a mount that died"
PLACES = {"sqlite3 and file": ROUNDS - ROUNDS * 2 // 5, "tikv and s3": ROUNDS * 2 // 5}


@pytest.fixture(params=PLACES)
def killed_volume(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Volume, int]:
    """A volume, and how many rounds it is in for."""
    if request.param == "sqlite3 and file":
        return format_volume(JFS, tmp_path / "v", "killed"), PLACES[request.param]
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server: S3Server = request.getfixturevalue("s3_server")
    address = fresh_address(request.getfixturevalue("tikv_cluster"))
    bucket = ("--bucket", server.bucket_url("killed"))
    return format_volume(JFS, tmp_path / "v", "killed", *server.format_flags, *bucket, address=address), PLACES[
        request.param
    ]


def a_round(volume: Volume, number: int, log: Path, cache: Path) -> int:
    """A mount killed at a random moment of a writer's life, and what is there afterwards.  How much was acknowledged."""
    dice = random.Random(number * 77)
    lazy = number % 2 == 1
    options = ["--cache-dir", str(cache)]
    if lazy:
        options += ["--writeback", "--upload-delay", dice.choice(("0s", "1s", "1h"))]
    with volume.mounted(JFS, *options) as mount:
        root = mount.path / f"{number}"
        root.mkdir()
        with writing(root, log, number, *(["--sync"] if number % 3 else [])):
            moment = dice.randrange(20, 160)
            eventually(lambda: acknowledged(log) > moment, 60, f"{moment} steps", pause=dice.choice((0.001, 0.01)))
            mount.kill()
        assert is_mounted(mount.path)  # dead, and replaced by the next mount as it is
    with volume.mounted(JFS, *options, expect_log=[DEAD]) as mount:
        assert losses(mount.path / f"{number}", log) == []
        if lazy:
            JFS.run("umount", "--flush", mount.path)
            assert mount.process.wait(60) == 0
    JFS.run("fsck", volume.url)
    return acknowledged(log)


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_nothing_acknowledged_is_lost(killed_volume: tuple[Volume, int], tmp_path: Path) -> None:
    """Round after round on one volume, every other one with writeback; at its end the older rounds' files are there too."""
    volume, rounds = killed_volume
    logs = [tmp_path / f"log-{number}" for number in range(rounds)]
    done = [a_round(volume, number, log, tmp_path / "cache") for number, log in enumerate(logs)]
    measured.info("%d rounds, %d steps acknowledged, 0 lost", rounds, sum(done))
    PEER.run("fsck", volume.url)
    drop_caches()
    with volume.mounted(JFS, "--cache-dir", str(tmp_path / "cold")) as mount:
        for number, log in enumerate(logs):
            assert losses(mount.path / f"{number}", log) == []


def test_stale_mount_point_is_replaced(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "stale")
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_text("kept")
        mount.kill()
        eventually(lambda: not is_ready(mount.path), 30, "the mount to be dead")
        with volume.mounted(JFS, expect_log=[DEAD]) as again:
            assert again.path == mount.path
            assert (again.path / "f").read_text() == "kept"


@pytest.mark.parametrize("sync_mount", [False, True])
def test_what_a_synchronous_write_wrote_is_there(tmp_path: Path, *, sync_mount: bool) -> None:
    """The kernel asks for no fsync after direct writes, which write-only handles make."""

    def write(name: str, flags: int, how: int = 0) -> None:
        descriptor = os.open(mount.path / name, flags | os.O_CREAT)
        os.pwritev(descriptor, [data[:100]], 0, how)
        os.pwritev(descriptor, [data[100:]], 100, how)
        opened[name] = descriptor

    data = os.urandom(3 << 20)
    opened: dict[str, int] = {}
    volume = format_volume(JFS, tmp_path, "synchronous")
    with volume.mounted(JFS, *(("-o", "sync") if sync_mount else ())) as mount:
        for access in (os.O_WRONLY, os.O_RDWR):
            if sync_mount:
                write(f"plain {access}", access)
            else:
                write(f"O_SYNC {access}", access | os.O_SYNC)
                write(f"O_DSYNC {access}", access | os.O_DSYNC)
                write(f"RWF_DSYNC {access}", access, os.RWF_DSYNC)
                write(f"RWF_SYNC {access}", access, os.RWF_SYNC)
        mount.kill()
        for descriptor in opened.values():
            outcome(lambda: os.close(descriptor))  # noqa: B023
    with volume.mounted(JFS, expect_log=[DEAD]) as mount:
        assert [name for name in opened if (mount.path / name).read_bytes() != data] == []


def test_file_held_open_by_a_killed_mount_goes(tmp_path: Path) -> None:
    """The session of a killed mount expires; another mount then removes what only that session held."""
    volume = format_volume(JFS, tmp_path, "sustained", "--trash-days", "0")
    with volume.mounted(JFS, "--heartbeat", "1", at=tmp_path / "other") as other:
        with volume.mounted(JFS, "--heartbeat", "1", at=tmp_path / "doomed", expect_log=["ended as stale"]) as doomed:
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
        assert mount.process.wait(60) == 0
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
        "import sqlite3, sys, threading; d = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60);"
        "d.execute('begin immediate'); print('held', flush=True); threading.Event().wait(float(sys.argv[2]));"
        "d.execute('commit')"
    )
    command = [sys.executable, "-c", program, database, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        assert process.wait(60) == 0


def test_database_busy_for_a_while_is_only_slow(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "locked")
    with volume.mounted(JFS) as mount:
        (mount.path / "before").write_text("x")
        with database_held(volume.database, 3):
            assert (mount.path / "before").read_text() == "x"  # readers do not wait
            (mount.path / "during").write_text("waited")
        assert (mount.path / "during").read_text() == "waited"
