"""Bars are for terminals, and take nothing away from the log."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.mounts import JFS, format_volume


def on_terminal(log: Path, *words: str, **env: str) -> bytes:
    """What a command shows on a terminal while its stderr goes to a file."""
    ours, its = os.openpty()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [JFS.binary, *words],
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=stderr,
            env={**os.environ, "TERM": "xterm", **env},
        )
    os.close(its)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how a terminal says that nobody is left at its other end
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    return shown


@pytest.mark.parametrize("command", ["gc", "fsck"])
def test_bars_on_a_terminal(tmp_path: Path, command: str) -> None:
    volume = format_volume(JFS, tmp_path, "vol")
    log = tmp_path / "stderr"
    shown = on_terminal(log, command, volume.url)
    assert {"gc": b"Scanned objects", "fsck": b"Listed blocks"}[command] in shown
    assert b"<INFO>" not in shown
    told = log.read_text()
    assert {"gc": "scanned 0 objects", "fsck": "Found 0 blocks (0 bytes)"}[command] in told
    assert "\x1b" not in told
    assert on_terminal(log, command, volume.url, DISPLAY_PROGRESSBAR="false") == b""
    assert len(log.read_text().splitlines()) == len(told.splitlines())
