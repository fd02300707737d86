"""The bodies of replies: attributes field by field, how long they are valid, listings that fit."""

import errno

import pytest

from jfs.errors import FsError
from jfs.fuse import adapter, replies
from jfs.fuse.kernel import ATTR_OUT, DIRENT, ENTRY_OUT, FOPEN_NOFLUSH, OPEN_OUT, STATFS_OUT
from jfs.fuse.replies import Replies, Timeouts
from jfs.meta.types import TYPE_DIR, TYPE_FILE, TYPE_SYMLINK, Attr, Entry
from jfs.meta.usage import StatFs
from jfs.vfs.handles import Handle

NANO = 1_000_000_000
FILE = Attr(
    type=TYPE_FILE,
    mode=0o4751,
    uid=1,
    gid=2,
    atime_ns=3 * NANO + 4,
    mtime_ns=-1,
    ctime_ns=7 * NANO,
    nlink=3,
    length=1025,
    rdev=9,
)
TIMEOUTS = Timeouts(attr=1.5, entry=2.25, dir_entry=3.0, negative=4.0)


def test_an_entry() -> None:
    fields = ENTRY_OUT.unpack(Replies(TIMEOUTS).entry(Entry(42, FILE)))
    assert fields[:6] == (42, 0, 2, 1, NANO // 4, NANO // 2)
    assert fields[6:9] == (42, 1025, 3), "inode, size, blocks of 512 bytes"
    assert fields[9:15] == (3, -1, 7, 4, NANO - 1, 0), "a time before 1970 has nanoseconds that count forward"
    assert fields[15:] == (0o104751, 3, 1, 2, 9, replies.BLOCK_SIZE, 0)


def test_names_of_directories_have_a_time_of_their_own() -> None:
    fields = ENTRY_OUT.unpack(Replies(TIMEOUTS).entry(Entry(5, Attr(type=TYPE_DIR, mode=0o755, nlink=2))))
    assert (fields[2], fields[4]) == (3, 0)


def test_an_absent_name_is_valid_as_long_as_asked_for() -> None:
    fields = ENTRY_OUT.unpack(Replies(TIMEOUTS).absent)
    assert (fields[0], fields[2], fields[4]) == (0, 4, 0)


@pytest.mark.parametrize(
    ("age_s", "valid"), [(0.0, (1, NANO // 2)), (0.5, (1, 0)), (1.25, (0, NANO // 4)), (9.0, (0, 0))]
)
def test_the_kernel_keeps_attributes_for_what_is_left_of_their_time(age_s: float, valid: tuple[int, int]) -> None:
    reply = Replies(TIMEOUTS, lambda ino: age_s)
    assert ATTR_OUT.unpack(reply.attr((42, FILE)))[:2] == valid
    entry = ENTRY_OUT.unpack(reply.entry(Entry(42, FILE)))
    assert (entry[3], entry[5]) == valid
    assert (entry[2], entry[4]) == (2, NANO // 4), "names are not remembered"


def test_a_listing_that_fits() -> None:
    rows = [(b"." * length, 100 + length, FILE, length) for length in range(1, 20)]
    rows[3] = (b"lost", 7, None, 4)
    body = Replies(TIMEOUTS).rows((100_000, rows))
    at, seen = 0, []
    while at < len(body):
        nodeid = ENTRY_OUT.unpack_from(body, at)[0]
        ino, offset, length, kind = DIRENT.unpack_from(body, at + ENTRY_OUT.size)
        name = body[at + ENTRY_OUT.size + DIRENT.size :][:length]
        seen.append((name, ino, offset, kind, nodeid))
        at += ENTRY_OUT.size + DIRENT.size + (length + 7) // 8 * 8
    assert seen == [(name, ino, at, 8 if attr else 0, ino if attr else 0) for name, ino, attr, at in rows]


def test_a_listing_that_does_not_fit_ends_before_the_row_that_would_not() -> None:
    rows = [(b"x" * 8, ino, FILE, ino) for ino in range(1, 10)]
    size = ENTRY_OUT.size + DIRENT.size + 8
    assert len(Replies(TIMEOUTS).rows((3 * size + size - 1, rows))) == 3 * size
    assert len(replies.bare_rows((3 * 32 + 31, rows))) == 3 * 32
    assert Replies(TIMEOUTS).rows((size - 1, rows)) == b""


def test_handles_that_only_read_are_not_flushed() -> None:
    for writable in (True, False):
        handle = Handle(6, None, readable=True, writable=writable)
        handle.direct_io = False
        assert OPEN_OUT.unpack(replies.opened(handle)) == (6, 0 if writable else FOPEN_NOFLUSH, 0)


def test_statfs() -> None:
    usage = StatFs(total_space=40960, used_space=4096, available_space=8192, used_inodes=3, available_inodes=5)
    assert STATFS_OUT.unpack(replies.statfs(usage)) == (10, 2, 2, 8, 5, 4096, 255, 4096)


def test_a_symlink_is_none_of_those_told_about() -> None:
    reply = Replies(TIMEOUTS)
    reply.entry(Entry(9, Attr(type=TYPE_SYMLINK, mode=0o777)))
    assert not reply.told.misled(9, FILE)


def test_values_of_attributes_fit_or_say_how_long_they_are() -> None:
    assert adapter._fitting(b"value", 5) == b"value"
    assert adapter._fitting(b"value", 0) == b"\x05" + bytes(7)
    with pytest.raises(FsError) as caught:
        adapter._fitting(b"value", 4)
    assert caught.value.errno == errno.ERANGE
