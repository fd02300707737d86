"""Replies that go from a file's pages to a descriptor through the pipe."""

import errno
import os
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from jfs.chunk.file_range import PAGE, FileRange, LocalFile
from jfs.fuse.pipe import OTHER_PAGES, Pipe

HEADER = b"sixteen bytes .."
SIZE = 300 * PAGE


@pytest.fixture
def pipe() -> Generator[Pipe, None, None]:
    with closing(Pipe()) as pipe:
        yield pipe


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    data = os.urandom(SIZE)
    (tmp_path / "data").write_bytes(data)
    return data


def lent(tmp_path: Path, offset: int, length: int) -> FileRange:
    return FileRange(LocalFile(os.open(tmp_path / "data", os.O_RDONLY), "data"), offset, length)


def sent(pipe: Pipe, tmp_path: Path, header: bytes, data: FileRange) -> bytes:
    pipe.fill(header, data)
    with (tmp_path / "device").open("w+b") as device:
        pipe.empty_into(device.fileno())
        device.seek(0)
        return device.read()


@pytest.mark.parametrize(("offset", "length"), [(0, 100), (0, PAGE), (7, 3 * PAGE), (5 * PAGE - 1, 2), (SIZE - 10, 10)])
def test_header_and_range_arrive_in_one_piece(
    pipe: Pipe, tmp_path: Path, data: bytes, offset: int, length: int
) -> None:
    assert sent(pipe, tmp_path, HEADER, lent(tmp_path, offset, length)) == HEADER + data[offset : offset + length]


def test_the_longest_range_fits_wherever_it_begins(pipe: Pipe, tmp_path: Path, data: bytes) -> None:
    assert pipe.most >= (256 - OTHER_PAGES) * PAGE
    length = min(pipe.most, SIZE - 1)
    for offset in (0, 1):
        assert sent(pipe, tmp_path, HEADER, lent(tmp_path, offset, length)) == HEADER + data[offset : offset + length]


def test_a_file_that_ends_too_early_is_an_error_and_leaves_nothing_behind(
    pipe: Pipe, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(OSError, match="too short"):
        pipe.fill(HEADER, lent(tmp_path, SIZE - PAGE, PAGE + 1))
    assert sent(pipe, tmp_path, b"the next", lent(tmp_path, 0, 10)) == b"the next" + data[:10]


def test_a_reply_that_nobody_takes_leaves_nothing_behind(pipe: Pipe, tmp_path: Path, data: bytes) -> None:
    pipe.fill(HEADER, lent(tmp_path, 0, PAGE))
    with (tmp_path / "data").open("rb") as device, pytest.raises(OSError, match="Bad file descriptor") as caught:
        pipe.empty_into(device.fileno())
    assert caught.value.errno == errno.EBADF
    assert sent(pipe, tmp_path, b"the next", lent(tmp_path, 0, 10)) == b"the next" + data[:10]


@pytest.mark.parametrize("filled", [False, True])
def test_a_reply_that_failed_takes_no_new_descriptors(
    pipe: Pipe, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, *, filled: bool
) -> None:
    """Where none are left, the numbers of the old ones might be other files' by the next reply."""

    def none_left(flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", none_left)
    if not filled:
        with pytest.raises(OSError, match="too short"):
            pipe.fill(HEADER, lent(tmp_path, SIZE - PAGE, PAGE + 1))
    else:
        pipe.fill(HEADER, lent(tmp_path, 0, PAGE))
        with pytest.raises(OSError, match="Bad file descriptor"):
            pipe.empty_into(-1)
    assert sent(pipe, tmp_path, b"the next", lent(tmp_path, 0, 10)) == b"the next" + data[:10]


def test_what_does_not_fit_is_an_error_and_hangs_nobody(pipe: Pipe, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(pipe.most + 4 * PAGE))
    with pytest.raises(BlockingIOError):
        pipe.fill(HEADER, lent(tmp_path, 0, pipe.most + 4 * PAGE))
    assert sent(pipe, tmp_path, b"the next", lent(tmp_path, 0, 10)) == b"the next" + bytes(10)
