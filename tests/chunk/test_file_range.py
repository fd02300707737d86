"""What lies in the kernel's memory of a local file, and its descriptors."""

import os
from pathlib import Path

import pytest

from jfs.chunk.descriptors import Descriptors, bring_in
from jfs.chunk.file_range import PAGE, LocalFile, can_tell, is_in_memory
from tests.pages import drop_pages

SIZE = 40 * PAGE + 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def test_the_kernel_tells_what_it_holds(path: Path) -> None:
    assert can_tell()
    with path.open("rb") as file:
        fd = file.fileno()
        assert is_in_memory(fd, 0, SIZE)
        assert is_in_memory(fd, 5, 1)
        assert is_in_memory(fd, PAGE - 1, 2)
        drop_pages(path)
        assert not is_in_memory(fd, 0, SIZE)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # one page is read, and no more
        os.pread(fd, PAGE, 10 * PAGE)
        assert is_in_memory(fd, 10 * PAGE, PAGE)
        assert not is_in_memory(fd, 10 * PAGE - 1, 2)
        assert not is_in_memory(fd, 11 * PAGE - 1, 2)
        assert not is_in_memory(fd, 0, SIZE)


def test_whoever_may_not_be_told_does_not_ask_for_ever(path: Path) -> None:
    """Since Linux 6.13 the kernel tells nothing of files that one could not write: then nothing has to be brought in either."""
    files = Descriptors()
    path.chmod(0o644)
    assert files.lend(str(path), 0, PAGE) is not None
    os.seteuid(65534)
    try:
        assert files.lend(str(path), 0, PAGE) is None
    finally:
        os.seteuid(0)
    assert not files.tells
    data = files.read(str(path), 0, PAGE)
    assert data is not None
    assert bytes(data) == path.read_bytes()[:PAGE]


def test_a_range_beyond_the_end_is_not_there(path: Path) -> None:
    with path.open("rb") as file:
        assert not is_in_memory(file.fileno(), SIZE - 10, 11)
        assert not is_in_memory(file.fileno(), SIZE, 1)
        assert not is_in_memory(file.fileno(), SIZE + PAGE, 1)


def test_what_is_not_in_memory_is_lent_once_it_was_brought_in(path: Path) -> None:
    files = Descriptors()
    drop_pages(path)
    assert files.lend(str(path), 100, 30 * PAGE) is None
    bring_in(str(path), 100, 30 * PAGE, wait=True)
    lent = files.lend(str(path), 100, 30 * PAGE)
    assert lent is not None
    assert (len(lent), lent.offset) == (30 * PAGE, 100)
    assert os.pread(lent.file.fd, len(lent), lent.offset) == path.read_bytes()[100 : 100 + 30 * PAGE]


def test_a_missing_file_is_nobodys_error(tmp_path: Path) -> None:
    bring_in(str(tmp_path / "none"), 0, 10, wait=True)
    assert Descriptors().lend(str(tmp_path / "none"), 0, 10) is None


def test_a_range_outlives_its_file_and_its_place_in_the_table(path: Path) -> None:
    """A number that is free again may stand for another file by the time the range is used."""
    files = Descriptors(capacity=1)
    data = path.read_bytes()
    lent = files.lend(str(path), 0, SIZE)
    assert lent is not None
    path.unlink()
    files.drop(str(path))
    other = path.with_name("other")
    other.write_bytes(bytes(SIZE))
    assert files.read(str(other), 0, 10) == bytes(10)
    assert os.pread(lent.file.fd, SIZE, 0) == data


def test_descriptors_are_closed_when_nobody_needs_them(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    file = LocalFile(fd, str(path))
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
