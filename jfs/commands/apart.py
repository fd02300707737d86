"""Work in a child process: what it starts there, as the threads of a client library, does not hinder a later fork."""

import logging
import os
import pickle
import sys
from collections.abc import Callable
from typing import TypeVar

from jfs.commands import failures
from jfs.errors import UserError

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """What `work` returns, which must be something that can be pickled.  UserError with the line of what it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise UserError("a check before the mount ended without an answer; try in the foreground, with --debug")
    result, failure = pickle.loads(answer)
    if failure is not None:
        raise UserError(failure)
    return result  # type: ignore[no-any-return]


def _answer(work: Callable[[], object], writer: int) -> None:
    """The child's life; never returns."""
    try:
        answer: tuple[object, str | None] = (work(), None)
    except BaseException as error:
        answer = (None, failures.line(error))
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(answer, pipe)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
