"""`umount --flush`: have a mount upload what is staged, and show how it goes, by the files in its root directory.

A jfs mount is asked to upload at once, whatever its delay and hours, and to stage no more; a mount of the peer's is waited for.
"""

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Generator
from typing import Final

import msgspec

from jfs.commands.special import special_file
from jfs.errors import UserError
from jfs.fuse import mounting
from jfs.units import show_size
from jfs.vfs.control import DRAIN, HEADER

log = logging.getLogger(__name__)

LOOK_S: Final = 0.2
SHOW_S: Final = 1.0
SILENT_S: Final = 5.0
"""So long without an upload is told."""


@contextlib.contextmanager
def flushed(path: str) -> Generator[None, None, None]:
    """For the time of the block nothing is staged on the mount; if the block fails or is interrupted, staging goes on.

    UserError, also where `path` is no mount of a volume.
    """
    _require_mount(path)
    with _interruptible():
        asked = _ask(path, on=True)
        try:
            _wait(path)
            yield
        except BaseException:
            if asked:
                _ask(path, on=False)
            raise


@contextlib.contextmanager
def _interruptible() -> Generator[None, None, None]:
    """A service's time limit and the terminal's end are a Ctrl-C: who dies of them leaves a mount that stages no more."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


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
    before = _look(path)
    if before is None:
        return
    shown = time.monotonic()
    progress = Progress(before, shown)
    while (now := _look(path)) is not None and now.blocks:
        passed = time.monotonic() - shown
        if passed >= SHOW_S:
            print(f"\r{progress.line(before, now, passed):<78}", end="", flush=True)
            before, shown = now, time.monotonic()
        time.sleep(LOOK_S)
    print("\rAll staging chunks are flushed".ljust(79))


class Figures(msgspec.Struct, frozen=True):
    """What the mount tells of its staged blocks."""

    blocks: int
    """Those that wait for their upload, or will once they are staged."""
    bytes: int
    errors: int
    """Whatever failed in the mount since its start that could be an upload."""


class Progress:
    """How the uploads go on, and why they do not."""

    def __init__(self, figures: Figures, now: float) -> None:
        self._last = figures
        """What was told when an upload had ended last."""
        self._since = now
        self._complained = False

    def line(self, before: Figures, now: Figures, passed: float) -> str:
        """What is shown after so many seconds."""
        rate = max((before.bytes - now.bytes) / passed, 0.0)
        if rate or now.blocks < self._last.blocks:
            self._last, self._since = now, time.monotonic()
        prospect = f"left {now.bytes / rate:.0f}s" if rate else self._trouble(now)
        return f"{show_size(now.bytes)} staging chunks are being flushed... {show_size(int(rate))}/s, {prospect}"

    def _trouble(self, now: Figures) -> str:
        if now.errors > self._last.errors:
            if not self._complained:
                self._complained = True
                log.warning(
                    "uploads fail, the mount's log says why; they are tried again until they work: "
                    "Ctrl-C ends the waiting, and leaves the mount and what is staged"
                )
            return "uploads fail"
        waited = time.monotonic() - self._since
        return f"nothing for {waited:.0f}s" if waited >= SILENT_S else "left unknown"


def _look(path: str) -> Figures | None:
    """None where nobody tells."""
    file = special_file(path, "stats")
    if file is None:
        return None
    with open(file, encoding="ascii") as stats:
        figures = dict(line.split()[:2] for line in stats if line.startswith("juicefs_"))

    def figure(name: str) -> int:
        return int(float(figures.get(f"juicefs_{name}", 0)))

    return Figures(
        figure("staging_blocks") + figure("staging_writing_blocks"),
        figure("staging_block_bytes"),
        figure("staging_block_errors") + figure("object_request_errors"),  # by jfs, by the peer
    )
