"""Calls on a disk that may hang: made by threads, which are left to themselves when it keeps them for too long.

While one of them has not come back nothing more is asked of the disk.  What a call that was left does in the end counts only if it
was done before: it can look whether it is still `wanted`, and undo itself.
"""

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import trio

from jfs.errors import StoreError

PATIENCE_S: Final = 10.0
"""A disk that takes longer for a block does not answer at all."""

WRITERS: Final = 16
"""Threads that write; more than a disk's queue needs."""

OTHERS: Final = 16

T = TypeVar("T")


class Hangs(OSError):
    """ETIMEDOUT.  `first`: of the calls that it keeps, this was the first to be left."""

    def __init__(self, patience_s: float, *, first: bool) -> None:
        super().__init__(errno.ETIMEDOUT, f"no answer within {patience_s:g} s")
        self.first = first


class FlushHangs(StoreError):
    """The blocks with these `keys` are not durable yet, and not lost: another flush may reach them."""

    def __init__(self, message: str, keys: set[str]) -> None:
        super().__init__(message)
        self.keys = keys


class Attempt(Generic[T]):
    """One call, by a thread, for a task on the loop that may leave."""

    __slots__ = ("_left", "_lock", "done", "result", "running")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = False
        self.running = False
        """A call that was left runs until the loop has heard of its end."""
        self.done = False
        self.result: T | None = None

    def begin(self) -> bool:
        """By the thread; False: it is too late to begin."""
        with self._lock:
            self.running = not self._left
            return self.running

    def wanted(self) -> bool:
        return not self._left

    def end(self, *, done: bool) -> bool:
        """By the thread; False: it was left, and what it has done counts for nothing."""
        with self._lock:
            self.done = done and not self._left
            self.running = self._left
            return not self._left

    def leave(self) -> None:
        """By the loop, which waits no longer.  From now on `done` stays what it is."""
        with self._lock:
            self._left = True


class DiskThreads:
    """The calls on one folder's disk.  For the loop."""

    def __init__(self) -> None:
        self.writers = trio.CapacityLimiter(WRITERS)
        self.others = trio.CapacityLimiter(OTHERS)
        self._adrift: set[object] = set()

    @property
    def hangs(self) -> bool:
        """Whether a call was left that has not come back."""
        return bool(self._adrift)

    async def run(
        self,
        call: Callable[..., T],
        *args: object,
        writes: bool = False,
        patience_s: float | None = None,
        undo: Callable[[], object] = lambda: None,
        over: Callable[[bool], object] = lambda done: None,
    ) -> T:
        """What `call(*args)` gives.  Raises its errors, and Hangs.

        One that `writes` is told, last of all, how to ask whether it is still wanted.

        `undo` is called by the thread after a call that was left, `over` by the loop, once, when the call has come to its end: with
        whether it is done, and counts.
        """
        patience_s = PATIENCE_S if patience_s is None else patience_s
        attempt: Attempt[T] = Attempt()
        token = trio.lowlevel.current_trio_token()

        def came_back() -> None:
            self._adrift.discard(attempt)
            over(False)

        def work() -> None:
            if not attempt.begin():
                return
            done = False
            try:
                attempt.result = call(*args, attempt.wanted) if writes else call(*args)
                done = True
            finally:
                if not attempt.end(done=done):
                    try:
                        undo()
                    finally:
                        with contextlib.suppress(trio.RunFinishedError):
                            token.run_sync_soon(came_back)

        first = not self._adrift
        try:
            if first:
                limiter = self.writers if writes else self.others
                with trio.move_on_after(patience_s):
                    await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
        finally:
            attempt.leave()
            first = attempt.running and not self._adrift
            if attempt.running:
                self._adrift.add(attempt)
            else:
                over(attempt.done)
        if not attempt.done:
            raise Hangs(patience_s, first=first)
        return attempt.result  # type: ignore[return-value]
