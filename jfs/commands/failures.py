"""What a failure is to the person at the command line: one line, whatever raised it and however deep."""

import logging
from collections.abc import Iterator

import click

from jfs.errors import Conflict, CorruptRecord, FsError, StoreError, UserError

log = logging.getLogger(__name__)

_EXPECTED = (
    UserError,
    CorruptRecord,
    StoreError,
    FsError,
    Conflict,
    click.ClickException,
    KeyboardInterrupt,
    click.Abort,
)


def line(error: BaseException) -> str:
    """The line for the log.  Of a group, what came of several tasks, the failure that says most."""
    if isinstance(error, BaseExceptionGroup):
        causes = list(_leaves(error))
        return line(next((cause for cause in causes if isinstance(cause, _EXPECTED)), causes[0]))
    match error:
        case UserError() | CorruptRecord() | StoreError():
            return str(error)
        case FsError():
            return f"{error} (errno {error.errno})"
        case Conflict():
            return f"the metadata engine is busy, nothing was changed: {error}"
        case click.ClickException():
            return error.format_message()
        case KeyboardInterrupt() | click.Abort():  # click makes the one of the other
            return "interrupted"
    log.debug("unexpected error", exc_info=error)
    return f"unexpected error (please report it; --debug shows more): {type(error).__name__}: {error}"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
