"""The shape of log lines."""

import logging
import re

import pytest

from jfs.logs import LineFormatter

LINE = re.compile(
    r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} juicefs\[\d+\] <([A-Z]+)>: (.*) \[(\w+)@(\w+\.py):\d+\]", re.DOTALL
)


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("jfs", level, "/x/cli.py", 7, message, (), None, func="run")


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (5, "TRACE"),
        (logging.DEBUG, "DEBUG"),
        (logging.INFO, "INFO"),
        (logging.WARNING, "WARNING"),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "FATAL"),
    ],
)
def test_the_peers_shape(level: int, name: str) -> None:
    match = LINE.fullmatch(LineFormatter().format(record(level, "two\nlines")))
    assert match is not None
    assert match.groups() == (name, "two\nlines", "run", "cli.py")


def test_id_and_colour() -> None:
    line = LineFormatter(log_id="7", colour=True).format(record(logging.INFO, "x"))
    assert line.startswith("[7] 2")
    assert "<\033[1;34mINFO\033[0m>" in line
