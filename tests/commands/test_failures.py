"""A failure is one line, however deep it happened."""

import errno

import click
import pytest

from jfs.commands.failures import line
from jfs.errors import BadObject, Conflict, CorruptRecord, FsError, UserError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("what is wrong"), "what is wrong"),
        (CorruptRecord("node 1", "too short"), "corrupt record node 1: too short"),
        (BadObject("chunks/0/0/1_0_5: 4 bytes"), "chunks/0/0/1_0_5: 4 bytes"),
        (FsError(errno.ENOSPC), "No space left on device (errno 28)"),
        (Conflict("locked"), "the metadata engine is busy, nothing was changed: locked"),
        (click.UsageError("no such thing"), "no such thing"),
        (KeyboardInterrupt(), "interrupted"),
        (click.Abort(), "interrupted"),
    ],
)
def test_what_is_expected_says_it_itself(error: BaseException, expected: str) -> None:
    assert line(error) == expected
    assert line(BaseExceptionGroup("tasks", [BaseExceptionGroup("inner", [error])])) == expected


def test_of_several_the_one_that_says_most() -> None:
    group = ExceptionGroup("tasks", [ValueError("x"), ExceptionGroup("inner", [UserError("the reason")])])
    assert line(group) == "the reason"


def test_a_bug_is_called_one() -> None:
    expected = "unexpected error (please report it; --debug shows more): ValueError: x"
    assert line(ExceptionGroup("tasks", [ValueError("x")])) == expected
