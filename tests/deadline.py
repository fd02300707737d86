"""Waiting for something that another task, thread or process does: poll with a deadline, never just sleep."""

import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")

_PAUSE = threading.Event()


def eventually(predicate: Callable[[], T], timeout: float = 30.0, what: str = "", pause: float = 0.02) -> T:
    """The first true result of `predicate`; an AssertionError if it is not true `timeout` seconds from now either."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline  # asked before: this process, too, may stand still
        result = predicate()
        if result:
            return result
        if late:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}")
        _PAUSE.wait(pause)


async def eventually_async(
    predicate: Callable[[], T | Awaitable[T]], timeout: float = 30.0, what: str = "", pause: float = 0.02
) -> T:
    """The same on trio's clock (a MockClock too); `predicate` may be async."""
    deadline = trio.current_time() + timeout
    while True:
        late = trio.current_time() > deadline
        result = predicate()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        if late:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}")
        await trio.sleep(pause)
