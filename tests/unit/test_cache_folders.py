"""Where a volume's blocks are cached, and what the log says of it."""

import logging

import pytest

from jfs.meta.settings import Settings
from jfs.volume import cache_folders

LOCAL = Settings.fresh("vol", storage="file", bucket="/store/")
REMOTE = Settings.fresh("vol", storage="s3", bucket="http://host/bucket")


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


def test_another_store_is_cached_on_disk_by_default() -> None:
    [folder] = cache_folders(REMOTE, None)
    assert folder.endswith(("/var/jfsCache", "/.juicefs/cache"))
