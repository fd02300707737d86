"""Going into the background: fork first, start everything after, tell the caller how it went."""

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Final

from jfs import logs
from jfs.errors import UserError

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S: Final = 10.0

Ready = Callable[[], None]


def run_in_background(serve: Callable[[Ready], int], path: str, *, log_file: str, syslog: bool, name: str) -> int:
    """Run `serve` in a daemon; return once the mount is ready.  UserError where it is not in time.

    The daemon holds the write end of a pipe: it writes when it is ready, and its death closes it.
    """
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
    _wait(reader, path, log_file)
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

        def ready() -> None:
            os.write(writer, b"1")

        code = serve(ready)
    except UserError as error:
        log.critical("%s", error)
    except BaseException:
        log.exception("the mount process failed")
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(reader: int, path: str, log_file: str) -> None:
    """Until the daemon says that it is ready.  UserError where it ends first or takes too long."""
    limit = float(os.environ.get("JFS_MOUNT_TIMEOUT") or DEFAULT_TIMEOUT_S)
    deadline = time.monotonic() + limit
    try:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([reader], [], [], min(left, 0.5))[0]:
                print(".", end="", flush=True)
                continue
            if os.read(reader, 1):
                return
            raise UserError(f'The mount process for {path} ended, please check the log ("{log_file}")')
    finally:
        os.close(reader)
    print()
    raise UserError(
        f"The mount point is not ready in {limit:g} seconds (mount process is not started yet), "
        f'please check the log ("{log_file}") or re-mount in foreground'
    )
