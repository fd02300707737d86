"""The folders that blocks are kept in on this machine: making, naming and walking them, and what their errors mean."""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Final

LOCK_NAME: Final = ".lock"
STAGED: Final = "rawstaging"
"""The part of a cache folder that holds blocks which are not uploaded yet; their keys are paths below it."""

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
REFUSED: Final = (errno.EROFS, errno.EACCES, errno.EPERM)

AWAY: Final = (
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ESHUTDOWN,
    errno.EREMOTEIO,
)
"""What a file system answers whose server, another machine or a process of this one, is away."""

DISK_FAULTS: Final = (
    errno.EIO,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENOMEDIUM,
    errno.EUCLEAN,
    errno.EBADMSG,
    errno.EROFS,
    *AWAY,
    *FULL,
)
"""What fails today and may work tomorrow; after other errors the folder itself is a wrong one."""


def make_private(folder: str) -> None:
    """mkdir -p with mode 0700 for each folder made (`os.makedirs` gives it to the last one only)."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    except FileNotFoundError:
        make_private(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def free_of(folder: str) -> tuple[float, float]:
    """The parts of the disk's space and of its inodes that are free; of a disk that counts no inodes all are.  Raises OSError."""
    disk = os.statvfs(folder)
    return disk.f_bavail / max(disk.f_blocks, 1), disk.f_favail / disk.f_files if disk.f_files else 1.0


def _raise(_path: str, error: OSError) -> None:
    raise error


def walk(
    root: str, folder: str = "", *, failed: Callable[[str, OSError], None] = _raise
) -> Iterator[tuple[str, os.stat_result]]:
    """The files below `root` (with a slash at its end): their paths from there, and what stat(2) says.

    What cannot be looked at is left out if `failed`, which gets its path and the reason, does not raise.
    """
    try:
        with os.scandir(root + folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    except OSError as error:
        failed(root + folder, error)
        return
    for entry in found:
        path = folder + entry.name
        try:
            info = None if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed(root + path, error)
            continue
        if info is None:
            yield from walk(root, f"{path}/", failed=failed)
        else:
            yield path, info


def device_of(path: str) -> int:
    """The device that the path, or the nearest folder above it that is there, lies on."""
    while True:
        try:
            return os.stat(path).st_dev
        except FileNotFoundError:
            path = os.path.dirname(path)


def lock_id(folder: str, wanted: str | None = None) -> str:
    """The folder's name on the ring, given to it on first use; by link(2), so that nobody reads half of it.

    A new name is `wanted`, or random.
    """
    path = f"{folder}/{LOCK_NAME}"
    make_private(folder)
    if not os.path.exists(path):
        fresh = wanted or str(uuid.uuid4())
        temp = f"{path}.{uuid.uuid4()}.tmp"
        try:
            with open(temp, "x", encoding="ascii") as file:
                os.fchmod(file.fileno(), 0o666)
                file.write(fresh)
            with contextlib.suppress(FileExistsError):
                os.link(temp, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp)
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
