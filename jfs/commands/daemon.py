"""Going into the background: fork first, start everything after, tell the caller how it went."""

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Final

from jfs import logs
from jfs.commands import failures
from jfs.errors import UserError

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S: Final = 10.0
READY: Final = b"\0"
LONGEST_REASON: Final = 4000
"""Bytes; a pipe takes so many in one write."""

Ready = Callable[[], None]


def run_in_background(serve: Callable[[Ready], int], path: str, *, log_file: str, syslog: bool, name: str) -> int:
    """Run `serve` in a daemon; return once the mount is ready.  UserError where it is not in time.

    The daemon holds the write end of a pipe: it writes that it is ready, or why it is not; its death closes it.
    """
    limit = _timeout()
    try:
        os.makedirs(os.path.dirname(os.path.abspath(log_file)), exist_ok=True)
        log_fd = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"log file {log_file} cannot be opened: {error.strerror}") from None
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        _serve_detached(serve, log_fd, writer, syslog=syslog)
    os.close(writer)
    os.close(log_fd)
    os.waitpid(child, 0)
    _wait(reader, limit, path, log_file)
    log.info('\033[92mOK\033[0m, %s is ready at "%s"', name, path)
    return 0


def _serve_detached(serve: Callable[[Ready], int], log_fd: int, writer: int, *, syslog: bool) -> None:
    """The daemon's life; never returns."""
    code = 1
    try:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        if syslog:
            logs.add_syslog()
        logs.started(again=True)  # whoever reads the log of a mount from fstab has no other place to find it
        code = serve(lambda: _tell(writer, READY))
    except BaseException as error:
        reason = failures.line(error)
        log.critical("%s", reason)
        _tell(writer, reason.encode()[:LONGEST_REASON])
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell(writer: int, word: bytes) -> None:
    """To the caller of the command, if it still waits.  The descriptor stays open: its number must not be another's."""
    try:
        os.write(writer, word)
    except BrokenPipeError:
        log.debug("nobody waits any more for how the start went")


def _timeout() -> float:
    text = os.environ.get("JFS_MOUNT_TIMEOUT") or str(DEFAULT_TIMEOUT_S)
    try:
        return float(text)
    except ValueError:
        raise UserError(f'Invalid value "{text}" for JFS_MOUNT_TIMEOUT: seconds are wanted') from None


def _wait(reader: int, limit: float, path: str, log_file: str) -> None:
    """Until the daemon says that it is ready.  UserError where it ends first or takes too long."""
    deadline = time.monotonic() + limit
    try:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([reader], [], [], min(left, 0.5))[0]:
                print(".", end="", flush=True)
                continue
            word = os.read(reader, LONGEST_REASON)
            if word == READY:
                return
            reason = word.decode(errors="replace") or f"the mount process for {path} ended"
            raise UserError(f'{reason}; please check the log ("{log_file}")')
    finally:
        os.close(reader)
    print()
    raise UserError(
        f"The mount point is not ready in {limit:g} seconds (mount process is not started yet), "
        f'please check the log ("{log_file}") or re-mount in foreground'
    )
