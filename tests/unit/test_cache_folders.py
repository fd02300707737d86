"""Where a volume's blocks are cached, and what the log says of it."""

import logging
from pathlib import Path

import pytest

from jfs import volume
from jfs.meta.settings import Settings
from jfs.volume import cache_folders, staged_blocks

LOCAL = Settings.fresh("vol", storage="file", bucket="/store/")
REMOTE = Settings.fresh("vol", storage="s3", bucket="http://host/bucket")

KEY = "chunks/0/0/1_0_5"


@pytest.fixture(autouse=True)
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that blocks are cached in if nobody says where."""
    monkeypatch.setattr(volume, "default_cache_dir", lambda: str(tmp_path))
    return tmp_path


def stage(folder: Path, settings: Settings, name: str = KEY) -> None:
    path = folder / settings.uuid / "rawstaging" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"data")


@pytest.mark.parametrize(
    ("settings", "given", "folders", "said"),
    [
        (LOCAL, None, [], ["Disk cache (none): file storage is read directly; name one with --cache-dir"]),
        (LOCAL, "/a:/b", ["/a", "/b"], []),
        (LOCAL, "memory", ["memory"], ["Disk cache (none): blocks are cached in memory"]),
        (REMOTE, "/a", ["/a"], []),
    ],
)
def test_cache_folders(
    caplog: pytest.LogCaptureFixture, settings: Settings, given: str | None, folders: list[str], said: list[str]
) -> None:
    caplog.set_level(logging.INFO)
    assert cache_folders(settings, given) == folders
    assert [record.getMessage() for record in caplog.records] == said


def test_another_store_is_cached_on_disk_by_default(default: Path) -> None:
    assert cache_folders(REMOTE, None) == [str(default)]


def test_writeback_stages_in_the_default_folder(default: Path) -> None:
    assert cache_folders(LOCAL, None, writeback=True) == [str(default)]


def test_what_is_staged_in_the_default_folder_is_not_forgotten(caplog: pytest.LogCaptureFixture, default: Path) -> None:
    """Of a `file` store, by a mount with --writeback: the next one without it has to read and upload it."""
    caplog.set_level(logging.INFO)
    stage(default, REMOTE)
    stage(default, LOCAL, f"{KEY}.tmp")
    assert cache_folders(LOCAL, None) == []  # another volume's blocks, and what is no block
    caplog.clear()
    stage(default, LOCAL)
    assert cache_folders(LOCAL, None) == [str(default)]
    assert [record.getMessage() for record in caplog.records] == [
        f"blocks that are not uploaded yet are staged in {default}/{LOCAL.uuid}/rawstaging/: this mount caches there"
    ]
    assert cache_folders(LOCAL, "") == []
    assert cache_folders(LOCAL, "/a") == ["/a"]


def test_staged_blocks(default: Path) -> None:
    assert list(staged_blocks(str(default), LOCAL.uuid)) == []
    stage(default, LOCAL)
    stage(default, LOCAL, "chunks/1F/0/31_1_4096")
    stage(default, LOCAL, "notes.txt")
    assert sorted(staged_blocks(str(default), LOCAL.uuid)) == [KEY, "chunks/1F/0/31_1_4096"]


@pytest.mark.logs("looking for staged blocks")
def test_a_folder_that_cannot_be_looked_into(caplog: pytest.LogCaptureFixture, default: Path) -> None:
    (default / LOCAL.uuid).mkdir()
    (default / LOCAL.uuid / "rawstaging").write_bytes(b"no folder")
    assert cache_folders(LOCAL, None) == []
    assert f"looking for staged blocks: {default}/{LOCAL.uuid}/rawstaging/: Not a directory" in caplog.text
