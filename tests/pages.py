"""The kernel's pages of a file, gone: what is read next comes from the disk."""

import os
from pathlib import Path

from jfs.chunk.file_range import PAGE, is_in_memory
from tests.deadline import eventually


def drop_pages(*paths: Path) -> None:
    """Until they are: a page that the file system's journal still holds stays at first."""
    for path in paths:
        with path.open("rb") as file:
            eventually(lambda file=file: _dropped(file.fileno()), what=f"the pages of {path} gone")


def _dropped(fd: int) -> bool:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return not any(is_in_memory(fd, place, 1) for place in range(0, os.fstat(fd).st_size, PAGE))
    except OSError:  # nobody tells here
        return True
