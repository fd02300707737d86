"""What `umount --flush` waits for."""

from pathlib import Path

import pytest

from jfs.commands import flushing

STATS = """juicefs_uptime 12
juicefs_staging_blocks {}
juicefs_staging_block_bytes {}
juicefs_staging_writing_blocks {}
juicefs_staging_write_bytes 4711
"""


def test_a_block_that_is_being_staged_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was on its way when the mount was told to stage no more."""
    stats = tmp_path / "stats"
    script = [(0, 0, 1), (1, 100, 1), (1, 100, 0), (0, 0, 0)]

    def next_line(_: float) -> None:
        stats.write_text(STATS.format(*script.pop(0)))

    next_line(0.0)
    monkeypatch.setattr(flushing, "special_file", lambda folder, name: str(stats))
    monkeypatch.setattr(flushing.time, "sleep", next_line)
    flushing._wait(str(tmp_path))
    assert script == []
    assert "All staging chunks are flushed" in capsys.readouterr().out
