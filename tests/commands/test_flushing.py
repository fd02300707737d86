"""What `umount --flush` waits for, and what it says meanwhile."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from jfs.commands import flushing
from tests.deadline import eventually
from tests.faults.test_writeback import STAYS
from tests.mounts import JFS, format_volume, is_mounted

STATS = """juicefs_uptime 12
juicefs_staging_blocks {}
juicefs_staging_block_bytes {}
juicefs_staging_writing_blocks {}
juicefs_staging_block_errors {}
juicefs_staging_write_bytes 4711
juicefs_object_request_errors {}
"""

Look = tuple[int, int, int, int, int]
"""The figures of `.stats` at one time."""


class Script:
    """A mount whose figures follow a script: the next ones after each pause, which takes a second."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *looks: Look) -> None:
        self._folder = folder
        self._stats = folder / "stats"
        self._left = list(looks)
        self._now = 0.0
        self._sleep(0.0)
        monkeypatch.setattr(flushing, "special_file", lambda folder, name: str(self._stats))
        monkeypatch.setattr(flushing.time, "sleep", self._sleep)
        monkeypatch.setattr(flushing.time, "monotonic", lambda: self._now)

    def _sleep(self, _: float) -> None:
        self._stats.write_text(STATS.format(*self._left.pop(0)))
        self._now += 1.0

    def play(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        """What is shown, up to the end of the script."""
        flushing._wait(str(self._folder))
        assert self._left == []
        return [line.strip().rpartition("being flushed... ")[2] for line in capsys.readouterr().out.split("\r") if line]


def test_a_block_that_is_being_staged_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was on its way when the mount was told to stage no more."""
    script = Script(tmp_path, monkeypatch, (0, 0, 1, 0, 0), (1, 100, 1, 0, 0), (1, 100, 0, 0, 0), (0, 0, 0, 0, 0))
    assert script.play(capsys)[-1] == "All staging chunks are flushed"


def test_how_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(tmp_path, monkeypatch, (3, 300, 0, 5, 5), (2, 200, 0, 5, 5), (1, 100, 0, 6, 6), (0, 0, 0, 6, 6))
    assert script.play(capsys) == ["100 B/s, left 2s", "100 B/s, left 1s", "All staging chunks are flushed"]


@pytest.mark.logs("uploads fail")
@pytest.mark.parametrize("counted", [(9, 5), (5, 9)], ids=["by jfs", "by juicefs"])
def test_why_nothing_is_uploaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    counted: tuple[int, int],
) -> None:
    stuck = (1, 100, 0, *counted)
    script = Script(tmp_path, monkeypatch, (1, 100, 0, 5, 5), stuck, stuck, (1, 50, 0, *counted), (0, 0, 0, *counted))
    failing = "0 B/s, uploads fail"
    assert script.play(capsys) == [
        failing,
        failing,
        "50 B/s, left 1s",
        "All staging chunks are flushed",
    ]
    (record,) = caplog.records
    assert "uploads fail, the mount's log says why; they are tried again until they work" in record.getMessage()


def test_nobody_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(tmp_path, monkeypatch, *[(1, 100, 0, 0, 0)] * 7, (0, 0, 0, 0, 0))
    told = script.play(capsys)
    assert told[0] == "0 B/s, left unknown"
    assert told[5] == "0 B/s, nothing for 6s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_who_ends_the_waiting_leaves_the_mount_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    """With Ctrl-C, by a service's time limit, by closing the terminal: blocks are staged as before."""
    volume = format_volume(JFS, tmp_path)
    flags = ("--writeback", "--cache-dir", f"{tmp_path}/cache", "--upload-delay", "1h")
    with volume.mounted(JFS, *flags, expect_log=[STAYS, "cannot be uploaded yet"]) as mount:
        (mount.path / "f").write_bytes(os.urandom(100_000))
        eventually(lambda: mount.figure("staging_blocks") == 1, 10)
        (volume.store / "vol").rename(volume.store / "away")
        (volume.store / "vol").write_bytes(b"no folder")
        command = [JFS.binary, "umount", "--flush", mount.path]
        flush = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        eventually(lambda: mount.figure("staging_block_errors") > 2, 30)
        flush.send_signal(number)
        said = flush.communicate(timeout=30)[0]
        assert flush.returncode == 1
        assert "<FATAL>: interrupted" in said
        assert is_mounted(mount.path)
        (mount.path / "g").write_bytes(os.urandom(100_000))
        eventually(lambda: mount.figure("staging_blocks") == 2, 10)
        (volume.store / "vol").unlink()
        (volume.store / "away").rename(volume.store / "vol")
