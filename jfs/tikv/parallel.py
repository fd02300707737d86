"""Several requests at once, and one request for several who want the same."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from jfs.tikv.errors import RpcError

T = TypeVar("T")


async def in_parallel(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run all; the first error ends the others and is raised as it is."""
    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """An error rather than a cancellation, if there is one."""
    inner = [_first(each) if isinstance(each, BaseExceptionGroup) else each for each in group.exceptions]
    return next((each for each in inner if not isinstance(each, trio.Cancelled)), inner[0])


class Together(Generic[T]):
    """Of those who want the same thing at one time one gets it for all, or fails for all.

    Without that, each of many who wait for a server that is silent would wait for it in turn.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._failures = 0
        self._last: RpcError | None = None

    async def get(self, known: Callable[[], T | None], make: Callable[[], Awaitable[T]]) -> T:
        """What is `known`, or else what is made now.  RpcError."""
        before = self._failures
        async with self._lock:
            found = known()
            if found is not None:
                return found
            if self._last is not None and self._failures != before:
                raise RpcError(str(self._last), code=self._last.code, sent=self._last.sent)
            try:
                return await make()
            except RpcError as error:
                self._failures += 1
                self._last = error
                raise
