"""`umount --flush`: have a mount upload what is staged, and show how it goes, by the files in its root directory.

A jfs mount is asked to upload at once, whatever its delay and hours, and to stage no more; a mount of the peer's is waited for.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Generator
from typing import Final

from jfs.commands.special import special_file
from jfs.errors import UserError
from jfs.fuse import mounting
from jfs.units import show_size
from jfs.vfs.control import DRAIN, HEADER

log = logging.getLogger(__name__)

LOOK_S: Final = 0.2
SHOW_S: Final = 1.0


@contextlib.contextmanager
def flushed(path: str) -> Generator[None, None, None]:
    """For the time of the block nothing is staged on the mount; if the block fails, staging goes on.

    UserError, also where `path` is no mount of a volume.
    """
    _require_mount(path)
    asked = _ask(path, on=True)
    try:
        _wait(path)
        yield
    except BaseException:
        if asked:
            _ask(path, on=False)
        raise


def _require_mount(path: str) -> None:
    try:
        os.lstat(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except OSError as error:
        log.debug("%s: %s", path, error.strerror)  # the end of a mount that has died
    kind = mounting.mounted_as(os.path.realpath(path))
    if kind is None or not kind.startswith("fuse.juicefs"):
        raise UserError(f"{path} is not a JuiceFS mount point: nothing was flushed or unmounted")
    if special_file(path, "stats") is None:
        raise UserError(
            f"{path}: the mount does not answer, so nothing can be flushed; what is staged waits for the next mount: "
            "unmount without --flush"
        )


def _ask(path: str, *, on: bool) -> bool:
    """Whether the mount does it: the peer knows no such command."""
    file = special_file(path, "control")
    if file is None:
        return False
    fd = os.open(file, os.O_RDWR)
    try:
        os.write(fd, HEADER.pack(DRAIN, 1) + bytes([on]))
        answer = os.read(fd, 1)
    finally:
        os.close(fd)
    if answer == bytes([errno.EPERM]):
        raise UserError(f"{path}: only root and the owner of the mount may flush its staged blocks")
    return answer == b"\0"


def _wait(path: str) -> None:
    """Until nothing is staged, nor being staged, with a line each second."""
    before, since = _staged(path), time.monotonic()
    if before is None:
        return
    while (now := _staged(path)) is not None and now[0]:
        time.sleep(LOOK_S)
        passed = time.monotonic() - since
        if passed >= SHOW_S:
            rate = max((before[1] - now[1]) / passed, 0.0)
            left = f"{now[1] / rate:.0f}s" if rate else "unknown"
            line = f"{show_size(now[1])} staging chunks are being flushed... {show_size(int(rate))}/s, left {left}"
            print(f"\r{line:<78}", end="", flush=True)
            before, since = now, time.monotonic()
    print("\rAll staging chunks are flushed".ljust(79))


def _staged(path: str) -> tuple[int, int] | None:
    """Blocks that wait for their upload, or will once they are staged, and bytes that do; None where nobody tells."""
    file = special_file(path, "stats")
    if file is None:
        return None
    with open(file, encoding="ascii") as stats:
        figures = dict(line.split()[:2] for line in stats if line.startswith("juicefs_staging_"))
    names = ("blocks", "writing_blocks", "block_bytes")
    blocks, writing, size = (int(float(figures.get(f"juicefs_staging_{name}", 0))) for name in names)
    return blocks + writing, size
