"""What mount(2) is given for the words of `-o`."""

import pytest

from jfs.fuse import device

BASE = {"fsname=JuiceFS:v", "subtype=juicefs", "default_permissions"}


def test_source_type_and_words() -> None:
    assert device.split(BASE | {"allow_other", "max_read=4096"}) == (
        6,
        "JuiceFS:v",
        "fuse.juicefs",
        ["allow_other", "default_permissions", "max_read=4096"],
    )


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (set(), 2 | 4),
        ({"ro"}, 1 | 2 | 4),
        ({"suid"}, 4),
        ({"dev", "noexec"}, 2 | 8),
        ({"exec", "async", "atime"}, 2 | 4),
        ({"noatime", "dirsync"}, 2 | 4 | 128 | 1024),
    ],
)
def test_flags(words: set[str], flags: int) -> None:
    """Set-user-ID programs and devices are off unless asked for, as libfuse and fusermount3 have it."""
    assert device.split(BASE | words)[0] == flags
