"""Diagnostics: one line on stderr per event, in the peer's shape, so that scripts that read its logs read ours.

    [ID] YYYY/MM/DD hh:mm:ss.uuuuuu juicefs[PID] <LEVEL>: MESSAGE [function@file:LINE]

Results go to stdout and are printed by the commands; nothing here touches it.
"""

import logging
import os
import sys
import time
from typing import Final, TextIO

TRACE: Final = 5
LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_NAMES: Final = {
    TRACE: "TRACE",
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARNING",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "FATAL",
}
_COLOURS: Final = {
    logging.DEBUG: 35,
    logging.INFO: 34,
    logging.WARNING: 33,
    logging.ERROR: 31,
    logging.CRITICAL: 31,
}


class LineFormatter(logging.Formatter):
    """The line shape above; the trailer stands on a message's last line, a traceback after it."""

    def __init__(self, *, log_id: str = "", colour: bool = False, stamp: bool = True) -> None:
        super().__init__()
        self._prefix = f"[{log_id}] " if log_id else ""
        self._colour = colour
        self._stamp = stamp

    def format(self, record: logging.LogRecord) -> str:
        level = _NAMES.get(record.levelno, record.levelname)
        if self._colour and record.levelno in _COLOURS:
            level = f"\033[1;{_COLOURS[record.levelno]}m{level}\033[0m"
        when = ""
        if self._stamp:
            fraction = int(record.created % 1 * 1_000_000)
            when = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(record.created)) + f".{fraction:06d} "
        line = (
            f"{self._prefix}{when}juicefs[{os.getpid()}] <{level}>: {record.getMessage()}"
            f" [{record.funcName}@{record.filename}:{record.lineno}]"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


_early: list[logging.LogRecord] | None = []
"""What was warned of while the program was starting; None once it has started."""
_MOST_EARLY: Final = 100


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is now: the background mount points it at its log file."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
        if _early is not None and record.levelno >= logging.WARNING and len(_early) < _MOST_EARLY:
            _early.append(record)


def started(*, again: bool = False) -> None:
    """Warnings are kept no longer; with `again` those so far are written once more, to where the log goes by now."""
    global _early
    early, _early = _early or [], None
    for record in early if again else ():
        logging.getLogger().handle(record)


def set_up(*, level: int = logging.INFO, log_id: str = "", colour: bool | None = None) -> None:
    """Log lines of at least `level` go to stderr; `colour` None means: where stderr is a terminal."""
    if log_id == "random":
        from uuid import uuid4

        log_id = str(uuid4())
    handler = StderrHandler()
    handler.setFormatter(LineFormatter(log_id=log_id, colour=sys.stderr.isatty() if colour is None else colour))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def add_syslog() -> None:
    """Background mounts speak to syslog too, where there is one."""
    from logging.handlers import SysLogHandler

    if not os.path.exists("/dev/log"):
        return
    handler = SysLogHandler(address="/dev/log", facility=SysLogHandler.LOG_USER)
    handler.setFormatter(LineFormatter(stamp=False))
    logging.getLogger().addHandler(handler)
