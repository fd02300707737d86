"""The errors that cross layers.  Whoever raises one knows the rule that was broken; nobody below decides how to show it."""

import os
from typing import TypeVar, cast

E = TypeVar("E", bound=BaseException)


class FsError(Exception):
    """A system call's failure: carries the errno that the caller shall see."""

    __slots__ = ("errno",)

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno

    def __str__(self) -> str:
        return os.strerror(self.errno)


class UserError(Exception):
    """Bad input or a bad environment: one clear line for stderr (what is wrong, what would be right), exit code 1."""


class NotFormatted(UserError):
    """There is no volume in the database."""


class CorruptRecord(Exception):
    """A metadata record that cannot be what the format says; names its key.  System calls answer EIO."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"corrupt record {key}: {why}")
        self.key = key
        self.why = why


class Conflict(Exception):
    """The transaction lost a race (or the database was busy) and changed nothing: run it again."""


class Unavailable(Conflict):
    """The database did not answer, and nothing was changed: run the transaction again, after a while."""


class StoreError(Exception):
    """The object store failed.  Retried by the retry decorator, then EIO."""


class StoreFull(StoreError):
    """The store has no room for the object.  Never retried: the caller shall see ENOSPC."""


class ObjectMissing(StoreError):
    """No such object.  Never retried as a fault: the answer is known."""


class BadObject(StoreError):
    """An object or block whose bytes are not what its name or checksum promises.  EIO, never wrong bytes."""


def first_of(group: BaseExceptionGroup[BaseException], kinds: type[E] | tuple[type[E], ...]) -> E | None:
    """One of the failures of several requests made at once: whoever asked for the bytes wants no groups.

    None where others than of these kinds are among them.  Not for `except*`: what is raised in one comes out in another group
    (Python before 3.11.4).
    """
    failed, others = group.split(kinds)
    if failed is None or others is not None:
        return None
    first: BaseException = failed
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return cast(E, first)
